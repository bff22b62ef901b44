"""Guesses of what a sequence says next: what a smaller model would say."""

import time
import weakref
from collections.abc import Sequence as Rows

from gptoss_jax.inference.requests import Sequence
from gptoss_jax.inference.runner import Runner
from gptoss_jax.inference.scheduler import VERIFIED, WIDTHS


class Drafter:
    """A smaller model beside a larger one, whose pages and rings have the same numbers.

    It computes a sequence's prompt when it first guesses, a chunk a call, and later what came
    since. Its random numbers are the larger model's, so that it also guesses what is sampled.

    Attributes:
      seconds: that guessing took the last time, without the chunks of prompts.
    """

    def __init__(self, runner: Runner, context: int):
        """Nothing is computed.

        Args:
          runner: of the smaller model.
          context: the longest sequence it can follow.
        """
        self.seconds = 0.0
        self._runner = runner
        self._context = context
        # How many tokens are in its cache, and since which of its beginnings a sequence has that.
        self._known: weakref.WeakKeyDictionary[Sequence, tuple[int, int]]
        self._known = weakref.WeakKeyDictionary()

    def guess(self, rows: Rows[Sequence | None]) -> list[Rows[int]]:
        """Up to VERIFIED - 1 tokens for each row; none while its prompt is not computed."""
        began = time.perf_counter()
        lacking = [self._lacking(s) for s in rows]
        if not any(lacking):
            return [() for _ in rows]
        width = _width(max(lacking), len(rows))
        added = [min(n, width) for n in lacking]
        starts = [self._start(s) if s else 0 for s in rows]
        made = self._runner.draft(rows, starts, added, width)().token_BS.tolist()
        for sequence, start, count in zip(rows, starts, added, strict=True):
            if sequence is not None and count:
                self._known[sequence] = (sequence.begun, start + count)
        if width == VERIFIED:
            self.seconds = time.perf_counter() - began
        is_through = [0 < n <= width for n in lacking]
        return [row if through else () for row, through in zip(made, is_through, strict=True)]

    def _start(self, sequence: Sequence) -> int:
        begun, count = self._known.get(sequence, (sequence.begun, 0))
        return count if begun == sequence.begun else 0

    def _lacking(self, sequence: Sequence | None) -> int:
        if sequence is None or len(sequence.tokens) + VERIFIED > self._context:
            return 0
        return len(sequence.tokens) - self._start(sequence)


def _width(tokens: int, rows: int) -> int:
    """Tokens a row of the next call: as few as do, and as a prefill call has in all."""
    widths = (VERIFIED, *WIDTHS)
    most = max(VERIFIED, WIDTHS[-1] // rows)
    return max(w for w in widths if w == VERIFIED or (w <= most and _before(w) < tokens))


def _before(width: int) -> int:
    """The next smaller width."""
    return max(w for w in (0, VERIFIED, *WIDTHS) if w < width)
