"""Batches of rows, in a shuffled order that a small state resumes to the exact example."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gptoss_jax.errors import UserError
from gptoss_jax.training.examples import Unit
from gptoss_jax.training.packing import Batch, OpenRow, Packer, rows_of
from gptoss_jax.training.sources import Source

_GIVE_UP = 1_000


class Feed:
    """An endless stream of batches.

    The examples of all feeds of a run together are numbered 0, 1, … without end; number n of a
    source of `size` is the example at place n % size of epoch n // size, each epoch in a seeded
    order of its own. A source without end is taken as it comes. Feed p of P has the numbers p,
    p + P, and so on.

    Attributes:
      source: where the examples come from.
    """

    def __init__(
        self,
        source: Source,
        *,
        rows: int,
        length: int,
        open_rows: int,
        seed: int,
        number: int = 0,
        feeds: int = 1,
    ):
        """A feed at its beginning.

        Args:
          source: at least one example.
          rows: B, of this feed.
          length: T.
          open_rows: how many rows are being filled at once.
          seed: of the order.
          number: this one's, from 0.
          feeds: how many there are.
        """
        self.source = source
        self._rows = rows
        self._length = length
        self._seed = seed
        self._number = number
        self._feeds = feeds
        self._packer = Packer(length, open_rows)
        self._next = 0
        # Of the open rows, and of the last batch.
        self._examples: dict[int, Unit] = {}
        self._last: list[int] = []

    def batch(self) -> Batch:
        """The next B rows."""
        numbers = [self._row() for _ in range(self._rows)]
        self._last = list(itertools.chain.from_iterable(numbers))
        return rows_of([[self._examples.pop(n) for n in row] for row in numbers], self._length)

    def where(self, most: int = 4) -> str:
        """The last batch's examples by their places in the source, for messages to people."""
        shown = ", ".join(self.source.where(self._index(n)) for n in self._last[:most])
        more = len(self._last) - most
        return f"{shown} and {more} more" if more > 0 else shown

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from: JSON, the size of the open rows."""
        return {
            "fingerprint": self.source.fingerprint,
            "next": self._next,
            "open": [list(row.numbers) for row in self._packer.open],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch that `state` was taken behind.

        Raises:
          UserError: the data is other than then.
        """
        if state["fingerprint"] != self.source.fingerprint:
            was, now = state["fingerprint"], self.source.fingerprint
            raise UserError(f"the data has changed since the checkpoint: {was}, now {now}")
        self._next = state["next"]
        numbers = [n for row in state["open"] for n in row]
        self._examples = {n: one for n in numbers if (one := self._example(n))}
        self._packer.open = [
            OpenRow(list(row), sum(self._examples[n].length for n in row)) for row in state["open"]
        ]

    def _row(self) -> list[int]:
        while True:
            number, one = self._take()
            self._examples[number] = one
            if (row := self._packer.add(number, one.length)) is not None:
                return row

    def _take(self) -> tuple[int, Unit]:
        """The next good example and its number."""
        number = 0
        for _ in range(_GIVE_UP):
            number = self._next * self._feeds + self._number
            self._next += 1
            if (one := self._example(number)) is not None:
                return number, one
        where = self.source.where(self._index(number))
        raise UserError(f"{where}: the last of {_GIVE_UP} bad examples on end")

    def _example(self, number: int) -> Unit | None:
        return self.source[self._index(number)]

    def _index(self, number: int) -> int:
        size = self.source.size
        if size is None:
            return number
        return int(_order(self._seed, number // size, size)[number % size])


class Share:
    """A process's rows of the batches that a run's feeds fill together.

    A run keeps the number of feeds that it began with, also where more or fewer processes go on
    with it: each takes what its rows need, a feed of several processes in all of them.
    """

    def __init__(
        self, new: Callable[[int, int], Feed], *, rows: int, feeds: int, part: int, parts: int
    ):
        """All feeds at their beginning.

        Args:
          new: makes the feed of a number, of so many rows.
          rows: of a whole batch.
          feeds: of the run.
          part: which of the parts of a batch this process has, from 0.
          parts: how many there are.

        Raises:
          UserError: the feeds do not divide the rows.
        """
        if rows % feeds:
            raise UserError(
                f"config.batch_size {rows}: this run was begun in {feeds} parts, which do not "
                "divide it"
            )
        each, own = rows // feeds, rows // parts
        first, last = part * own, (part + 1) * own - 1
        self._feeds = {n: new(n, each) for n in range(first // each, last // each + 1)}
        self._own = slice(first % each, first % each + own)

    def batch(self) -> Batch:
        """The next batch's rows."""
        batches = [feed.batch() for feed in self._feeds.values()]
        return jax.tree.map(lambda *rows: np.concatenate(rows)[self._own], *batches)

    def where(self) -> str:
        """As `Feed.where`, of each."""
        return ", ".join(feed.where() for feed in self._feeds.values())

    def states(self) -> dict[str, Any]:
        """Each feed's `Feed.state`, by its number: JSON."""
        return {str(number): feed.state() for number, feed in self._feeds.items()}

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """As `Feed.restore`, from the states of all feeds of the run in order."""
        for number, feed in self._feeds.items():
            feed.restore(states[number])


@functools.lru_cache(maxsize=2)  # a batch may lie across two epochs
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def one_pass(source: Source, *, rows: int, length: int, batches: int) -> Iterator[Batch]:
    """The first examples of a source in its own order, once: at most so many batches.

    The last batch of a source that ends may have rows of padding.
    """
    passed = numbered_pass(source, rows=rows, length=length)
    return (batch for _, batch in itertools.islice(passed, batches))


def numbered_pass(
    source: Source, *, rows: int, length: int
) -> Iterator[tuple[list[list[int]], Batch]]:
    """The examples of a source in its own order, once: (each row's places in it, the batch)."""
    packer, held = Packer(length, open_rows=rows), dict[int, Unit]()
    closed = _closed_rows(source, packer, held)
    while numbers := list(itertools.islice(closed, rows)):
        numbers += [[]] * (rows - len(numbers))
        yield numbers, rows_of([[held.pop(n) for n in row] for row in numbers], length)


def _closed_rows(source: Source, packer: Packer, held: dict[int, Unit]) -> Iterable[list[int]]:
    for index in itertools.count() if source.size is None else range(source.size):
        one = source[index]
        if one is None:
            continue
        held[index] = one
        if (row := packer.add(index, one.length)) is not None:
            yield row
    while packer.open:
        yield packer.close()
