"""Writes a model, or another checkpoint, in any layout, streaming."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import mxfp4
from gptoss_jax.checkpoint import merge, orbax_dir, output, recode, weights
from gptoss_jax.checkpoint.directory import LAYOUTS, SAFETENSORS_LAYOUTS, rules_of
from gptoss_jax.checkpoint.progress import bar, chunks, in_order
from gptoss_jax.checkpoint.rules import Rule
from gptoss_jax.checkpoint.safetensors_file import DTYPES, Tensor
from gptoss_jax.checkpoint.source import Source
from gptoss_jax.checkpoint.weights import Parameter, Weights
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import to_original_json
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.mxfp4 import MXFP4


def save_model(
    model: GptOss,
    layout: str,
    directory: str | Path,
    *,
    source: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Writes a checkpoint directory.

    What the layout stores as the model holds it is written byte for byte. `hf` and `original` from
    a model with dense experts quantises them (`mxfp4.encode`); `hf-bf16` from a packed one
    dequantises. Everything else keeps the model's stored dtype.

    Args:
      model: with arrays, not abstract.
      layout: "hf", "hf-bf16", "original" or "orbax".
      directory: new or empty, and left so if this fails. config.json is written last.
      source: a directory whose tokenizer files and generation_config.json are copied along.
      progress: shows a bar in bytes on stderr where that is a terminal.

    Raises:
      UserError: an unknown layout, a directory that is not empty, a config the layout cannot hold.
      OSError: the disk is full.
    """
    directory = Path(directory)
    held = weights.of_model(model)
    config = _config_json(held, layout, LAYOUTS)
    with output.created(directory):
        if layout == "orbax":
            orbax_dir.save(model, directory, progress)
        else:
            _save_safetensors(held, layout, directory, progress)
        output.write_rest(directory, config, None if source is None else Path(source))


def save_source(
    source: Source,
    layout: str,
    directory: str | Path,
    *,
    adapter: Trained | None = None,
    progress: bool = True,
) -> None:
    """Writes a checkpoint in a layout of safetensors files without loading it.

    Files and bytes are what `save_model` of the loaded model would write. A few chunks of 8 MiB,
    or experts, are held at once.

    Args:
      source: from `open_source`; its tokenizer files and generation_config.json are copied along.
      layout: "hf", "hf-bf16" or "original".
      directory: as `save_model` takes it.
      adapter: what is added into the weights; those it has no factors for stay as they are.
      progress: shows a bar in bytes on stderr where that is a terminal.

    Raises:
      UserError: as `save_model`, and for what `load_model` finds only when it reads the weights.
      OSError: the disk is full, or a file cannot be read.
    """
    directory = Path(directory)
    held = weights.of_source(source)
    held = held if adapter is None else merge.merged(held, adapter)
    config = _config_json(held, layout, SAFETENSORS_LAYOUTS)
    with output.created(directory):
        _save_safetensors(held, layout, directory, progress)
        output.write_rest(directory, config, source.directory)


def _config_json(held: Weights, layout: str, known: tuple[str, ...]) -> dict[str, Any]:
    if layout not in known:
        raise UserError(f"unknown layout {layout!r}; known: {', '.join(known)}")
    if layout == "original":
        return to_original_json(held.config)
    packed = held.packed_experts if layout == "orbax" else layout == "hf"
    return output.hf_config(held.config, packed_experts=packed, dtype=_dtype_name(held))


def _dtype_name(held: Weights) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == held.dtype)


def _save_safetensors(held: Weights, layout: str, directory: Path, progress: bool) -> None:
    rules = rules_of(layout, held.config, _dtype_name(held))
    rule_of = {tensor.name: rule for rule in rules for tensor in rule.tensors}

    def tensor_chunks(tensor: Tensor) -> Iterator[np.ndarray]:
        return in_order(_jobs(held, rule_of[tensor.name], tensor))

    tensors = [tensor for rule in rules for tensor in rule.tensors]
    with bar(sum(tensor.nbytes for tensor in tensors), "writing", shown=progress) as shown:
        output.write_shards(directory, tensors, layout, tensor_chunks, shown)


def _jobs(held: Weights, rule: Rule, tensor: Tensor) -> Iterator[Callable[[], np.ndarray]]:
    for part in rule.parts:
        parameter = held.parameter(part.path)
        for first, rows in chunks(part.rows, parameter.step):
            yield partial(_published, rule, tensor, parameter, first, rows)


def _published(
    rule: Rule, tensor: Tensor, parameter: Parameter, first: int, rows: int
) -> np.ndarray:
    """Rows of a parameter as the tensor has them."""
    if not rule.packed:
        dense = _dense(parameter, first, rows, DTYPES[tensor.dtype])
        return recode.interleave(dense) if rule.interleaved else dense
    which = rule.tensors.index(tensor)
    array = _packed(parameter, which, first, rows)
    publish = (recode.publish_blocks, recode.publish_scales)[which]
    return publish(array.reshape(rows, -1, array.shape[-1]), interleaved=rule.interleaved)


def _dense(parameter: Parameter, first: int, rows: int, dtype: np.dtype) -> np.ndarray:
    arrays = [take(first, rows) for take in parameter.arrays]
    if not parameter.packed:
        return arrays[0].astype(dtype, copy=False)
    return np.asarray(_decode(MXFP4(*map(jnp.asarray, arrays)), dtype))


def _packed(parameter: Parameter, which: int, first: int, rows: int) -> np.ndarray:
    """The blocks (0) or the scales (1)."""
    if parameter.packed:
        return parameter.arrays[which](first, rows)
    encoded = _encode(parameter.arrays[0](first, rows))
    return np.asarray(jax.tree.leaves(encoded)[which])


_encode = jax.jit(mxfp4.encode)
_decode = jax.jit(mxfp4.decode, static_argnums=1)
