"""Weak scaling on paper: what limits decode as chips and, with them, sequences are added.

Three times of one step, from the compiled programs: dots at the chip's bfloat16 rate, bytes at its
memory's rate, and what each chip must send at the rate of its links. Each is a bound, none a
measurement; the time a small message takes to arrive is not in them.
"""

import dataclasses
import math
from collections.abc import Iterator

from gptoss_jax import sharding
from gptoss_jax.model.config import Config
from gptoss_jax.planning.arithmetic import count
from gptoss_jax.planning.cache import cached
from gptoss_jax.planning.chips import slice_of
from gptoss_jax.planning.program import Compiled, compile_decode
from gptoss_jax.topology import devices_of

# Chips, and the slice that has them.
SLICES = {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
# Layers of one kind cost the same, so that two depths tell of all others.
_DEPTHS = (2, 4)


@dataclasses.dataclass(frozen=True)
class Point:
    """One step of decode over so many chips, seconds a step.

    Attributes:
      chips: how many.
      mesh: their shape.
      batch: sequences a chip.
      fits: weights and cache, by arithmetic.
      compute: of the dots.
      memory: of the bytes moved to and from HBM.
      links: of the bytes sent to other chips.
    """

    chips: int
    mesh: str
    batch: int
    fits: bool
    compute: float
    memory: float
    links: float

    @property
    def limit(self) -> str:
        """The largest of the three."""
        times = {"compute": self.compute, "HBM": self.memory, "ICI": self.links}
        return max(times, key=lambda name: times[name])

    @property
    def tokens_per_second(self) -> float:
        """A chip, if the three overlapped wholly."""
        return self.batch / max(self.compute, self.memory, self.links)


def shapes(config: Config, chips: int) -> Iterator[dict[str, int]]:
    """The experts over eight chips and copies of those, and the experts over as many as can be."""
    wide = sharding.default_shape(config, chips)
    apart = chips // math.prod(wide.values())
    wide = {"data": apart, **wide} if apart > 1 else wide
    copies = {"data": chips // 8, "expert": 8}
    yield copies
    if sharding.describe(wide) != sharding.describe(copies):
        yield wide


def measure(
    config: Config, kind: str, chips: int, shape: dict[str, int], batch: int, context: int
) -> Point:
    """The point of a mesh of `shapes`.

    Args:
      config: the network.
      kind: of the chips.
      chips: how many.
      shape: of the mesh.
      batch: sequences a chip.
      context: positions of each.

    Raises:
      RefusedError: there is no program for it.
    """
    name = f"{kind}:{SLICES[chips]}"
    chip = slice_of(name).chip
    few, more = (
        _compiled(_shallow(config, layers), name, shape, batch * chips, context)
        for layers in _DEPTHS
    )

    def whole(of: str) -> float:
        low, high = (getattr(one, of) for one in (few, more))
        layers = (config.num_layers - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
        return low + layers * (high - low)

    held = count(config, shape, batch * chips, context)
    assert chip.links is not None
    return Point(
        chips=chips,
        mesh=sharding.describe(shape),
        batch=batch,
        fits=held.weights + held.kv_cache < chip.capacity,
        compute=whole("decode_flops") / chip.flops,
        memory=whole("decode_bytes") / chip.bandwidth,
        links=whole("sent_bytes") / chip.links,
    )


def _shallow(config: Config, layers: int) -> Config:
    types = config.layer_types[:layers]
    return dataclasses.replace(config, num_layers=layers, layer_types=types)


def _compiled(
    config: Config, name: str, shape: dict[str, int], batch: int, context: int
) -> Compiled:
    question = {"task": "decode", "sizes": dataclasses.asdict(config), "batch": batch}
    question |= {"context": context, "slice": name, "mesh": shape}

    def ask() -> dict:
        mesh = sharding.make_mesh(config, shape, devices_of(name))
        return dataclasses.asdict(compile_decode(config, mesh, batch, context))

    return Compiled(**cached(question, ask))


_COLUMNS = (
    *("chips", "mesh", "sequences a chip", "compute ms", "HBM ms", "ICI ms"),
    *("limit", "tokens/s a chip"),
)
HEAD = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


def refused(chips: int, shape: dict[str, int], batch: int) -> str:
    """The row of a mesh that the compiler refuses."""
    said = (str(chips), sharding.describe(shape), str(batch), *"–––", "the compiler refuses", "–")
    return f"| {' | '.join(said)} |"


def row(point: Point) -> str:
    """A point in a table of Markdown, below `HEAD`."""
    times = (point.compute, point.memory, point.links)
    milliseconds = (f"{1e3 * seconds:.2f}" for seconds in times)
    bound = f"{point.tokens_per_second:.0f}" if point.fits else "does not fit"
    cells = (str(point.chips), point.mesh, str(point.batch), *milliseconds, point.limit, bound)
    return f"| {' | '.join(cells)} |"
