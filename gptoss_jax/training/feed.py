"""Batches of rows, in a shuffled order that a small state resumes to the exact example."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gptoss_jax.errors import UserError
from gptoss_jax.training.examples import Unit
from gptoss_jax.training.packing import Batch, OpenRow, Packer, rows_of
from gptoss_jax.training.sources import Source

_GIVE_UP = 1_000


class Feed:
    """An endless stream of batches.

    The examples of all processes together are numbered 0, 1, … without end; number n of a source
    of `size` is the example at place n % size of epoch n // size, each epoch in a seeded order of
    its own. A source without end is taken as it comes. Process p has the numbers p, p + processes,
    and so on.

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
        process: int = 0,
        processes: int = 1,
    ):
        """A feed at its beginning.

        Args:
          source: at least one example.
          rows: B, of this process.
          length: T.
          open_rows: how many rows are being filled at once.
          seed: of the order.
          process: this process's number.
          processes: how many there are.
        """
        self.source = source
        self._rows = rows
        self._length = length
        self._seed = seed
        self._process = process
        self._processes = processes
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
            "processes": self._processes,
            "next": self._next,
            "open": [list(row.numbers) for row in self._packer.open],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch that `state` was taken behind.

        Raises:
          UserError: the data or the number of processes is another than then.
        """
        if state["fingerprint"] != self.source.fingerprint:
            was, now = state["fingerprint"], self.source.fingerprint
            raise UserError(f"the data has changed since the checkpoint: {was}, now {now}")
        if state["processes"] != self._processes:
            was, now = state["processes"], self._processes
            raise UserError(
                f"the checkpoint's batches were fed in {was} parts, this run's would be in {now}: "
                "give a --mesh and processes that feed as many"
            )
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
            number = self._next * self._processes + self._process
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
