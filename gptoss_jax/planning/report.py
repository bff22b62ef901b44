"""One slice's verdict, by the compiler or by arithmetic; and the table over common slices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from gptoss_jax import sharding
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import Config
from gptoss_jax.planning import arithmetic
from gptoss_jax.planning.arithmetic import Bytes
from gptoss_jax.planning.chips import COMMON, GIB, Slice, slice_of
from gptoss_jax.planning.program import Compiled, compile_decode
from gptoss_jax.topology import NoCompilerError, devices_of

# Where arithmetic leaves a slice this near to its capacity, only the compiler knows.
_CLOSE = 0.1
# Arithmetic's guess of temporaries and padding: what the compilers show for both published models.
_OVERHEAD = 0.03
_TEMPORARIES = GIB // 4


@dataclasses.dataclass(frozen=True)
class Report:
    """Whether a network fits a slice, per device.

    Attributes:
      slice: which.
      shape: of the mesh.
      counted: bytes by arithmetic.
      compiled: by the compiler; None where there is none, or none was asked for.
    """

    slice: Slice
    shape: dict[str, int]
    counted: Bytes
    compiled: Compiled | None

    @property
    def temporaries(self) -> int:
        """Bytes, padding of weights and cache included."""
        held = self.counted.weights + self.counted.kv_cache
        if self.compiled is None:
            return round(_OVERHEAD * held) + _TEMPORARIES
        return self.compiled.peak - held

    @property
    def peak(self) -> int:
        """Bytes of the fullest device."""
        return self.counted.weights + self.counted.kv_cache + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether the peak is within the capacity."""
        return self.peak <= self.slice.chip.capacity

    @property
    def is_close(self) -> bool:
        """Whether arithmetic alone cannot tell."""
        capacity = self.slice.chip.capacity
        return abs(self.peak - capacity) <= _CLOSE * capacity

    def tokens_per_second(self, batch: int) -> float:
        """The roofline bound of decode: every sequence's token once the least bytes are read."""
        return batch * self.slice.chip.bandwidth / self.counted.decode_minimum

    def as_dict(self, batch: int) -> dict[str, Any]:
        """The JSON object of `plan --json`."""
        compiled = self.compiled
        return {
            "fits": self.fits,
            "devices": self.slice.devices,
            "mesh": sharding.describe(self.shape),
            "bytes": {
                "capacity": int(self.slice.chip.capacity),
                "weights": self.counted.weights,
                "kv_cache": self.counted.kv_cache,
                "temporaries": self.temporaries,
                "peak": self.peak,
            },
            "decode_bytes": {"minimum": self.counted.decode_minimum},
            "collectives": _collectives(compiled),
            "bound_tokens_per_second": self.tokens_per_second(batch),
            "compiled_with": None if compiled is None else f"jax {jax.__version__}",
        }


def report(
    config: Config, name: str, shape: Mapping[str, int] | None, batch: int, context: int
) -> Report:
    """Compiles decode for a slice.

    Args:
      config: the network.
      name: of the slice.
      shape: of the mesh; None: the default.
      batch: sequences.
      context: positions of each.

    Raises:
      UserError: an unknown slice, or a mesh that does not divide.
    """
    counted = estimate(config, name, shape, batch, context)
    devices = devices_of(name)
    mesh = sharding.make_mesh(config, counted.shape, devices)
    return dataclasses.replace(counted, compiled=compile_decode(config, mesh, batch, context))


def estimate(
    config: Config, name: str, shape: Mapping[str, int] | None, batch: int, context: int
) -> Report:
    """As `report` by arithmetic alone."""
    where = slice_of(name)
    chosen = sharding.default_shape(config, where.devices) if shape is None else dict(shape)
    sharding.check(config, chosen, where.devices)
    if batch % chosen.get("data", 1):
        raise UserError(f"--batch {batch}: data={chosen['data']} of the mesh does not divide it")
    return Report(where, chosen, arithmetic.count(config, chosen, batch, context), None)


def table(config: Config, batch: int, context: int) -> list[Report]:
    """Common slices, the cheapest that fit first; compiled where arithmetic cannot tell."""
    rows = [estimate(config, name, None, batch, context) for name in COMMON]
    for i, row in enumerate(rows):
        if row.is_close:
            try:
                rows[i] = report(config, row.slice.name, None, batch, context)
            except NoCompilerError:  # no compiler for it here: arithmetic stands, marked as such
                continue
    return sorted(rows, key=lambda row: (not row.fits, row.slice.hourly))


def _collectives(compiled: Compiled | None) -> dict[str, Any] | None:
    if compiled is None or compiled.collectives is None:
        return None
    return {
        kind: {"count": number, "bytes": total}
        for kind, (number, total) in compiled.collectives.items()
    }
