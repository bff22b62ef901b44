"""What is written: the parameters of a model, or those still in a checkpoint's files."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax import lax

from gptoss_jax.checkpoint.parameters import aligned_empty
from gptoss_jax.checkpoint.progress import CHUNK_BYTES, rows_within
from gptoss_jax.checkpoint.source import Reading, Source
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss, abstract, parameter
from gptoss_jax.mxfp4 import MXFP4

# `take(first, rows)`: what an array holds of a parameter's rows, [rows or a multiple of it, ...].
_Take = Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter, in memory's order.

    Attributes:
      arrays: one, or the blocks and the scales of a packed weight.
      step: how many rows to take at once.
    """

    arrays: Sequence[_Take]
    step: int

    @property
    def packed(self) -> bool:
        return len(self.arrays) == 2


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's parameters, taken a slice of rows at a time.

    Attributes:
      config: the network.
      dtype: what everything that is not packed is stored in.
      packed_experts: MXFP4 or dense experts.
      parameter: by path, see `rules.Part`.
    """

    config: Config
    dtype: np.dtype
    packed_experts: bool
    parameter: Callable[[str], Parameter]


def of_model(model: GptOss) -> Weights:
    """The parameters of a model that has arrays."""
    packed_experts = isinstance(model.layers[0].moe.w_down_EFD.get_value(), MXFP4)
    dtype = np.dtype(model.final_norm.scale_D.get_value().dtype)

    def held(path: str) -> Parameter:
        arrays = jax.tree.leaves(parameter(model, path).get_value())
        rows = arrays[0].shape[0]
        step = rows_within(CHUNK_BYTES, rows, sum(array.nbytes for array in arrays))
        return Parameter([partial(_of_array, array, rows) for array in arrays], step)

    return Weights(model.config, dtype, packed_experts, held)


def of_source(source: Source) -> Weights:
    """The parameters of a checkpoint, read when they are taken."""
    model = abstract(source.config, param_dtype=source.dtype, packed_experts=source.packed_experts)
    readings = {reading.path: reading for reading in source.readings}

    def held(path: str) -> Parameter:
        likes = jax.tree.leaves(parameter(model, path).get_value())
        reading = readings[path]
        arrays = [partial(_of_file, reading, likes, which) for which in range(len(likes))]
        return Parameter(arrays, reading.step)

    return Weights(source.config, source.dtype, source.packed_experts, held)


def _of_array(array: jax.Array, total: int, first: int, rows: int) -> np.ndarray:
    entries = array.shape[0] // total
    return np.asarray(_slice(array, np.int32(first * entries), rows * entries))


_slice = jax.jit(lax.dynamic_slice_in_dim, static_argnums=2)


def _of_file(
    reading: Reading, likes: Sequence[jax.ShapeDtypeStruct], which: int, first: int, rows: int
) -> np.ndarray:
    shape = likes[which].shape
    entries = shape[0] // reading.rows
    array = aligned_empty((rows * entries, *shape[1:]), likes[which].dtype)
    buffers: list[np.ndarray | None] = [None] * len(likes)
    buffers[which] = array if entries == 1 else array.reshape(rows, entries, *shape[1:])
    reading.fill(first, buffers, None)
    return array
