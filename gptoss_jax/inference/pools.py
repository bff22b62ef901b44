"""Ids of pages or rings: who holds them, and which are kept for prompts that begin the same.

Knows no device. Id 0 is nobody's and never given out.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


class Pool:
    """Ids 1..count, each held by any number of sequences, or by none and kept under its key.

    What is kept is given away again, the longest unused first, once nothing else is free.
    """

    def __init__(self, count: int):
        """All of `count` ids are free."""
        self._free = list(range(count, 0, -1))
        self._holders = [0] * (count + 1)
        self._id_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """How many `take` can give."""
        return len(self._free) + len(self._kept)

    @property
    def held(self) -> int:
        """How many ids somebody holds."""
        return len(self._holders) - 1 - self.available

    def take(self) -> int:
        """An id that nobody holds, now held once; the caller knows that one is available."""
        if self._free:
            taken = self._free.pop()
        else:
            taken, _ = self._kept.popitem(last=False)
            del self._id_of[self._key_of.pop(taken)]
        self._holders[taken] = 1
        return taken

    def hold(self, id_: int) -> None:
        """One holder more of an id that somebody holds or that is kept."""
        self._kept.pop(id_, None)
        self._holders[id_] += 1

    def release(self, id_: int) -> None:
        """One holder less; without any it is kept if it has a key, and free if not."""
        self._holders[id_] -= 1
        if self._holders[id_]:
            return
        if id_ in self._key_of:
            self._kept[id_] = None
        else:
            self._free.append(id_)

    def publish(self, id_: int, key: bytes) -> None:
        """From now on `find(key)` gives this id, unless it gives another one already."""
        if key not in self._id_of and id_ not in self._key_of:
            self._id_of[key] = id_
            self._key_of[id_] = key

    def claim(self, key: bytes) -> int:
        """The id that is kept under a key, now held once, and no more found under it."""
        id_ = self._id_of.pop(key)
        del self._key_of[id_], self._kept[id_]
        self._holders[id_] = 1
        return id_

    def is_kept(self, id_: int | None) -> bool:
        """Whether nobody holds an id that is kept."""
        return id_ in self._kept

    def check(self, holders: int) -> None:
        """Raises an AssertionError where what is written down does not add up.

        Args:
          holders: of all ids together, as the caller counts them.
        """
        held = [id_ for id_, count in enumerate(self._holders) if count]
        everything = sorted([*self._free, *self._kept, *held])
        assert everything == list(range(1, len(self._holders))), "an id is in no state, or in two"
        assert sum(self._holders) == holders, f"{sum(self._holders)} holders, not {holders}"
        named = {id_: key for key, id_ in self._id_of.items()}
        assert named == self._key_of, "a key and its id disagree"
        assert set(self._kept) <= set(named), "what is kept has no key"
        assert not set(self._free) & set(named), "what is free has a key"

    def find(self, key: bytes) -> int | None:
        """The id that was published under a key and not given away since."""
        return self._id_of.get(key)


def prefix_keys(
    tokens: Sequence[int], page: int, known: Sequence[bytes] = (), root: bytes = b""
) -> list[bytes]:
    """A key for each whole page of tokens, which stands for all tokens up to its end.

    Args:
      tokens: of a sequence.
      page: tokens a page.
      known: the first keys, already made of the same tokens and root.
      root: of what else the cache depends on; keys of different roots differ.
    """
    keys = list(known)
    for first in range(len(keys) * page, len(tokens) // page * page, page):
        before = keys[-1] if keys else root
        keys.append(key_after(before, tokens[first : first + page]))
    return keys


def key_after(before: bytes, tokens: Sequence[int]) -> bytes:
    """A key for tokens and all before them, for which another one stands."""
    here = np.asarray(tokens, np.int32).tobytes()
    return hashlib.blake2b(before + here, digest_size=16).digest()
