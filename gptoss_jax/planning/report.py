"""One slice's verdict, by the compiler or by arithmetic; and the table over common slices."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from gptoss_jax import sharding, versions
from gptoss_jax.errors import UserError
from gptoss_jax.planning import search
from gptoss_jax.planning.arithmetic import Bytes
from gptoss_jax.planning.cache import cached
from gptoss_jax.planning.chips import COMMON, Slice, slice_of
from gptoss_jax.planning.jobs import MOST_SEQUENCES, Generate, Job
from gptoss_jax.planning.program import Compiled
from gptoss_jax.topology import NoCompilerError, devices_of

# Where arithmetic leaves a slice this near to its capacity, only the compiler knows.
_CLOSE = 0.1


@dataclasses.dataclass(frozen=True)
class Report:
    """Whether a network fits a slice, per device.

    Attributes:
      job: what it is to do.
      slice: which.
      shape: of the mesh.
      counted: bytes by arithmetic.
      compiled: by the compiler; None where there is none, or none was asked for.
      refused: why the compiler would not have the program, empty where it did.
    """

    job: Job
    slice: Slice
    shape: dict[str, int]
    counted: Bytes
    compiled: Compiled | None
    refused: str = ""

    @property
    def temporaries(self) -> int:
        """Bytes, padding of weights and cache included."""
        if self.compiled is None:
            return round(self.job.temporaries(self.shape, self.counted))
        return self.compiled.peak - self.counted.held

    @property
    def peak(self) -> int:
        """Bytes of the fullest device."""
        return self.counted.held + self.temporaries

    @property
    def needed(self) -> float:
        """Bytes that a device must have."""
        return self.job.needed(self.peak, self.counted.held)

    @property
    def fits(self) -> bool:
        """Whether what is needed is there, and the compiler has the program."""
        return not self.refused and self.needed <= self.slice.chip.capacity

    @property
    def is_close(self) -> bool:
        """Whether arithmetic alone cannot tell."""
        capacity = self.slice.chip.capacity
        return abs(self.needed - capacity) <= _CLOSE * capacity

    @property
    def tokens_per_second(self) -> float:
        """The roofline bound of the job, no measurement."""
        return self.job.bound(self.shape, self.slice, self.counted)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `plan --json`.

        Under "bytes" the capacity is compared with "needed": the peak, or, of generation, what an
        engine asks for that leaves a tenth for programs, if that is more.
        """
        compiled = self.compiled
        batch, trained = {}, {}
        if isinstance(self.job, Generate):
            batch = {"batch": self.job.batch}
        else:
            trained = {"adapters": self.counted.adapters, "optimizer": self.counted.optimizer}
        return batch | {
            "fits": self.fits,
            "devices": math.prod(self.shape.values()),
            "mesh": sharding.describe(self.shape),
            "bytes": {
                "capacity": int(self.slice.chip.capacity),
                "weights": self.counted.weights,
                "kv_cache": self.counted.kv_cache,
                **trained,
                "temporaries": self.temporaries,
                "peak": self.peak,
                "needed": math.ceil(self.needed),
            },
            "decode_bytes": {
                "minimum": self.counted.decode_minimum,
                "compiled": None if compiled is None else compiled.decode_bytes,
            },
            "collectives": _collectives(compiled),
            "bound_tokens_per_second": self.tokens_per_second,
            "compiled_with": None if compiled is None else _compiled_with(self.slice),
        }


def report(job: Job, name: str, shape: Mapping[str, int] | None) -> Report:
    """Compiles a job for a slice, or finds what was compiled before.

    Args:
      job: what to do.
      name: of the slice.
      shape: of the mesh; None: the job's default.

    Raises:
      NoCompilerError: none is installed that knows the slice.
      UserError: an unknown slice, or a mesh that does not divide.
    """
    counted = estimate(job, name, shape)

    def ask() -> dict[str, Any]:
        mesh = sharding.make_mesh(job.sizes, counted.shape, devices_of(name))
        return dataclasses.asdict(job.compiled(mesh))

    found = cached(job.question() | {"slice": name, "mesh": counted.shape}, ask)
    return dataclasses.replace(counted, compiled=Compiled(**found))


def estimate(job: Job, name: str, shape: Mapping[str, int] | None) -> Report:
    """As `report` by arithmetic alone."""
    where = slice_of(name)
    chosen = job.default_shape(where) if shape is None else dict(shape)
    job.check(chosen, where.devices)
    return Report(job, where, chosen, job.count(chosen), None)


def table(job: Job, note: Callable[[str], None]) -> list[Report]:
    """Common slices, the cheapest that fit first; compiled where arithmetic cannot tell.

    Args:
      job: what to do.
      note: told, once each, why arithmetic stands where a compiler was wanted.
    """
    without: dict[str, None] = {}
    rows = [estimate(job, name, None) for name in COMMON]
    for i, row in enumerate(rows):
        if row.is_close:
            try:
                rows[i] = report(job, row.slice.name, None)
            except NoCompilerError as error:
                without[str(error)] = None
            except UserError as error:
                rows[i] = dataclasses.replace(row, refused=str(error))
    for reason in without:
        note(reason)
    return sorted(rows, key=lambda row: (not row.fits, row.slice.hourly))


def largest_batch(
    job: Generate, name: str, shape: Mapping[str, int] | None, by: Callable[..., Report] = report
) -> Report:
    """The report of the largest batch that fits; where not even the least does, of that.

    No compiler is asked about a batch whose weights and cache alone are too much.

    Args:
      job: its batch is of no account.
      name: of the slice.
      shape: of the mesh; None: the default.
      by: `report` or `estimate`.
    """
    where = slice_of(name)
    chosen = job.default_shape(where) if shape is None else dict(shape)
    step, capacity = chosen.get("data", 1), where.chip.capacity

    @functools.cache
    def of(batch: int) -> Report:
        return by(_with(job, batch), name, chosen)

    def held(batch: int) -> int:
        return _with(job, batch).held(chosen)

    choices = range(step, MOST_SEQUENCES + 1, step)
    fitting = bisect.bisect_right(choices, capacity, key=lambda n: job.needed(0, held(n)))
    if not fitting:
        return estimate(_with(job, step), name, chosen)
    most = choices[fitting - 1]
    rise = (held(most + step) - held(step)) / most
    found = search.largest(lambda batch: of(batch).needed, capacity, most, rise, step)
    return of(found or step)


def _with(job: Generate, batch: int) -> Generate:
    return dataclasses.replace(job, batch=batch)


def _compiled_with(where: Slice) -> str:
    found = versions.compilers()
    compilers = (
        ("libtpu",) if where.chip.platform == "tpu" else ("jax-cuda12-plugin", "jax-cuda13-plugin")
    )
    names = [f"{name} {found[name]}" for name in ("jax", "jaxlib", *compilers) if name in found]
    return ", ".join(names)


def _collectives(compiled: Compiled | None) -> dict[str, Any] | None:
    if compiled is None or compiled.collectives is None:
        return None
    return {
        kind: {"count": number, "bytes": total}
        for kind, (number, total) in compiled.collectives.items()
    }
