"""Where sequences ended in the middle of a page, for prompts that go on from there.

As after a call of a tool: the next prompt is all that was said, and the tool's result. The page and
the ring are just as that prompt would make them, and whoever comes first takes both and writes on.
"""

from collections.abc import Sequence
from typing import NamedTuple

from gptoss_jax.inference.pools import Pool, key_after


class Tail(NamedTuple):
    """An ended sequence's last page, which is not whole, and its ring.

    Attributes:
      key: that both are kept under.
      tokens: of the page.
    """

    key: bytes
    tokens: list[int]


class Tails:
    """Of one part. What the pools have given away is forgotten."""

    def __init__(self, pages: Pool, rings: Pool, most: int):
        """None.

        Args:
          pages: where their pages are kept.
          rings: where their rings are.
          most: rings that can be kept.
        """
        self._pages, self._rings = pages, rings
        self._after: dict[bytes, dict[bytes, Tail]] = {}
        self._most = most

    def keep(self, before: bytes, tokens: Sequence[int], page: int, ring: int) -> None:
        """A page and a ring that will be released.

        Args:
          before: the key of the whole pages before.
          tokens: of this page, fewer than it has room for.
          page: id, held once.
          ring: id, held once.
        """
        tail = Tail(key_after(before, tokens), list(tokens))
        self._pages.publish(page, tail.key)
        self._rings.publish(ring, tail.key)
        if sum(map(len, self._after.values())) > 2 * self._most:
            self._forget()
        self._after.setdefault(before, {})[tail.key] = tail

    def find(self, before: bytes, tokens: Sequence[int]) -> Tail | None:
        """The longest that tokens begin with and go beyond."""
        fitting = (
            tail
            for tail in self._after.get(before, {}).values()
            if len(tail.tokens) < len(tokens) and tokens[: len(tail.tokens)] == tail.tokens
        )
        return max(filter(self._is_there, fitting), key=lambda t: len(t.tokens), default=None)

    def _is_there(self, tail: Tail) -> bool:
        return all(pool.find(tail.key) is not None for pool in (self._pages, self._rings))

    def _forget(self) -> None:
        """Those of which a page or ring is gone."""
        left = {
            before: {key: tail for key, tail in tails.items() if self._is_there(tail)}
            for before, tails in self._after.items()
        }
        self._after = {before: tails for before, tails in left.items() if tails}
