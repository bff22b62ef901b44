"""Reads a checkpoint of any layout into a model, streaming."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptoss_jax.checkpoint import recode
from gptoss_jax.checkpoint.directory import Checkpoint, is_orbax, open_checkpoint
from gptoss_jax.checkpoint.parameters import Target, aligned_empty, parameter
from gptoss_jax.checkpoint.progress import bar, chunks, in_order
from gptoss_jax.checkpoint.rules import Part, Rule
from gptoss_jax.checkpoint.safetensors_file import DTYPES, Entry, read_rows
from gptoss_jax.errors import UserError
from gptoss_jax.model.transformer import GptOss, abstract
from gptoss_jax.mxfp4 import MXFP4

_NAN_SCALE = 255


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
    chunks of 32 MiB are held.

    Args:
      path: the directory.
      dtype: the compute dtype, float32 or bfloat16. Parameters keep the dtype of the files.
      mesh: where the model goes, replicated; None: the default device.
      progress: shows a bar in bytes on stderr where that is a terminal.

    Raises:
      UserError: one line that names the file and the tensor.
      OSError: a file that cannot be read.
    """
    directory = Path(path)
    sharding = None if mesh is None else NamedSharding(mesh, P())
    checkpoint = open_checkpoint(directory)
    model = abstract(
        checkpoint.config,
        dtype=dtype,
        param_dtype=DTYPES[checkpoint.dtype],
        packed_experts=checkpoint.packed_experts,
    )
    total = sum(entry.nbytes for entry in checkpoint.entries.values())
    with bar(total, "loading", shown=progress) as shown:
        for done in in_order(_jobs(checkpoint, model, sharding)):
            shown.update(done())
    return model


# A job fills a buffer in a thread; what it returns is called in order in the reader's thread,
# places the buffer on the device and tells how many bytes of the files are done.
_Placed = Callable[[], int]


def _jobs(
    checkpoint: Checkpoint, model: GptOss, sharding: jax.sharding.Sharding | None
) -> Iterator[Callable[[], _Placed]]:
    for rule in checkpoint.rules:
        entries = [checkpoint.entries[tensor.name] for tensor in rule.tensors]
        for part in rule.parts:
            yield from _part_jobs(rule, part, entries, model, sharding)


def _part_jobs(rule: Rule, part: Part, entries: list[Entry], model: GptOss, sharding):
    param = parameter(model, part.path)
    targets = [Target(like, sharding) for like in jax.tree.leaves(param.get_value())]
    nbytes = entries[0].nbytes * part.rows // max(1, entries[0].shape[0])
    pieces = list(chunks(part.rows, nbytes))
    for first, rows in pieces:
        last = first + rows == part.rows

        def fill(first: int = first, rows: int = rows, last: bool = last) -> _Placed:
            buffers = [target.slice(first, rows) for target in targets]
            for entry, out in zip(entries, buffers, strict=True):
                _read(entry, part.first + first, out, rule.interleaved)

            def place() -> int:
                for target, buffer in zip(targets, buffers, strict=True):
                    target.write(first, buffer)
                if last:
                    arrays = [target.finish() for target in targets]
                    param.set_value(MXFP4(*arrays) if rule.packed else arrays[0])
                return sum(entry.nbytes // entry.shape[0] * rows for entry in entries)

            return place

        yield fill


def _read(entry: Entry, first: int, out: np.ndarray, interleaved: bool) -> None:
    """Rows of a published tensor, from `first`, into `out` in memory's order."""
    packed = entry.dtype == "U8"
    if not packed and not interleaved:
        read_rows(entry, first, out)
        return
    raw = aligned_empty((len(out), *entry.shape[1:]), DTYPES[entry.dtype])
    read_rows(entry, first, raw)
    if not packed:
        recode.gates_first(raw, out)
    elif len(entry.shape) == 4:
        recode.recode_blocks(raw, out, interleaved=interleaved)
    else:
        if (raw == _NAN_SCALE).any():
            raise UserError(f"{entry.file}: tensor {entry.name!r}: a scale byte 255 (NaN)")
        recode.recode_scales(raw, out, interleaved=interleaved)
