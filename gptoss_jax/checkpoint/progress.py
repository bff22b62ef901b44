"""Work done ahead in threads, in order, and the bar that counts its bytes."""

import collections
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

# What is in flight at once is a chunk a thread and one more: of this many bytes, or one expert if
# larger. With 32 MiB the allocator kept a gigabyte that was never used again.
CHUNK_BYTES = 8 << 20
WORKERS = max(2, min(8, os.cpu_count() or 2))
_GLANCE_SECONDS = 0.25

_T = TypeVar("_T")


def rows_within(limit: int, rows: int, nbytes: int) -> int:
    """How many of a tensor's rows take at most `limit` bytes; at least one."""
    return max(1, limit * rows // max(1, nbytes))


def chunks(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each chunk of `step` rows; the last may have fewer."""
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


@contextlib.contextmanager
def grows(directory: Path, shown: tqdm) -> Iterator[None]:
    """Counts onto the bar what a writer that tells of nothing adds to a directory."""
    ended = threading.Event()

    def advance(done: int) -> None:
        shown.update(max(0, min(done, shown.total) - shown.n))

    def watch() -> None:
        while not ended.wait(_GLANCE_SECONDS):
            advance(_bytes_in(directory))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    advance(shown.total)


def _bytes_in(directory: Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError):  # files are renamed meanwhile
        for file in directory.rglob("*"):
            total += file.stat().st_size
    return total
