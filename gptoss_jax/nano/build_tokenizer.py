"""`python -m gptoss_jax.nano.build_tokenizer`: writes nano's tokenizer files from its pieces.

tokenizer.model is SentencePiece's; tokenizer.json is the same for who has Hugging Face's library.

Written rather than trained: SentencePiece's character model takes the longest of its user-defined
pieces at each place and else one character, so the phrases of `pieces.py` are all there is to say.
"""

import json
import sys
from pathlib import Path
from typing import Any

from gptoss_jax.nano.pieces import CHARACTERS, SPECIALS, UNKNOWN, phrases

PATH = Path(__file__).parent / "tokenizer.model"
HF_PATH = PATH.with_name("tokenizer.json")
HF_CONFIG_PATH = PATH.with_name("tokenizer_config.json")


def build() -> bytes:
    """The SentencePiece model; the same bytes each time."""
    # Of sentencepiece, but needs the protobuf library, which reading a model does not.
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    kinds = type(model).SentencePiece

    def add(piece: str, kind: int) -> None:
        model.pieces.add(piece=piece.replace(" ", "▁"), score=0.0, type=kind)

    add(UNKNOWN, kinds.UNKNOWN)
    for special in SPECIALS:
        add(special, kinds.CONTROL)
    for byte in range(256):
        add(f"<0x{byte:02X}>", kinds.BYTE)
    for character in CHARACTERS:
        add(character, kinds.NORMAL)
    for phrase in phrases():
        add(phrase, kinds.USER_DEFINED)
    model.trainer_spec.model_type = model.trainer_spec.CHAR
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = 0
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString(deterministic=True)


def build_hf() -> str:
    """The same vocabulary as a `tokenizer.json`.

    Phrases are added tokens, which that library cuts out first and longest as SentencePiece does;
    what is between them are characters, which a BPE without merges leaves alone.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, models

    pieces = [UNKNOWN, *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*CHARACTERS, *phrases()]
    ids = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN, byte_fallback=True)
    result = tokenizers.Tokenizer(model)
    result.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    result.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    result.add_tokens([AddedToken(p, normalized=False) for p in phrases()])
    return result.to_str(pretty=True) + "\n"


def build_hf_config() -> dict[str, Any]:
    """What transformers reads beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }


if __name__ == "__main__":
    PATH.write_bytes(build())
    HF_PATH.write_text(build_hf(), encoding="utf-8")
    HF_CONFIG_PATH.write_text(json.dumps(build_hf_config(), indent=2) + "\n", encoding="utf-8")
    print(f"{PATH}: {PATH.stat().st_size} bytes", file=sys.stderr)
