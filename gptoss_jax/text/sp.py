"""SentencePiece `.model` files. Named sp so as not to shadow the library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax.text.errors import TokenizerError
from gptoss_jax.text.tokenizer import (
    RESERVED,
    Tokenizer,
    cut_literals,
    literal_cutter,
    looks_special,
)

if TYPE_CHECKING:
    import sentencepiece

_SPACE = "▁"

# Concatenated protocol buffers merge. This is ModelProto.normalizer_spec (field 3) with
# add_dummy_prefix (3) and remove_extra_whitespaces (4) false and escape_whitespaces (5) true.
_KEEP_SPACES = b"\x1a\x06\x18\x00\x20\x00\x28\x01"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose harmony tokens are control or user-defined pieces.

    The model's dummy prefix and whitespace squeezing are switched off: message content must come
    back as it was. A model trained with a normalisation other than identity still normalises, and
    one without byte fallback loses characters it never saw (U+FFFD).
    """

    def __init__(self, name: str, model: sentencepiece.SentencePieceProcessor) -> None:
        count = model.get_piece_size()
        pieces = [model.id_to_piece(i) for i in range(count)]
        special = {i: p for i, p in enumerate(pieces) if model.is_control(i) or looks_special(p)}
        reserved = {i for i, p in special.items() if RESERVED.fullmatch(p)}
        hidden = {i for i in range(count) if model.is_unknown(i) or model.is_unused(i)} | reserved
        table: list[bytes | None] = [
            None if i in hidden else _piece_bytes(p, model.is_byte(i), i in special)
            for i, p in enumerate(pieces)
        ]
        super().__init__(
            name, table, {p: i for i, p in special.items() if i not in reserved}, reserved
        )
        self._model = model
        # User-defined pieces are matched in any text; control pieces never are.
        self._cutter = literal_cutter(p for i, p in special.items() if not model.is_control(i))
        self._space_ids = _byte_ids(model, _SPACE.encode())

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        # SentencePiece writes a space as ▁, so a ▁ of the text itself must go by its bytes.
        for n, span in enumerate(text.split(_SPACE) if self._space_ids else [text]):
            ids += self._space_ids if n else []
            for part in cut_literals(span, self._cutter):
                ids += self._model.encode(part)
        return ids


def _piece_bytes(piece: str, is_byte: bool, is_special: bool) -> bytes:
    if is_byte:
        return bytes([int(piece[3:5], 16)])
    return piece.encode() if is_special else piece.replace(_SPACE, " ").encode()


def _byte_ids(model: sentencepiece.SentencePieceProcessor, data: bytes) -> list[int]:
    ids = [model.piece_to_id(f"<0x{b:02X}>") for b in data]
    return ids if all(model.is_byte(i) for i in ids) else []


def load_sp(path: Path) -> SentencePieceTokenizer:
    """Loads a SentencePiece `.model`.

    Raises:
      TokenizerError: the file is not a SentencePiece model.
    """
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes() + _KEEP_SPACES)
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TokenizerError(f"{path}: not a SentencePiece model ({reason})") from None
    return SentencePieceTokenizer(path.name, model)
