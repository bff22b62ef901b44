"""The largest batch that fits, by asking a compiler as seldom as may be."""

import math
from collections.abc import Callable

Trial = tuple[int, float]  # a batch, and the bytes it takes


def largest(
    needed: Callable[[int], float], capacity: float, most: int, rise: float, step: int
) -> int | None:
    """The largest multiple of `step` whose need is within the capacity; None if not even one is.

    Args:
      needed: (batch) -> bytes; rising, and near to a straight line.
      capacity: bytes.
      most: a multiple of `step`, where the search begins; nothing beyond it is asked about.
      rise: bytes that a sequence adds, about.
      step: at least 1.
    """
    good: Trial = (0, 0.0)
    bad: Trial = (most + step, math.inf)
    trial = most
    while True:
        found = (trial, needed(trial))
        good, bad = (found, bad) if found[1] <= capacity else (good, found)
        if bad[0] - good[0] <= step:
            return good[0] or None
        trial = _aim(good, bad, capacity, rise) // step * step
        trial = max(good[0] + step, min(trial, bad[0] - step))


def _aim(good: Trial, bad: Trial, capacity: float, rise: float) -> int:
    """Where the straight line through both meets the capacity; with none good, of that rise."""
    if good[0]:
        rise = (bad[1] - good[1]) / (bad[0] - good[0])
    return bad[0] - math.ceil((bad[1] - capacity) / rise)
