"""A checkpoint with an adapter added into its weights, a slice of rows at a time."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import mxfp4
from gptoss_jax.checkpoint.weights import Parameter, Weights
from gptoss_jax.model.lora import Trained
from gptoss_jax.mxfp4 import MXFP4


def merged(weights: Weights, trained: Trained) -> Weights:
    """The weights with the adapter added.

    What the adapter has no factors for stays as it is, byte for byte. Packed experts that it has
    factors for become float32, which a layout of MXFP4 experts packs again.

    Args:
      weights: of the base.
      trained: an adapter that fits it.
    """

    def held(path: str) -> Parameter:
        base = weights.parameter(path)
        if path in trained.values:
            return _replaced(trained.values[path], weights.dtype, base.step)
        if f"{path}.a" not in trained.values:
            return base
        return _added(base, path, trained.values, trained.adapter.scale, weights.dtype)

    return dataclasses.replace(weights, parameter=held)


def _replaced(value: np.ndarray, dtype: np.dtype, step: int) -> Parameter:
    def take(first: int, rows: int) -> np.ndarray:
        return np.asarray(value)[first : first + rows].astype(dtype)

    return Parameter([take], step)


def _added(
    base: Parameter, path: str, values: Mapping[str, np.ndarray], scale: float, dtype: np.dtype
) -> Parameter:
    a, b = np.asarray(values[f"{path}.a"]), np.asarray(values[f"{path}.b"])

    def take(first: int, rows: int) -> np.ndarray:
        arrays = [take(first, rows) for take in base.arrays]
        at = slice(first, first + rows)
        if a.ndim == 2:  # rows are outputs
            return _matrix(arrays[0], a, b[:, at], scale).astype(dtype)
        weight = MXFP4(*map(jnp.asarray, arrays)) if base.packed else jnp.asarray(arrays[0])
        sums = _experts(weight, a[at], b[at], scale)
        return np.asarray(sums if base.packed else sums.astype(dtype))

    return Parameter([take], base.step)


def _matrix(rows_OD: np.ndarray, a_rD: np.ndarray, b_rO: np.ndarray, scale: float) -> np.ndarray:
    return rows_OD.astype(np.float32) + np.float32(scale) * (b_rO.T @ a_rD)


@jax.jit
def _experts(
    weight: MXFP4 | jax.Array, a_ErK: jax.Array, b_ErN: jax.Array, scale: jax.Array
) -> jax.Array:
    dense = mxfp4.decode(weight, jnp.float32) if isinstance(weight, MXFP4) else weight
    added = jnp.einsum("ErK,ErN->EKN", a_ErK, b_ErN, precision="highest")
    return dense.astype(jnp.float32) + jnp.float32(scale) * added
