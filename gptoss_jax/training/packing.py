"""Examples into rows of one length: segments that no target crosses, positions that restart."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gptoss_jax.training.examples import Unit

Array = Any  # NumPy's until it goes to the device


@dataclasses.dataclass
class OpenRow:
    """A row being filled: the stream numbers of its examples, and the places they take."""

    numbers: list[int]
    used: int


class Packer:
    """Best fit within a bounded number of open rows.

    An example goes to the fullest row with room for it. If there is none and all rows are open,
    the fullest is closed. The same examples in the same order always give the same rows.

    Attributes:
      open: the rows being filled; all the state there is.
    """

    def __init__(self, length: int, open_rows: int):
        self._length = length
        self._most = open_rows
        self.open: list[OpenRow] = []

    def add(self, number: int, length: int) -> list[int] | None:
        """Places an example of at most the row's length; returns the row this closes, if any."""
        fitting = [row for row in self.open if row.used + length <= self._length]
        if fitting:
            row = max(fitting, key=lambda row: row.used)
            row.numbers.append(number)
            row.used += length
            return None
        closed = self.close() if len(self.open) == self._most else None
        self.open.append(OpenRow([number], length))
        return closed

    def close(self) -> list[int]:
        """Takes the fullest row out."""
        row = max(self.open, key=lambda row: row.used)
        self.open.remove(row)
        return row.numbers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed rows [B, T], on the host or on the device.

    Attributes:
      tokens_BT: int32, the inputs.
      targets_BT: int32, the token after each input in its own conversation.
      weights_BT: float32, 1 where the target is learned.
      segments_BT: int32, 1, 2, … for the conversations of a row, 0 for padding.
      positions_BT: int32, from 0 in each segment.
      reference_BT: float32, of pairs whose `Example.reference` is known: it, at the first place of
        a segment, else 0. A pair's segments follow each other, and odd ones are the chosen.
    """

    tokens_BT: Array
    targets_BT: Array
    weights_BT: Array
    segments_BT: Array
    positions_BT: Array
    reference_BT: Array | None = None


def rows_of(examples: Sequence[Sequence[Unit]], length: int) -> Batch:
    """NumPy rows of B lists of examples that fit; an empty list is a row of padding."""
    shape = (len(examples), length)
    names = ("tokens_BT", "targets_BT", "segments_BT", "positions_BT")
    zeros = {name: np.zeros(shape, np.int32) for name in names}
    segments = [[one for unit in packed for one in unit.segments] for packed in examples]
    known = any(one.reference is not None for packed in segments for one in packed)
    reference_BT = np.zeros(shape, np.float32) if known else None
    rows = Batch(**zeros, weights_BT=np.zeros(shape, np.float32), reference_BT=reference_BT)
    for row, packed in enumerate(segments):
        start = 0
        for segment, one in enumerate(packed, 1):
            place = (row, slice(start, start + one.length))
            rows.tokens_BT[place] = one.ids_S[:-1]
            rows.targets_BT[place] = one.ids_S[1:]
            rows.weights_BT[place] = one.learn_S[1:]
            rows.segments_BT[place] = segment
            rows.positions_BT[place] = np.arange(one.length)
            if rows.reference_BT is not None:
                rows.reference_BT[row, start] = one.reference
            start += one.length
    return rows
