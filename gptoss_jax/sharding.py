"""The mesh, and how every parameter lies on it; nothing else in the package spells a mesh axis.

The model runs inside one `jax.shard_map` over all axes: its code sees a device's own heads, experts
and rows of the vocabulary, and names here what is to be summed or gathered. Outside of a shard_map
the same code is the single-device model, and every function here leaves its argument alone.

    data      the batch; parameters are replicated over it
    fsdp      in training, the batch too, the experts, and every other weight: a layer gathers its
              own as it begins
    context   the tokens of a long prompt, in prefill
    expert    the experts; with `tensor` also attention heads and the vocabulary
    tensor    as `expert`, and the experts too where their number divides
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr, tree_map_with_path

from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.model.config import Config

AXES = ("data", "fsdp", "context", "expert", "tensor")
Axes = tuple[str, ...]
# What heads and vocabulary may be split over, and experts, the best first.
_MODEL_AXES: tuple[Axes, ...] = (("expert", "tensor"), ("expert",), ("tensor",), ())
_EXPERT_AXES = (("fsdp", "expert", "tensor"), ("fsdp", "expert"), ("fsdp", "tensor"), ("fsdp",), ())

# The dimensions of each parameter that are split, by the fields of `Split`.
_PARAMETERS: dict[str, tuple[str | None, ...]] = {
    "embedding_VD": ("vocab", "fsdp"),
    "unembedding_VD": ("vocab", "fsdp"),
    "w_q_AD": ("heads", "fsdp"),
    "b_q_A": ("heads",),
    "w_k_CD": ("kv_heads", "fsdp"),
    "b_k_C": ("kv_heads",),
    "w_v_CD": ("kv_heads", "fsdp"),
    "b_v_C": ("kv_heads",),
    "w_o_DA": ("fsdp", "heads"),
    "b_o_D": (),
    "sinks_N": ("heads",),
    "w_router_ED": (None, "fsdp"),
    "b_router_E": (),
    # Packed blocks [E, K/2, N] have the experts first, as scales [E K/32, N] and factors do.
    "w_gate_up_EDF": ("experts",),
    "b_gate_up_EF": ("experts",),
    "w_down_EFD": ("experts",),
    "b_down_ED": ("experts",),
    "scale_D": (),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Which mesh axes each dimension is split over, the major first; (): replicated.

    Attributes:
      batch: sequences.
      fsdp: the dense weights' axes that nothing else splits.
      sequence: the tokens of a prefill chunk.
      heads: query heads, and with them the sinks.
      kv_heads: key and value heads; (), though `heads` is not, where devices outnumber them: each
        then computes the one its query heads need.
      vocab: rows of the embedding and the unembedding.
      experts: whole experts; axes that split the batch too come first.
    """

    batch: Axes = ()
    fsdp: Axes = ()
    sequence: Axes = ()
    heads: Axes = ()
    kv_heads: Axes = ()
    vocab: Axes = ()
    experts: Axes = ()


def split_of(config: Config, shape: Mapping[str, int]) -> Split:
    """How a network is split over a mesh of these axis sizes."""

    def ways(axes: Axes) -> int:
        return math.prod(shape.get(axis, 1) for axis in axes)

    def first(fits: Callable[[int], bool], choices: Sequence[Axes] = _MODEL_AXES) -> Axes:
        return tuple(a for a in next(a for a in choices if fits(ways(a))) if ways((a,)) > 1)

    def heads_fit(n: int) -> bool:
        shared = config.num_kv_heads % n == 0 or n % config.num_kv_heads == 0
        return config.num_heads % n == 0 and shared

    heads = first(heads_fit)
    experts = first(lambda n: config.num_experts % n == 0, _EXPERT_AXES)
    fsdp = ("fsdp",) if ways(("fsdp",)) > 1 else ()
    return Split(
        batch=tuple(axis for axis in ("data", "fsdp") if ways((axis,)) > 1),
        fsdp=fsdp,
        sequence=("context",) if ways(("context",)) > 1 else (),
        heads=heads,
        kv_heads=heads if config.num_kv_heads % ways(heads) == 0 else (),
        vocab=first(lambda n: config.vocab_size % n == 0),
        experts=experts,
    )


def current(config: Config) -> Split:
    """The split inside the shard_map that is being traced; outside of one, nothing is split."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = {axis: mesh.shape[axis] for axis in mesh.manual_axes}
    return split_of(config, manual)


def total(x: jax.Array, axes: Axes) -> jax.Array:
    """The sum over the devices of these axes."""
    return jax.lax.psum(x, axes) if axes else x


def gathered(x: jax.Array, axes: Axes, axis: int) -> jax.Array:
    """The devices' parts, joined along an axis."""
    return jax.lax.all_gather(x, axes, axis=axis % x.ndim, tiled=True) if axes else x


def scattered(x: jax.Array, axes: Axes, axis: int) -> jax.Array:
    """This device's part, along an axis, of the sum over the devices."""
    return jax.lax.psum_scatter(x, axes, scatter_dimension=axis, tiled=True) if axes else x


def exchanged(x: jax.Array, into: jax.Array, sizes: Sequence[jax.Array], axes: Axes) -> jax.Array:
    """`into` with the slices of x that all devices sent here; for `sizes` see `ragged_all_to_all`.

    Args:
      x: [P, D], a slice for each device.
      into: [C, D].
      sizes: int32 arrays, one element a device: where its slice begins, its length, where it is to
        begin there, the length of what comes from there.
      axes: of the mesh.
    """
    return jax.lax.ragged_all_to_all(x, into, *sizes, axis_name=axes)


def place(axes: Axes) -> jax.Array | int:
    """Which of the parts is this device's, from 0."""
    return jax.lax.axis_index(axes) if axes else 0


def parts(axes: Axes) -> int:
    """How many parts there are."""
    return jax.lax.axis_size(axes) if axes else 1


def from_left(x: jax.Array, axes: Axes) -> jax.Array:
    """The left neighbour's x; the first device gets the last one's."""
    count = parts(axes)
    return jax.lax.ppermute(x, axes, [(i, (i + 1) % count) for i in range(count)])


def whole(module: Any, config: Config) -> Any:
    """A module with its weights gathered over `fsdp`; backwards their gradients are scattered."""
    split = current(config)
    if not split.fsdp:
        return module

    def gather(path, x):
        dims = _dims(keystr(path, simple=True, separator="."))
        for axis, dim in enumerate(dims):
            if dim == "fsdp":
                x = gathered(x, split.fsdp, axis)
        return x

    return tree_map_with_path(gather, module)


# --- The mesh ------------------------------------------------------------------------------------


_SIZE = re.compile(r"[1-9][0-9]{0,5}")


def parse(text: str) -> dict[str, int]:
    """`expert=4,tensor=2` as axis sizes.

    Raises:
      UsageError: not of that form, or no axis of ours.
    """
    shape: dict[str, int] = {}
    for item in text.split(","):
        name, _, size = item.partition("=")
        if name not in AXES or name in shape or not _SIZE.fullmatch(size):
            known = ", ".join(AXES)
            raise UsageError(
                f"--mesh {text}: {item!r} is no axis=size; axes are {known}, each at most once"
            )
        shape[name] = int(size)
    return shape


def make_mesh(config: Config, shape: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """A mesh of the first devices.

    Args:
      config: the network.
      shape: axis sizes; axes left out are 1.
      devices: at least as many as the product of the sizes.

    Raises:
      UserError: too few devices, or the network does not divide by the shape, or TPUs that do not
        make a box.
    """
    check(config, shape, len(devices))
    sizes = tuple(shape.get(axis, 1) for axis in AXES)
    grid = _grid(sizes, devices[: math.prod(sizes)], describe(shape))
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def _grid(sizes: tuple[int, ...], devices: Sequence[Any], shown: str) -> np.ndarray:
    """Devices in the mesh's shape: of TPUs neighbours stay neighbours, others keep their order."""
    if devices[0].platform != "tpu":
        return np.asarray(devices, dtype=object).reshape(sizes)
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"--mesh {shown}: its {len(devices)} devices form no box in the slice; use all of them"
        ) from error


def check_processes(mesh: Mesh) -> None:
    """Raises a UserError if a process of the run has no device in the mesh."""
    taking_part = {device.process_index for device in mesh.devices.flat}
    if jax.process_count() > len(taking_part):
        raise UserError(
            f"mesh {describe(dict(mesh.shape))} has devices of {len(taking_part)} of "
            f"{jax.process_count()} processes; give --mesh with all, or start fewer"
        )


def default_shape(config: Config, devices: int, *, whole: bool = False) -> dict[str, int]:
    """Over `expert` and `tensor` as heads, then experts, are split over the most devices.

    Of such shapes the one of the fewest devices, which may be fewer than there are, and of those
    the one with the most on `expert`. With `whole` all devices have a part: `context` has what is
    left over, if it divides.
    """
    best, chosen = (1, 1, -1, 1), {}
    # A larger tensor divides neither heads nor experts.
    tensors = max(config.num_heads, config.num_experts)
    for expert in range(1, min(config.num_experts, devices) + 1):
        for tensor in range(1, min(tensors, devices // expert) + 1):
            shape, used = {"expert": expert, "tensor": tensor}, expert * tensor
            if _problem(config, shape):
                continue
            split = split_of(config, shape)
            ways = [math.prod(shape[a] for a in axes) for axes in (split.heads, split.experts)]
            if (*ways, -used, expert) > best:
                best, chosen = (*ways, -used, expert), shape
    chosen = {axis: size for axis, size in chosen.items() if size > 1}
    left = devices // math.prod(chosen.values())
    over_all = chosen | {"context": left}
    if whole and left * math.prod(chosen.values()) == devices and not _problem(config, over_all):
        return over_all if left > 1 else chosen
    return chosen


def check(config: Config, shape: Mapping[str, int], devices: int) -> None:
    """Raises a UsageError if the shape needs more devices, or leaves an axis without a use."""
    needed = math.prod(shape.values())
    shown = describe(shape)
    if needed > devices:
        raise UsageError(f"--mesh {shown} needs {needed} devices; there are {devices}")
    problem = _problem(config, shape)
    if problem:
        near = [describe(s) for s in _nearest(config, shape, needed)]
        instead = f"; nearest that divide: {' or '.join(near)}" if near else ""
        raise UsageError(f"--mesh {shown}: {problem}{instead}")


def check_batch(batch: int, mesh: Mesh | None) -> None:
    """Raises a UsageError if the mesh splits the batch into parts that are not whole."""
    shape = dict(mesh.shape) if mesh else {}
    shown = {axis: shape.get(axis, 1) for axis in ("data", "fsdp")}
    if batch % math.prod(shown.values()):
        raise UsageError(
            f"{describe(shown)} of the mesh does not divide a batch of {batch}; "
            "put those devices on expert or tensor"
        )


def describe(shape: Mapping[str, int]) -> str:
    """As `parse` reads it, without axes of size 1."""
    return ",".join(f"{a}={n}" for a, n in shape.items() if n > 1) or "data=1"


def _problem(config: Config, shape: Mapping[str, int]) -> str | None:
    expert, tensor = shape.get("expert", 1), shape.get("tensor", 1)
    fsdp = shape.get("fsdp", 1)
    if config.num_experts % expert:
        return f"expert={expert} does not divide {config.num_experts} experts"
    context = shape.get("context", 1)
    if context & (context - 1):
        return f"context={context} does not divide a chunk of a prompt, which is a power of two"
    if math.gcd(config.hidden_size, config.num_experts) % fsdp:
        return (
            f"fsdp={fsdp} does not divide both a width of {config.hidden_size} and "
            f"{config.num_experts} experts"
        )
    split = split_of(config, shape)
    if tensor > 1 and "tensor" not in split.heads + split.experts:
        return (
            f"tensor={tensor} divides neither what expert={expert} leaves of "
            f"{config.num_heads} heads nor of {config.num_experts} experts"
        )
    return None


def _nearest(config: Config, shape: Mapping[str, int], devices: int) -> list[dict[str, int]]:
    """Up to three shapes that divide, of as many devices or else of the most below that.

    Those with the most sizes kept come first. Copies (`data`) are for those who ask for them.
    """
    asked = [axis for axis in AXES if axis in ("expert", "tensor") or shape.get(axis, 1) > 1]
    for count in range(devices, 0, -1):
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        fitting = []
        for sizes in itertools.product(divisors, repeat=len(asked)):
            other = dict(zip(asked, sizes, strict=True))
            if math.prod(other.values()) == count and not _problem(config, other):
                distance = sum(abs(math.log2(other[a] / shape.get(a, 1))) for a in asked)
                fitting.append((distance, other))
        if fitting:
            return [other for _, other in sorted(fitting, key=lambda pair: pair[0])[:3]]
    return []


# --- PartitionSpecs ------------------------------------------------------------------------------


def parameter_spec(path: str, split: Split) -> P:
    """Of the parameter at "layers.3.attention.w_q_AD", or of one array of it if it has several."""
    axes = [getattr(split, dim) or None if dim else None for dim in _dims(path)]
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)


def _dims(path: str) -> tuple[str | None, ...]:
    parts = path.split(".")
    (name,) = [part for part in parts if part in _PARAMETERS]
    dims = _PARAMETERS[name]
    if parts[-1] == "key":  # of an adapter's dropout
        return ()
    if parts[-1] in ("a", "b") and "experts" not in dims:
        # An adapter's factors, [r, inputs] and [r, outputs].
        return None, dims[1 if parts[-1] == "a" else 0]
    return dims


def parameter_specs(model: Any, split: Split) -> Any:
    """A tree like the model's, of PartitionSpecs."""

    def spec(path, _) -> P:
        return parameter_spec(keystr(path, simple=True, separator="."), split)

    return tree_map_with_path(spec, model)


def batch_spec(split: Split) -> P:
    """Of an array whose first axis is the batch, and of a scalar."""
    return P(split.batch or None)


def cache_spec(split: Split) -> P:
    """Of keys or values [P, K, H, S]: pages are those of a part's own sequences.

    Where parts outnumber heads K is one a part.
    """
    return P(split.batch or None, split.heads or None)


def devices_of(x: jax.Array) -> list[Any]:
    """The devices an array lies on, those of other processes too, in the mesh's order."""
    mesh = mesh_of(x)
    return list(mesh.devices.flat) if mesh else list(x.devices())


def mesh_of(x: jax.Array) -> Mesh | None:
    """The mesh an array lies on, None for one device."""
    if isinstance(x.sharding, NamedSharding) and isinstance(x.sharding.mesh, Mesh):
        return x.sharding.mesh if x.sharding.mesh.size > 1 else None
    return None
