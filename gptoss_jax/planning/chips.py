"""Accelerators one can rent: capacity, bandwidth, arithmetic, and the slices they come in."""

import dataclasses
import math
import re

from gptoss_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX sees it; a chip may be several.

    Attributes:
      capacity: usable bytes. Of v5e and v6e what their compiler refuses to exceed, of the others
        the vendor's figure; of a GPU the part that the verbs let JAX reserve.
      bandwidth: of its memory, bytes/s.
      flops: bfloat16, per second.
      devices: per chip.
      platform: "tpu" or "cuda".
      host: the most chips of one host.
      hourly: US dollars a chip and hour, on-demand list prices of 2025; only to order a table.
      links: what a chip can send to its neighbours, bytes/s, all its ports together: half of the
        vendor's bidirectional figure. Only of what `benchmarks.scaling` asks for.
    """

    capacity: float
    bandwidth: float
    flops: float
    devices: int
    platform: str
    host: int
    hourly: float
    links: float | None = None


_GPU_SHARE = 0.95  # see `cli.run`
CHIPS = {
    "v5e": Chip(15.75 * GIB, 819e9, 197e12, 1, "tpu", 8, 1.2, 200e9),
    "v6e": Chip(31.24 * GIB, 1640e9, 918e12, 1, "tpu", 8, 2.7, 400e9),
    "v5p": Chip(95.0 * GIB, 2765e9, 459e12, 1, "tpu", 4, 4.2),
    "tpu7x": Chip(94.75 * GIB, 3690e9, 1153e12, 2, "tpu", 4, 12.0),
    "h100": Chip(_GPU_SHARE * 84_942_979_072, 3352e9, 989e12, 1, "cuda", 8, 3.9),
    "h200": Chip(_GPU_SHARE * 151_397_597_184, 4800e9, 989e12, 1, "cuda", 8, 5.0),
    "a100-80": Chip(_GPU_SHARE * 85_100_068_864, 2039e9, 312e12, 1, "cuda", 8, 2.5),
}
_MOST_CHIPS = 9_216  # of a pod of tpu7x, the largest there is
_SIZE = re.compile(r"[1-9][0-9]{0,5}")
# Slices a table goes through.
COMMON = (
    *("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v6e:1x1", "v6e:2x2", "v6e:2x4", "v5p:1x1x1"),
    *("v5p:2x2x1", "tpu7x:1x1x1", "tpu7x:2x2x1", "a100-80:1", "a100-80:2", "h100:1", "h100:2"),
    *("h100:8", "h200:1"),
)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are rented together.

    Attributes:
      name: as the compilers take it, "v5e:2x4".
      chip: its kind.
      chips: how many.
    """

    name: str
    chip: Chip
    chips: int

    @property
    def devices(self) -> int:
        """As JAX counts them."""
        return self.chips * self.chip.devices

    @property
    def is_one_host(self) -> bool:
        """Whether one process has all of its devices."""
        return self.chips <= self.chip.host

    @property
    def hourly(self) -> float:
        """US dollars an hour."""
        return self.chips * self.chip.hourly


def slice_of(name: str) -> Slice:
    """The slice a topology's name means.

    Raises:
      UserError: the kind is unknown, or what follows it is no number of chips there can be.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"topology {name!r}: unknown chip {kind!r}; known: {', '.join(CHIPS)}")
    sizes = shape.split("x")
    on_gpu = CHIPS[kind].platform == "cuda"
    if not all(map(_SIZE.fullmatch, sizes)) or (on_gpu and len(sizes) > 1):
        raise UserError(
            f"topology {name!r}: give the chips too, as {kind}:{'8' if on_gpu else '2x4'}"
        )
    chips = math.prod(map(int, sizes))
    if chips > _MOST_CHIPS:
        raise UserError(f"topology {name!r}: at most {_MOST_CHIPS:,} chips")
    return Slice(name, CHIPS[kind], chips)
