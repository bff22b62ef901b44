"""`python -m gptoss_jax.nano.build_tokenizer`: writes nano's tokenizer.model from its pieces.

Written rather than trained: SentencePiece's character model takes the longest of its user-defined
pieces at each place and else one character, so the phrases of `pieces.py` are all there is to say.
"""

import sys
from pathlib import Path

from gptoss_jax.nano.pieces import CHARACTERS, SPECIALS, UNKNOWN, phrases

PATH = Path(__file__).parent / "tokenizer.model"


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


if __name__ == "__main__":
    PATH.write_bytes(build())
    print(f"{PATH}: {PATH.stat().st_size} bytes", file=sys.stderr)
