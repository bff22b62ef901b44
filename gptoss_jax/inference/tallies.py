"""What rows' tallies hold: a number for each sequence and id.

They stay on the device while a sequence is decoded, which counts there; the host sends a sequence's
own when it joins the rows, and nothing between.
"""

from collections.abc import Sequence as Rows
from typing import Any

import numpy as np

from gptoss_jax.inference.penalties import Additions, Tally
from gptoss_jax.inference.programs import Programs
from gptoss_jax.inference.requests import Sequence

_FEWEST = 64


class Tallies:
    """The tally of each call's rows; that of decode stays on the device from call to call."""

    def __init__(self, programs: Programs):
        """Nobody has asked for anything."""
        self._programs = programs
        self._kept: Tally | None = None
        self._row_of: dict[Sequence, int] = {}
        self._asking: set[int] = set()  # rows of what is kept that hold more than zeros
        self._size = 0  # rows a part, of what is kept

    def of_prefill(self, rows: Rows[Sequence | None], added: Rows[int]) -> Tally:
        """For rows of which those get a token whose last ones are added."""
        for sequence in rows:
            self._row_of.pop(sequence, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if not _anyone(rows):
            return Tally.none(len(rows))
        ending = [
            s is not None and s.computed + count == len(s.tokens)
            for s, count in zip(rows, added, strict=True)
        ]
        begin = [s if last else None for s, last in zip(rows, ending, strict=True)]
        return self._renewed(None, [-1] * len(rows), begin)

    def of_decode(self, rows: Rows[Sequence | None]) -> Tally:
        """For rows of which those that were in the last call have been counted there."""
        if not _anyone(rows):
            self._kept, self._row_of = None, {}
            return Tally.none(len(rows))
        size = len(rows) // self._programs.parts
        before = [self._row_of.get(s, -1) if s and s.request.adjusts else -1 for s in rows]
        # Also nobody has left: the next in that row would have its biases.
        stays = {row for row, old in enumerate(before) if old == row} == self._asking
        new = any(_asks(s) and old < 0 for s, old in zip(rows, before, strict=True))
        if self._kept is not None and self._size == size and stays and not new:
            return self._kept
        begin = [s if old < 0 else None for s, old in zip(rows, before, strict=True)]
        own = [old % self._size if old >= 0 else -1 for old in before]
        return self._renewed(self._kept, own, begin)

    def keep(self, tally: Tally, rows: Rows[Sequence | None]) -> None:
        """Takes what a decode call has counted."""
        if tally.seen_BV.shape[1]:
            self._kept, self._size = tally, len(rows) // self._programs.parts
            self._row_of = {s: row for row, s in enumerate(rows) if s is not None}
            self._asking = {row for row, s in enumerate(rows) if _asks(s)}

    def _renewed(self, old: Tally | None, from_: Rows[int], begin: Rows[Sequence | None]) -> Tally:
        programs, size = self._programs, len(begin) // self._programs.parts
        host = (np.asarray(from_, np.int32), _additions(begin, size))
        return programs.renewed_tally(old, *programs.placed(host, programs.batch))


def _asks(sequence: Sequence | None) -> bool:
    return sequence is not None and sequence.request.adjusts


def _anyone(rows: Rows[Sequence | None]) -> bool:
    return any(_asks(sequence) for sequence in rows)


def _additions(begin: Rows[Sequence | None], size: int) -> Additions:
    """NumPy arrays [parts * M] of sequences that begin, `size` rows a part."""
    of_row = [_of(s) if _asks(s) else np.zeros((3, 0)) for s in begin]  # pyright: ignore[reportArgumentType]
    parts = [of_row[first : first + size] for first in range(0, len(of_row), size)]
    most = max(sum(x.shape[1] for x in part) for part in parts)
    width = _FEWEST
    while width < most:
        width *= 4  # few sizes, so that few are compiled
    out = np.zeros((4, len(parts), width))
    for index, part in enumerate(parts):
        rows = np.repeat(np.arange(size), [x.shape[1] for x in part])
        out[0, index, : len(rows)] = rows
        out[1:, index, : len(rows)] = np.concatenate(part, axis=1)
    row_M, id_M, seen_M, bias_M = out.reshape(4, -1)
    integers: Any = [x.astype(np.int32) for x in (row_M, id_M, seen_M)]
    return Additions(*integers, bias_M.astype(np.float32))  # pyright: ignore


def _of(sequence: Sequence) -> np.ndarray:
    """float64 [3, M]: ids, what they add to `seen_BV`, and to `bias_BV`."""
    prompt = np.unique(np.asarray(sequence.request.prompt))
    generated, times = np.unique(np.asarray(sequence.generated, int), return_counts=True)
    biases = sequence.request.logit_bias
    ids = np.concatenate([prompt, generated, np.asarray(list(biases), int)])
    out = np.zeros((3, len(ids)))
    out[0] = ids
    out[1, : len(prompt)] = 1
    out[1, len(prompt) : len(prompt) + len(generated)] = 2 * times
    out[2, len(prompt) + len(generated) :] = list(biases.values())
    return out
