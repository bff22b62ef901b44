"""Reads a checkpoint of any layout into a model, streaming."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from gptoss_jax.checkpoint import orbax_dir
from gptoss_jax.checkpoint.directory import is_orbax, open_checkpoint
from gptoss_jax.checkpoint.parameters import ShardedTarget, Target, target_for
from gptoss_jax.checkpoint.progress import bar, chunks, in_order
from gptoss_jax.checkpoint.source import Reading, Source, safetensors_source
from gptoss_jax.model.placement import format_of
from gptoss_jax.model.transformer import GptOss, abstract, parameter
from gptoss_jax.sharding import parameter_spec, split_of

# What a chunk does in the reader's thread once it is filled: places it on the device, and tells how
# many bytes are done.
_Placing = Callable[[], int]


def load_model(
    path: str | Path,
    *,
    dtype: jnp.dtype = jnp.bfloat16,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = True,
) -> GptOss:
    """Loads a checkpoint directory: HF MXFP4, HF BF16, OpenAI original, or this project's Orbax.

    The layout is detected from the files, and every header is checked against config.json before
    any weight is read. Weights then stream in chunks; beside the model itself, at most a few
    chunks of 8 MiB are held.

    Args:
      path: the directory.
      dtype: the compute dtype, float32 or bfloat16. Parameters keep the dtype of the files.
      mesh: where the model goes, split as `gptoss_jax.sharding` says; each host reads the rows that
        its devices hold. None: the first device.
      progress: shows a bar in bytes on stderr where that is a terminal.

    Raises:
      UserError: one line that names the file and the tensor.
      OSError: a file that cannot be read.
    """
    source = open_source(Path(path))
    model = abstract(
        source.config,
        dtype=dtype,
        param_dtype=source.dtype,
        packed_experts=source.packed_experts,
    )
    loads = [_load(reading, model, mesh) for reading in source.readings]
    with bar(sum(load.nbytes for load in loads), "loading", shown=progress) as shown:
        for place in in_order(job for load in loads for job in load.jobs()):
            shown.update(place())
    return model


def open_source(directory: Path) -> Source:
    """Detects the layout and checks every header; reads no weights. Raises as `load_model` does."""
    if is_orbax(directory):
        return orbax_dir.source(directory)
    return safetensors_source(open_checkpoint(directory))


@dataclasses.dataclass(frozen=True)
class _Load:
    """One parameter on its way: where it is read from, and its arrays as they fill."""

    reading: Reading
    targets: list[Target | ShardedTarget]
    finish: Callable[[], None]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The rows that are read, ranges that neither overlap nor touch."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(self.targets[0].ranges):
            if merged and start <= merged[-1][1]:
                start, stop = merged[-1][0], max(stop, merged.pop()[1])
            merged.append((start, stop))
        return merged

    @property
    def nbytes(self) -> int:
        """Of the rows that are read."""
        return self._row_bytes * sum(stop - start for start, stop in self.ranges)

    @property
    def _row_bytes(self) -> int:
        return self.reading.nbytes // self.reading.rows

    def jobs(self) -> Iterator[Callable[[], _Placing]]:
        last = self.ranges[-1][1]
        for start, stop in self.ranges:
            for first, rows in chunks(stop - start, self.reading.step):
                at = start + first
                yield functools.partial(self._fill, at, rows, last=at + rows == last)

    def _fill(self, first: int, rows: int, *, last: bool) -> _Placing:
        buffers = [target.slice(first, rows) for target in self.targets]
        self.reading.fill(first, buffers, self.targets[0].columns)

        def place() -> int:
            for target, buffer in zip(self.targets, buffers, strict=True):
                target.write(first, buffer)
            if last:
                self.finish()
            return self._row_bytes * rows

        return place


def _load(reading: Reading, model: GptOss, mesh: jax.sharding.Mesh | None) -> _Load:
    param = parameter(model, reading.path)
    likes, treedef = jax.tree.flatten(param.get_value())
    path = reading.path
    targets = [
        target_for(like, format_of(path, like, _sharding(path, model, mesh)), reading.rows)
        for like in likes
    ]

    def finish() -> None:
        param.set_value(jax.tree.unflatten(treedef, [each.finish() for each in targets]))

    return _Load(reading, targets, finish)


def _sharding(path: str, model: GptOss, mesh: jax.sharding.Mesh | None) -> Sharding:
    if mesh is None or mesh.size == 1:
        # Not a mesh of one: its axes would be explicit in every operation, outside a shard_map.
        return SingleDeviceSharding(jax.devices()[0])
    split = split_of(model.config, dict(mesh.shape))
    return NamedSharding(mesh, parameter_spec(path, split))
