"""A short legal end of a constrained answer that runs out of tokens.

A walk through the masks that takes, wherever it may, what closes strings, arrays, objects and
elements, and the smallest values. Where that goes round in circles, others leave it at times for
anything else. An ending is legal because the masks are. It need not be the shortest there is, and
for some grammars none is found.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import llguidance
import numpy as np
from llguidance.numpy import fill_next_token_bitmask

from gptoss_jax.text.tokenizer import MESSAGE, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order of preference; what is not here comes after, longer tokens first, blanks last.
_IN_STRING = (b'"', b"</", b"<")
_IN_ELEMENT = (b"</", b"<")
_BETWEEN = (
    *(b"final", b"}", b"]", b"</", b"/>", b"/", b"<", b'"', b">", b",", b":"),
    *(b"0", b"1", b"null", b"false", b"true", b"n", b"f", b"[", b"{"),
)
# Walks that stray, how often they do, and how far they go.
_WALKS, _STRAYS, _STRAYING = 3, 0.3, 256


class Endings:
    """Finds endings for the sequences of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        """Sorts the tokens by how soon they end something."""
        self._words = -(-tokenizer.vocab_size // 32)
        self._stops = sorted(tokenizer.stop_ids)
        pieces = [tokenizer.token_bytes(i) or b"" for i in range(tokenizer.vocab_size)]
        # Between XML's tags no > stands as it is.
        self._angles = [pieces.index(piece) for piece in (b"<", b">")]
        self._kind_V = np.asarray([_kind(piece) for piece in pieces], np.int16)
        self._string_V = _order(tokenizer, pieces, _IN_STRING)
        self._element_V = _order(tokenizer, pieces, _IN_ELEMENT)
        self._between_V = _order(tokenizer, pieces, _BETWEEN)

    def find(self, matcher: llguidance.LLMatcher, most: int) -> list[int] | None:
        """Tokens from where a matcher is to the end of the turn; None if `most` are not enough."""
        found = self._walk(matcher, most, None)
        if found is None and not matcher.is_error():
            walks = (self._walk(matcher, min(most, _STRAYING), Random(n)) for n in range(_WALKS))
            found = next((walk for walk in walks if walk is not None), None)
        return found

    def _walk(
        self, matcher: llguidance.LLMatcher, most: int, strays: Random | None
    ) -> list[int] | None:
        matcher = matcher.deep_copy()
        words_1W = np.zeros((1, self._words), np.int32)
        found: list[int] = []
        while len(found) < most:
            fill_next_token_bitmask(matcher, words_1W)
            if matcher.is_error():
                return None
            bits = np.unpackbits(words_1W.view(np.uint8)[0], bitorder="little")
            allowed_V = bits[: len(self._between_V)].astype(bool)
            stop = next((i for i in self._stops if allowed_V[i]), None)
            if stop is not None:
                found.append(stop)
            elif strays is not None and strays.random() < _STRAYS:
                found.append(self._any(allowed_V, strays))
            else:
                found.append(self._next(allowed_V))
            if stop is not None:
                return found
            matcher.consume_token(found[-1])
        return None

    def _next(self, allowed_V: np.ndarray) -> int:
        # In free text nearly everything may come, brackets included, and ends nothing.
        if allowed_V.mean() < 0.25:
            order_V = self._between_V
        else:
            less, greater = allowed_V[self._angles]
            order_V = self._element_V if less and not greater else self._string_V
        return int(order_V[allowed_V[order_V].argmax()])

    def _any(self, allowed_V: np.ndarray, strays: Random) -> int:
        """A token of a kind that may come: a sign of its own is as likely as all letters."""
        kinds = np.unique(self._kind_V[allowed_V]).tolist()
        (chosen,) = np.nonzero(allowed_V & (self._kind_V == strays.choice(kinds)))
        return int(strays.choice(chosen.tolist()))


def _kind(piece: bytes) -> int:
    """Letters, digits and blanks are one each, any other byte that a token begins with another."""
    first = piece[:1]
    groups = (first.isalpha() or first >= b"\x80", first.isdigit(), not first.strip())
    return next((group for group, is_in in enumerate(groups) if is_in), 3 + ord(first or b"\0"))


def _order(tokenizer: Tokenizer, pieces: Sequence[bytes], first: Sequence[bytes]) -> np.ndarray:
    """Ids, those that end something first."""
    preferred = {piece: place for place, piece in enumerate(first)}
    message = tokenizer.specials.get(MESSAGE)

    def place(id_: int) -> tuple[int, int]:
        piece = pieces[id_]
        if tokenizer.is_special(id_):
            return (-1 - (id_ == message), 0)
        if not piece.strip():
            return (len(first) + 1, len(piece))
        return (preferred.get(piece, len(first)), -len(piece))

    return np.asarray(sorted(range(len(pieces)), key=place))
