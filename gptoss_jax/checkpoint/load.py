"""Reads a checkpoint of any layout into a model, streaming."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from gptoss_jax.checkpoint import orbax_dir
from gptoss_jax.checkpoint.directory import is_orbax, open_checkpoint
from gptoss_jax.checkpoint.parameters import Target, parameter
from gptoss_jax.checkpoint.progress import bar, chunks, in_order
from gptoss_jax.checkpoint.source import Reading, Source, safetensors_source
from gptoss_jax.model.placement import format_of
from gptoss_jax.model.transformer import GptOss, abstract

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
      mesh: where the model goes, replicated; None: the first device.
      progress: shows a bar in bytes on stderr where that is a terminal.

    Raises:
      UserError: one line that names the file and the tensor.
      OSError: a file that cannot be read.
    """
    source = open_source(Path(path))
    sharding = NamedSharding(mesh, P()) if mesh else SingleDeviceSharding(jax.devices()[0])
    model = abstract(
        source.config,
        dtype=dtype,
        param_dtype=source.dtype,
        packed_experts=source.packed_experts,
    )
    total = sum(reading.nbytes for reading in source.readings)
    with bar(total, "loading", shown=progress) as shown:
        for place in in_order(_jobs(source, model, sharding)):
            shown.update(place())
    return model


def open_source(directory: Path) -> Source:
    """Detects the layout and checks every header; reads no weights. Raises as `load_model` does."""
    if is_orbax(directory):
        return orbax_dir.source(directory)
    return safetensors_source(open_checkpoint(directory))


def _jobs(
    source: Source, model: GptOss, sharding: jax.sharding.Sharding
) -> Iterator[Callable[[], _Placing]]:
    for reading in source.readings:
        param = parameter(model, reading.path)
        likes, treedef = jax.tree.flatten(param.get_value())
        places = [format_of(reading.path, like, sharding) for like in likes]
        targets = [Target(*each, reading.rows) for each in zip(likes, places, strict=True)]

        def finish(param: nnx.Param = param, treedef=treedef, targets=targets) -> None:
            param.set_value(jax.tree.unflatten(treedef, [target.finish() for target in targets]))

        for first, rows in chunks(reading.rows, reading.step):
            yield _job(reading, targets, first, rows, finish)


def _job(
    reading: Reading, targets: list[Target], first: int, rows: int, finish: Callable[[], None]
) -> Callable[[], _Placing]:
    def fill() -> _Placing:
        buffers = [target.slice(first, rows) for target in targets]
        reading.fill(first, buffers)

        def place() -> int:
            for target, buffer in zip(targets, buffers, strict=True):
                target.write(first, buffer)
            if first + rows == reading.rows:
                finish()
            return reading.nbytes // reading.rows * rows

        return place

    return fill
