"""Rows of an embedding table."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@jax.custom_vjp
def embed(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """table[tokens]: [B, T, D] in the table's dtype."""
    return lax.platform_dependent(table_VD, tokens_BT, cpu=_cpu, default=_gather)


def _forward(table_VD, tokens_BT):
    return embed(table_VD, tokens_BT), (table_VD, tokens_BT)


def _backward(saved, g_BTD: jax.Array):
    # Of its own, because words have no gradient.
    table_VD, tokens_BT = saved
    sums_VD = jnp.zeros(table_VD.shape).at[tokens_BT].add(g_BTD.astype(jnp.float32))
    return sums_VD.astype(table_VD.dtype), np.zeros(tokens_BT.shape, jax.dtypes.float0)


embed.defvjp(_forward, _backward)


def _gather(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    return table_VD[tokens_BT]


def _cpu(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """XLA:CPU moves no bfloat16: it would convert the whole table to float32 and look up there.

    Hence the words; and the barrier, which keeps their view in the loop that looks up.
    """
    if table_VD.dtype != jnp.bfloat16:
        return _gather(table_VD, tokens_BT)
    table_VD, tokens_BT = lax.optimization_barrier((table_VD, tokens_BT))
    words_BTD = lax.bitcast_convert_type(table_VD, jnp.uint16)[tokens_BT]
    return lax.bitcast_convert_type(words_BTD, jnp.bfloat16)
