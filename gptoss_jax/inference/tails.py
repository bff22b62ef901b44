"""Where sequences ended in the middle of a page, for prompts that go on from there.

As after a call of a tool: the next prompt is all that was said, and the tool's result. The page and
the ring are just as that prompt would make them, and whoever comes first takes both and writes on.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from gptoss_jax.inference.pools import Pool, key_after


class Tail(NamedTuple):
    """An ended sequence's last page, which is not whole, and its ring.

    Attributes:
      key: that both are kept under.
      length: tokens of the page.
    """

    key: bytes
    length: int


class Tails:
    """Of one part. The pools know which are there, and this how long they may be."""

    def __init__(self, pages: Pool, rings: Pool, most: int):
        """None.

        Args:
          pages: where their pages are kept.
          rings: where their rings are.
          most: rings that can be kept.
        """
        self._pages, self._rings, self._most = pages, rings, most
        self._lengths: OrderedDict[bytes, set[int]] = OrderedDict()

    def keep(self, before: bytes, tokens: Sequence[int], page: int, ring: int) -> None:
        """A page and a ring that will be released.

        Args:
          before: the key of the whole pages before.
          tokens: of this page, fewer than it has room for.
          page: id, held once.
          ring: id, held once.
        """
        key = key_after(before, tokens)
        self._pages.publish(page, key)
        self._rings.publish(ring, key)
        self._lengths.setdefault(before, set()).add(len(tokens))
        self._lengths.move_to_end(before)
        if len(self._lengths) > self._most:
            self._lengths.popitem(last=False)

    def find(self, before: bytes, tokens: Sequence[int], first: int) -> Tail | None:
        """The longest that tokens have from the first one on, and go beyond."""
        most = len(tokens) - first
        for length in sorted(self._lengths.get(before, ()), reverse=True):
            if length < most:
                key = key_after(before, tokens[first : first + length])
                if all(pool.find(key) is not None for pool in (self._pages, self._rings)):
                    return Tail(key, length)
        return None
