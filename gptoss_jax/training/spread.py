"""A run over a mesh: where its state and its batches lie, and what its processes agree on."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, keystr, tree_map_with_path

from gptoss_jax import sharding
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import Config
from gptoss_jax.training.packing import Batch
from gptoss_jax.training.settings import Settings


def choose_mesh(config: Settings, sizes: Config, asked: str | None) -> Mesh | None:
    """The mesh of `--mesh`, else `default_shape` of all devices.

    Args:
      config: the training config.
      sizes: of its network.
      asked: the flag's text, None where it was not given.

    Returns:
      None where one device is all there is, or asked for.

    Raises:
      UserError: the text is no mesh, or not one that the network or the batch divides by.
    """
    devices = jax.devices()
    shape = default_shape(config, sizes, len(devices)) if asked is None else sharding.parse(asked)
    if asked is None and shape:
        print(f"mesh {sharding.describe(shape)}; choose with --mesh", file=sys.stderr)
    mesh = sharding.make_mesh(sizes, shape, devices)
    check(config, sizes, shape)
    sharding.check_processes(mesh)
    return mesh if mesh.size > 1 or jax.process_count() > 1 else None


def default_shape(config: Settings, sizes: Config, devices: int) -> dict[str, int]:
    """As much as rows and weights divide by on `fsdp`, then on `expert`; the rest unused."""
    rows = config.batch_size // config.accumulation
    numbers = math.gcd(rows, sizes.hidden_size, sizes.num_experts)
    fsdp = max(n for n in range(1, devices + 1) if numbers % n == 0)
    expert = max(n for n in range(1, devices // fsdp + 1) if sizes.num_experts // fsdp % n == 0)
    return {axis: n for axis, n in (("fsdp", fsdp), ("expert", expert)) if n > 1}


def check(config: Settings, sizes: Config, shape: Mapping[str, int]) -> None:
    """Raises a UserError if an axis has no use in training, or the batch is not divided."""
    split = sharding.split_of(sizes, shape)
    if split.sequence:
        raise UserError("the mesh's context is for long prompts; put those devices on fsdp")
    rows = config.batch_size // config.accumulation
    ways = math.prod(shape[axis] for axis in split.batch)
    if rows % ways:
        raise UserError(
            f"{ways} parts of the batch (data x fsdp) do not divide its {rows} rows "
            "(config.batch_size / config.accumulation)"
        )


def state_shardings(state: Any, sizes: Config, mesh: Mesh | None) -> Any:
    """A tree like a training state's: each parameter's sharding, in the optimizer's trees too."""
    if mesh is None:
        return jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), state)
    split = sharding.split_of(sizes, dict(mesh.shape))

    def where(path, leaf) -> Sharding:
        keys = [key.key for key in path if isinstance(key, DictKey)]
        if not keys or not leaf.ndim:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, sharding.parameter_spec(keys[-1], split))

    return tree_map_with_path(where, state)


Ranges = tuple[tuple[int, int], ...]  # of rows: (start, stop), ascending, not always neighbours


def own_part(rows: int, sizes: Config, mesh: Mesh | None) -> tuple[int, int]:
    """(which part of a batch's rows this process feeds, of how many).

    Processes whose devices have the same rows feed the same ones.

    Raises:
      UserError: two have some rows in common and not all.
    """
    return (0, 1) if mesh is None else part_of(_held(rows, sizes, mesh), jax.process_index())


def part_of(held: Mapping[int, Ranges], process: int) -> tuple[int, int]:
    """As `own_part`, of the process with this index, from what each has."""
    parts = sorted(set(held.values()))
    seen: set[tuple[int, int]] = set()
    for ranges in parts:
        if not seen.isdisjoint(ranges):
            raise UserError(
                "the mesh gives processes some rows of a batch in common and not others; put whole "
                "processes on data and fsdp"
            )
        seen.update(ranges)
    return parts.index(held[process]), len(parts)


def _held(rows: int, sizes: Config, mesh: Mesh) -> dict[int, Ranges]:
    """The rows of each process's devices, by its index."""
    found: dict[int, set[tuple[int, int]]] = {}
    where = NamedSharding(mesh, _rows(sizes, mesh))
    for device, index in where.devices_indices_map((rows,)).items():
        found.setdefault(device.process_index, set()).add(index[0].indices(rows)[:2])
    return {process: tuple(sorted(ranges)) for process, ranges in found.items()}


def placed(batch: Batch, sizes: Config, mesh: Mesh | None, parts: int = 1) -> Batch:
    """A batch [..., B, T] on the devices.

    Args:
      batch: this process's part of the rows, on the host.
      sizes: of the network.
      mesh: where it goes.
      parts: of how many, see `own_part`; 1: it is all of them.
    """
    if mesh is None:
        return batch

    def place(x: np.ndarray) -> jax.Array:
        rows = parts * x.shape[-2]
        where = NamedSharding(mesh, P(*(None,) * (x.ndim - 2), *_rows(sizes, mesh)))
        ranges = ((0, rows),) if parts == 1 else _held(rows, sizes, mesh)[jax.process_index()]

        def own(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[-2].indices(rows)
            begin = offset(ranges, start)
            return x[..., begin : begin + stop - start, :]

        return jax.make_array_from_callback((*x.shape[:-2], rows, x.shape[-1]), where, own)

    return jax.tree.map(place, batch)


def offset(ranges: Ranges, row: int) -> int:
    """Where a row stands among those of the ranges."""
    return sum(min(stop, row) - start for start, stop in ranges if start < row)


def any_of(flag: bool) -> bool:
    """Whether it is set in any process; all are to ask at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def from_all(value: Any) -> list[Any]:
    """The JSON value of every process, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def on_host(tree: Any) -> Any:
    """Arrays of all devices as this process's own, for a writer."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def dotted(path: Any) -> str:
    """A parameter's path in a model, as "layers.3.attention.w_q_AD"."""
    return keystr(path, simple=True, separator=".").replace(".value", "")


def _rows(sizes: Config, mesh: Mesh) -> P:
    return sharding.batch_spec(sharding.split_of(sizes, dict(mesh.shape)))
