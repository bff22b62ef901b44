"""The largest batch that fits, by asking a compiler as seldom as may be."""

import math
from collections.abc import Callable

Trial = tuple[int, float]  # a batch, and the bytes it takes


def largest(needed: Callable[[int], float], capacity: float, guess: int, step: int) -> int | None:
    """The largest multiple of `step` whose need is within the capacity; None if not even one is.

    Args:
      needed: (batch) -> bytes; rising, and near to a straight line.
      capacity: bytes.
      guess: where to begin.
      step: at least 1.
    """
    good: Trial | None = None
    bad: Trial | None = None
    trial = max(step, guess // step * step)
    while True:
        found = (trial, needed(trial))
        good, bad = (found, bad) if found[1] <= capacity else (good, found)
        least, most = good[0] if good else 0, bad[0] if bad else math.inf
        if most - least <= step:
            return least or None
        trial = _aim(good, bad, capacity) // step * step
        trial = int(min(max(trial, least + step), most - step))


def _aim(good: Trial | None, bad: Trial | None, capacity: float) -> int:
    """Where a straight line through both meets the capacity; without both, doubled or halved."""
    if bad is None or good is None:
        return 2 * good[0] if good else bad[0] // 2 if bad else 0
    rise = (bad[1] - good[1]) / (bad[0] - good[0])
    return math.floor(good[0] + (capacity - good[1]) / rise)
