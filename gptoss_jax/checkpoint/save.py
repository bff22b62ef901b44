"""Writes a model in any layout, streaming."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from gptoss_jax import mxfp4
from gptoss_jax.checkpoint import orbax_dir, output, recode
from gptoss_jax.checkpoint.directory import LAYOUTS, rules_of
from gptoss_jax.checkpoint.parameters import parameter
from gptoss_jax.checkpoint.progress import CHUNK_BYTES, bar, chunks, in_order, rows_within
from gptoss_jax.checkpoint.rules import Part, Rule
from gptoss_jax.checkpoint.safetensors_file import DTYPES, Tensor
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import to_original_json
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
      directory: new or empty. config.json is written last: without it no directory loads.
      source: a directory whose tokenizer files and generation_config.json are copied along.
      progress: shows a bar in bytes on stderr where that is a terminal.

    Raises:
      UserError: an unknown layout, a directory that is not empty, a config the layout cannot hold.
      OSError: the disk is full.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    directory = Path(directory)
    config = _config_json(model, layout)
    output.create(directory)
    if layout == "orbax":
        orbax_dir.save(model, directory)
    else:
        _save_safetensors(model, layout, directory, progress)
    output.write_rest(directory, config, None if source is None else Path(source))


def packs_experts(model: GptOss) -> bool:
    """Whether the model holds its experts as MXFP4."""
    return isinstance(model.layers[0].moe.w_down_EFD.get_value(), MXFP4)


def _dtype_name(model: GptOss) -> str:
    stored = np.dtype(model.final_norm.scale_D.get_value().dtype)
    return next(name for name, dtype in DTYPES.items() if dtype == stored)


def _config_json(model: GptOss, layout: str) -> dict[str, Any]:
    if layout == "original":
        return to_original_json(model.config)
    packed = packs_experts(model) if layout == "orbax" else layout == "hf"
    return output.hf_config(model.config, packed_experts=packed, dtype=_dtype_name(model))


def _save_safetensors(model: GptOss, layout: str, directory: Path, progress: bool) -> None:
    rules = rules_of(layout, model.config, _dtype_name(model))
    rule_of = {tensor.name: rule for rule in rules for tensor in rule.tensors}

    def tensor_chunks(tensor: Tensor) -> Iterator[np.ndarray]:
        return in_order(_jobs(model, rule_of[tensor.name], tensor))

    tensors = [tensor for rule in rules for tensor in rule.tensors]
    with bar(sum(tensor.nbytes for tensor in tensors), "writing", shown=progress) as shown:
        output.write_shards(directory, tensors, layout, tensor_chunks, shown)


def _jobs(model: GptOss, rule: Rule, tensor: Tensor) -> Iterator[Callable[[], np.ndarray]]:
    for part in rule.parts:
        yield from _part_jobs(model, rule, part, tensor)


def _part_jobs(model: GptOss, rule: Rule, part: Part, tensor: Tensor):
    value = parameter(model, part.path).get_value()
    row_bytes = tensor.nbytes // tensor.shape[0]
    held_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(value)) // part.rows
    nbytes = part.rows * max(row_bytes, held_bytes)
    for first, rows in chunks(part.rows, rows_within(CHUNK_BYTES, part.rows, nbytes)):
        yield partial(_published, rule, tensor, value, first, rows)


def _published(rule: Rule, tensor: Tensor, value: Any, first: int, rows: int) -> np.ndarray:
    """Rows of a parameter as the tensor has them."""
    held = _rows(value, np.int32(first), rows)
    if rule.packed and not isinstance(held, MXFP4):
        held = _encode(held)
    if isinstance(held, MXFP4) and not rule.packed:
        held = _decode(held, DTYPES[tensor.dtype])
    if not isinstance(held, MXFP4):
        dense = np.asarray(held)
        return recode.interleave(dense) if rule.interleaved else dense
    if tensor is rule.tensors[0]:
        return recode.publish_blocks(np.asarray(held.blocks), interleaved=rule.interleaved)
    scales = np.asarray(held.scales).reshape(rows, held.groups, -1)
    return recode.publish_scales(scales, interleaved=rule.interleaved)


@partial(jax.jit, static_argnums=2)
def _rows(value: Any, first: jax.Array, rows: int) -> Any:
    if isinstance(value, MXFP4):
        return value.stack_rows(first, rows)
    return lax.dynamic_slice_in_dim(value, first, rows)


_encode = jax.jit(mxfp4.encode)
_decode = jax.jit(mxfp4.decode, static_argnums=1)
