"""The one interface every tokenizer has here, and streaming detokenisation over it."""

from __future__ import annotations

import abc
import codecs
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gptoss_jax.text.errors import TokenizerError

if TYPE_CHECKING:
    import numpy as np

RETURN, CALL, END = "<|return|>", "<|call|>", "<|end|>"
START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDOFTEXT = "<|endoftext|>"
STOP_TOKENS = (RETURN, CALL, ENDOFTEXT)

RESERVED = re.compile(r"<\|reserved_\d+\|>")
_SPECIAL_SHAPE = re.compile(r"<\|[^|<>\s]+\|>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def looks_special(literal: str) -> bool:
    """Whether a token string has the shape `<|name|>` of a harmony special."""
    return _SPECIAL_SHAPE.fullmatch(literal) is not None


class Tokenizer(abc.ABC):
    """Text to ids and back, with content kept apart from special tokens.

    `encode` is for content: whatever the text spells, no special id comes out of it. Special ids
    are had by name, through `token_id`. A subclass brings only `_encode_plain`.

    Not done here: adding tokens, truncation, padding, chat formats.

    Attributes:
      name: what loaded it, for messages to people.
      vocab_size: number of ids spanned, the largest id with an entry plus one.
      specials: literal to id, without the reserved ones.
    """

    def __init__(
        self,
        name: str,
        table: Sequence[bytes | None],
        specials: Mapping[str, int],
        reserved_ids: Iterable[int] = (),
    ) -> None:
        """Builds the tables shared by all tokenizers.

        Args:
          name: what loaded it.
          table: bytes of each id, None where an id has no token string.
          specials: literal to id of every special token with a meaning.
          reserved_ids: special ids without a meaning; their `table` entry must be None.
        """
        self.name = name
        self.vocab_size = len(table)
        self.specials = dict(specials)
        self._table = table
        self._special_ids = frozenset(self.specials.values()) | frozenset(reserved_ids)

    @abc.abstractmethod
    def _encode_plain(self, text: str) -> list[int]:
        """Encodes text without lone surrogates; no special id may come out."""

    def encode(self, text: str) -> list[int]:
        """Encodes content; a literal such as `<|end|>` in it stays ordinary text.

        Args:
          text: any string. Lone surrogates, which UTF-8 cannot hold, become U+FFFD.

        Returns:
          Token ids, none of them special.
        """
        return self._encode_plain(_SURROGATE.sub(_REPLACEMENT, text)) if text else []

    def token_bytes(self, token_id: int) -> bytes | None:
        """Bytes an id stands for (a special's literal), None if it has no token string."""
        return self._table[token_id] if 0 <= token_id < self.vocab_size else None

    def token_id(self, literal: str) -> int:
        """Id of a special token.

        Raises:
          TokenizerError: this tokenizer has no such special.
        """
        try:
            return self.specials[literal]
        except KeyError:
            raise TokenizerError(
                f"{self.name}: no special token {literal}; use a tokenizer with the harmony tokens"
            ) from None

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a special token, reserved ones included."""
        return token_id in self._special_ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of ids; U+FFFD for invalid UTF-8 and for ids without a token string."""
        unknown = _REPLACEMENT.encode()
        pieces = (self.token_bytes(i) for i in token_ids)
        return b"".join(unknown if p is None else p for p in pieces).decode("utf-8", "replace")

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation: return, call, endoftext, as far as they exist."""
        return frozenset(self.specials[t] for t in STOP_TOKENS if t in self.specials)

    def unsampleable_ids(self, model_vocab_size: int) -> np.ndarray:
        """Ids below `model_vocab_size` that have no token string and must never be sampled.

        Returns:
          Sorted int32 array: reserved ids, gaps, and rows of the model beyond the tokenizer.
        """
        import numpy as np

        ids = [i for i in range(model_vocab_size) if self.token_bytes(i) is None]
        return np.asarray(ids, dtype=np.int32)


class StreamDecoder:
    """Incremental detokenisation that never emits half a UTF-8 character.

    The pieces returned, joined, equal `Tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is now certain, possibly empty."""
        piece = self._tokenizer.token_bytes(token_id)
        return self._utf8.decode(_REPLACEMENT.encode() if piece is None else piece)

    def finish(self) -> str:
        """Ends the text: U+FFFD if a character stayed unfinished. The decoder may be reused."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def literal_cutter(literals: Iterable[str]) -> re.Pattern[str] | None:
    """Pattern for `cut_literals`, None if there is nothing to cut."""
    escaped = [re.escape(x) for x in sorted(literals, key=len, reverse=True) if len(x) > 1]
    return re.compile(f"(?={'|'.join(escaped)})") if escaped else None


def cut_literals(text: str, cutter: re.Pattern[str] | None) -> list[str]:
    """Splits text after the first character of each literal, so that no part holds a whole one.

    For libraries that match added tokens in any text: encoding the parts one by one keeps the
    text and gives the matcher nothing to match.
    """
    if cutter is None:
        return [text]
    cuts = [0, *(m.start() + 1 for m in cutter.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(cuts) if a < b]
