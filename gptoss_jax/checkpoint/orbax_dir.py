"""This project's Orbax directory: config.json, and the parameters in an Orbax v1 checkpoint.

`orbax.checkpoint.v1.load` reads it too, as a nested dict of the parameters' names. Our own reading
goes through TensorStore, which Orbax stores arrays with, because Orbax restores whole arrays and
holds each up to three times (120b has arrays of a gigabyte).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from gptoss_jax.checkpoint.directory import ORBAX_FOLDER, rules_of
from gptoss_jax.checkpoint.progress import bar, grows
from gptoss_jax.checkpoint.rules import Rule
from gptoss_jax.checkpoint.source import Reading, Source, refuse_nan
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import read_config
from gptoss_jax.model.transformer import GptOss, parameter

_STATE = "state"  # where Orbax v1 puts the one tree of a checkpoint
_STORED_CHUNK = 32 << 20  # smaller ones cost Orbax's writer more memory
_LEAVES = ("blocks", "scales")  # of a packed weight
_DTYPES = ("bfloat16", "float32")


def save(model: GptOss, directory: Path, progress: bool) -> None:
    """Writes the parameters into the directory; uncompressed, weights hardly compress."""
    from orbax.checkpoint import v1 as ocp

    state = tree(model)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(state)]
    # Orbax refuses an array that is not smaller than the limit, so this is the least there is.
    limit = 1 + max(sizes)
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.storage_options.chunk_byte_size = _STORED_CHUNK
    context.memory.write_concurrent_bytes = limit
    context.memory.transfer_concurrent_bytes = limit
    with bar(sum(sizes), "writing", shown=progress) as shown, grows(directory, shown), context:
        ocp.save(str(directory.absolute() / ORBAX_FOLDER), state)


def tree(model: GptOss) -> dict[str, Any]:
    """The parameters as nested dicts of their names; a packed weight is its blocks and scales."""
    result: dict[str, Any] = {}
    for path in (part.path for rule in rules_of("hf", model.config) for part in rule.parts):
        *parents, name = path.split(".")
        node = result
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = _leaves(parameter(model, path).get_value())
    return result


def _leaves(value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    return {name: getattr(value, name) for name in _LEAVES}


def source(directory: Path) -> Source:
    """Opens what `save` wrote and checks every array against config.json.

    Raises:
      UserError: names the directory and the array that is missing, extra, wrongly shaped or typed.
    """
    config = read_config(directory)
    state = directory / ORBAX_FOLDER / _STATE
    names = _names(state)
    packed_experts = any(name.endswith(".blocks") for name in names)
    dtype = "bfloat16"
    if "final_norm.scale_D" in names:
        dtype = _open(state, "final_norm.scale_D").dtype.name
    if dtype not in _DTYPES:
        raise UserError(f"{state}: tensor 'final_norm.scale_D': {dtype}, not bfloat16 or float32")
    rules = rules_of("hf" if packed_experts else "hf-bf16", config)
    readings = [_reading(rule, state, names, dtype) for rule in rules]
    for name in sorted(names):
        raise UserError(f"{state}: tensor {name!r}: config.json has no place for it")
    return Source(directory, config, np.dtype(dtype), packed_experts, readings)


def _names(state: Path) -> set[str]:
    kvstore = {"driver": "ocdbt", "base": f"file://{state.absolute()}/"}
    try:
        keys = ts.KvStore.open(kvstore).result().list().result()
    except ValueError as error:
        raise UserError(f"{state}: not readable as an Orbax checkpoint ({error})") from None
    suffix = "/zarr.json"
    return {key.decode()[: -len(suffix)] for key in keys if key.decode().endswith(suffix)}


def _open(state: Path, name: str) -> ts.TensorStore:
    kvstore = {"driver": "ocdbt", "base": f"file://{state.absolute()}/", "path": f"{name}/"}
    return ts.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()


def _reading(rule: Rule, state: Path, names: set[str], dtype: str) -> Reading:
    """The reading of a parameter; takes its arrays off `names`."""
    (part,) = rule.parts
    path = part.path
    if rule.packed:
        experts, n, groups, _ = rule.tensors[0].shape
        expected: dict[str, tuple[tuple[int, ...], str]] = {
            f"{path}.blocks": ((experts, groups * 16, n), "uint8"),
            f"{path}.scales": ((experts * groups, n), "uint8"),
        }
    else:
        expected = {path: (rule.tensors[0].shape, dtype)}
    arrays = {name: _checked(state, name, names, *like) for name, like in expected.items()}

    def fill(
        first: int, buffers: Sequence[np.ndarray | None], columns: tuple[int, int] | None
    ) -> None:
        del columns  # chunks hold whole rows
        for (name, array), out in zip(arrays.items(), buffers, strict=True):
            if out is None:
                continue
            entries = array.shape[0] // part.rows  # of the leading axis, for each row
            out = out.reshape(-1, *array.shape[1:])
            _read(array, first * entries, out, f"{state}: tensor {name!r}")
            if name.endswith(".scales"):
                refuse_nan(out, f"{state}: tensor {name!r}")

    nbytes = sum(array.dtype.numpy_dtype.itemsize * array.size for array in arrays.values())
    stored: Any = next(iter(arrays.values())).chunk_layout.read_chunk.shape
    return Reading(path, part.rows, nbytes, fill, step=stored[0])


def _checked(
    state: Path, name: str, names: set[str], shape: tuple[int, ...], dtype: str
) -> ts.TensorStore:
    if name not in names:
        raise UserError(f"{state}: tensor {name!r} is missing")
    names.remove(name)
    array = _open(state, name)
    if array.dtype.name != dtype:
        raise UserError(f"{state}: tensor {name!r}: {array.dtype.name}, not {dtype}")
    if array.shape != shape:
        raise UserError(
            f"{state}: tensor {name!r}: shape {list(array.shape)}, not {list(shape)} as "
            "config.json has it"
        )
    return array


def _read(array: ts.TensorStore, first: int, out: np.ndarray, what: str) -> None:
    try:
        ts.array(out, dtype=array.dtype, copy=False).write(
            array[first : first + len(out)].translate_to[(0,) * array.rank]
        ).result()
    except ValueError as error:
        raise UserError(f"{what}: not readable ({error})") from None
