"""What an expert's weight is owed by the rows of a tile: nothing for a frozen one.

Sums over all tiles are float32 trees like the weight's own trainable arrays: one array for a float
weight, `(a, b)` for one with factors, None for a packed one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gptoss_jax.kernels.low_rank import LowRank, matmul
from gptoss_jax.kernels.moe.expert_matmul import index
from gptoss_jax.kernels.moe.experts import ExpertWeight
from gptoss_jax.mxfp4 import MXFP4

Sums = Any


def zeros(weight: ExpertWeight) -> Sums:
    """No row's."""
    if isinstance(weight, MXFP4):
        return None
    if isinstance(weight, LowRank):
        return jnp.zeros(weight.a.shape), jnp.zeros(weight.b.shape)
    return jnp.zeros(weight.shape)


def of_tile(weight: ExpertWeight, x_SK: jax.Array, g_SN: jax.Array, expert: jax.Array) -> Sums:
    """Of S rows of one expert, without its axis E.

    Args:
      weight: of all experts.
      x_SK: what was multiplied with it, in the compute dtype.
      g_SN: float32, the cotangent of the product.
      expert: which.
    """
    if isinstance(weight, MXFP4):
        return None
    g_SN = g_SN.astype(x_SK.dtype)
    if isinstance(weight, LowRank):
        h_Sr = matmul(x_SK, index(weight.a, expert).T).astype(x_SK.dtype)
        back_Sr = matmul(g_SN, index(weight.b, expert).T).astype(x_SK.dtype)
        return weight.scale * matmul(back_Sr.T, x_SK), weight.scale * matmul(h_Sr.T, g_SN)
    return matmul(x_SK.T, g_SN)


def add(total: Sums, expert: jax.Array, added: Sums) -> Sums:
    """The sums with a tile's."""

    def one(total: jax.Array, added: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(total, index(total, expert) + added, expert, axis=0)

    return jax.tree.map(one, total, added)


def cotangent(weight: ExpertWeight, total: Sums) -> Any:
    """The sums as JAX wants them of a weight; zeros for what is frozen, which nobody reads."""
    if isinstance(weight, MXFP4):
        return jax.tree.map(none, weight)
    if isinstance(weight, LowRank):
        frozen: Any = weight.base
        base = jax.tree.map(none if isinstance(frozen, MXFP4) else jnp.zeros_like, frozen)
        a, b = (x.astype(like.dtype) for x, like in zip(total, (weight.a, weight.b), strict=True))
        return dataclasses.replace(weight, base=base, a=a, b=b)
    return total.astype(weight.dtype)


def none(integers: jax.Array) -> np.ndarray:
    """The cotangent of an integer array."""
    return np.zeros(integers.shape, jax.dtypes.float0)
