"""Tokenizers in Hugging Face's `tokenizer.json` format, through the `tokenizers` library."""

from __future__ import annotations

import re
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
    import tokenizers

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's table from a printable character to the byte it stands for in byte-level BPE."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class HFTokenizer(Tokenizer):
    """A `tokenizer.json`, byte-level or of the SentencePiece kind (`▁`, `<0xNN>`)."""

    def __init__(self, name: str, inner: tokenizers.Tokenizer) -> None:
        # Otherwise the library turns a literal <|end|> in content into the special token.
        inner.encode_special_tokens = True
        added = inner.get_added_tokens_decoder()
        special = {i: t.content for i, t in added.items() if t.special or looks_special(t.content)}
        reserved = {i for i, literal in special.items() if RESERVED.fullmatch(literal)}
        table = _byte_table(inner, {i: t.content for i, t in added.items()})
        unknown = inner.token_to_id(getattr(inner.model, "unk_token", None) or "")
        for token_id in reserved if unknown is None else reserved | {unknown}:
            table[token_id] = None  # stands for no text
        specials = {x: i for i, x in special.items() if i not in reserved}
        super().__init__(name, table, specials, reserved)
        # Added tokens not marked special are matched in any text, whatever the setting above.
        self._cutter = literal_cutter(
            t.content for i, t in added.items() if i in special and not t.special
        )
        self._inner = inner

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in cut_literals(text, self._cutter):
            ids += self._inner.encode(part, add_special_tokens=False).ids
        return ids


def _byte_table(inner: tokenizers.Tokenizer, added: dict[int, str]) -> list[bytes | None]:
    vocab = inner.get_vocab(with_added_tokens=True)
    table: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    to_bytes = _byte_level if "ByteLevel" in repr(inner.decoder) else _metaspace
    alphabet = byte_alphabet()
    for piece, token_id in vocab.items():
        literal = added.get(token_id)
        table[token_id] = to_bytes(piece, alphabet) if literal is None else literal.encode()
    return table


def _byte_level(piece: str, alphabet: dict[str, int]) -> bytes:
    if all(c in alphabet for c in piece):
        return bytes(alphabet[c] for c in piece)
    return piece.encode()


def _metaspace(piece: str, alphabet: dict[str, int]) -> bytes:
    del alphabet
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def load_hf(path: Path) -> HFTokenizer:
    """Loads a `tokenizer.json`.

    Raises:
      TokenizerError: the file is not one the `tokenizers` library reads.
    """
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokenizerError(
            f"{path}: not a tokenizer.json ({reason}); download it again"
        ) from None
    return HFTokenizer(path.name, inner)
