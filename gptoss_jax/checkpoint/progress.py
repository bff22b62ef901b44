"""Work done ahead in threads, in order, and the bar that counts its bytes."""

import collections
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

# What is in flight at once is one chunk a thread: of this many bytes, or one expert if larger.
CHUNK_BYTES = 32 << 20
WORKERS = max(2, min(8, os.cpu_count() or 2))

_T = TypeVar("_T")


def rows_per_chunk(rows: int, nbytes: int) -> int:
    """How many leading rows of a tensor make a chunk."""
    return max(1, CHUNK_BYTES * rows // max(1, nbytes))


def chunks(rows: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each chunk of a tensor."""
    step = rows_per_chunk(rows, nbytes)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def in_order(jobs: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """The results of jobs, in order, run in threads a few ahead of the reader."""
    with ThreadPoolExecutor(WORKERS) as pool:
        running: collections.deque[Future[_T]] = collections.deque()
        try:
            for job in jobs:
                running.append(pool.submit(job))
                if len(running) > WORKERS:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def bar(total: int, verb: str, *, shown: bool) -> tqdm:
    """A progress bar in bytes on stderr; silent unless `shown` and stderr is a terminal."""
    return tqdm(
        total=total,
        desc=verb,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=not (shown and sys.stderr.isatty()),
    )
