"""What an engine keeps on its devices, and how much of that fits beside the weights."""

import bisect
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptoss_jax.errors import UserError
from gptoss_jax.inference.programs import Programs
from gptoss_jax.model.cache import PAGE, pages_for

# Of a device's memory, for what programs hold beside weights and cache while they run.
FOR_PROGRAMS = 0.1
_MEMINFO = Path("/proc/meminfo")


@dataclasses.dataclass(frozen=True)
class Room:
    """What the device keeps of sequences; of each part of them, where they are split.

    Attributes:
      pages: of every full layer.
      rings: of every sliding layer.
      context: the longest sequence's tokens.
    """

    pages: int
    rings: int
    context: int


def rings_for(sequences: int, pages: int, *, reuse: bool = True) -> int:
    """How many rings of each sliding layer a part has.

    Args:
      sequences: that run at once, with a ring each.
      pages: of each full layer.
      reuse: whether rings of prompts are kept: one for each sequence's, and for each of the largest
        chunks before.
    """
    return sequences + (sequences + pages // 4 if reuse else 0)


def room_for(
    programs: Sequence[Programs],
    devices: Sequence[Any],
    *,
    sequences: int,
    context: int,
    pages: int | None,
    reuse: bool,
) -> Room:
    """Room for the sequences of one part.

    Args:
      programs: of the model, and of what has a cache of as many pages and rings beside it.
      devices: its own, of all processes.
      sequences: that run at once.
      context: the longest one's tokens.
      pages: of each full layer; None: enough for all sequences at their longest, or as many as fit
        in what every device has free, and then no sequence can be longer than all of them.
      reuse: as `rings_for` takes it.

    Raises:
      UserError: no page fits.
    """

    def nbytes(pages: int) -> int:
        rings, platform = rings_for(sequences, pages, reuse=reuse), devices[0].platform
        return sum(one.cache_bytes(pages, rings, platform) for one in programs)

    if pages is None:
        pages = _fitting(devices, sequences * pages_for(context), nbytes)
        if not pages:
            raise UserError(
                f"{devices[0].device_kind}: not even {nbytes(1) / 2**20:,.0f} MiB of cache fit "
                "beside the weights; use more devices or fewer sequences at once"
            )
        context = min(context, pages * PAGE)
    return Room(pages, rings_for(sequences, pages, reuse=reuse), context)


def _fitting(devices: Sequence[Any], most: int, nbytes: Callable[[int], int]) -> int:
    """The most pages, up to `most`, whose cache every device has free."""
    own = [device for device in devices if device.process_index == jax.process_index()]
    free = min(_free(device, len(own)) for device in own)
    pages = bisect.bisect_right(range(1, most + 1), free, key=nbytes)
    if jax.process_count() > 1:
        pages = int(multihost_utils.process_allgather(np.int32(pages)).min())
    return pages


def _free(device: Any, sharing: int) -> int:
    """Bytes that the cache may take; where the device is the host, its share of those."""
    stats = device.memory_stats()
    if stats is None:
        return int(_host_bytes() * (1 - FOR_PROGRAMS)) // sharing
    return int(stats["bytes_limit"] * (1 - FOR_PROGRAMS)) - stats["bytes_in_use"]


def _host_bytes() -> int:
    """What the host could give to this process; where it does not tell, all that it has."""
    told = _number(_MEMINFO, r"MemAvailable: *(\d+) kB")
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if told is None else told * 1024
    return min([free, *_of_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _of_groups(own: Path, mounted: Path) -> Iterator[int]:
    """What a container's limit, and those around it, leave: of control groups, version 2."""
    told = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE) if own.exists() else None
    group = mounted / (told[1] if told else "")
    for folder in (group, *group.parents):
        most = _number(folder / "memory.max", r"^(\d+)$")
        used = _number(folder / "memory.current", r"^(\d+)$")
        if most is not None and used is not None:
            # Of files, and given up for whoever needs it.
            cached = _number(folder / "memory.stat", r"^inactive_file (\d+)$") or 0
            yield max(0, most - used + cached)
        if folder == mounted:
            return


def _number(file: Path, pattern: str) -> int | None:
    """The number that a line of a file tells, None where there is none."""
    try:
        told = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(told[1]) if told else None
