"""A linear layer, plainly."""

import jax
import jax.numpy as jnp

from gptoss_jax.kernels import precision_of


def dense(x_RD: jax.Array, w_OD: jax.Array, bias_O: jax.Array | None = None) -> jax.Array:
    """x w^T + b in float32.

    Args:
      x_RD: rows in the compute dtype.
      w_OD: [outputs, inputs] as checkpoints store it, in its storage dtype.
      bias_O: optional, any float dtype.

    Returns:
      float32 [R, O]. Weight and rows are multiplied in the compute dtype.
    """
    if w_OD.dtype != x_RD.dtype:
        # Tied to the rows, else XLA takes the conversion out of a decode loop and keeps its result.
        w_OD, x_RD = jax.lax.optimization_barrier((w_OD, x_RD))
    y_RO = jnp.einsum(
        "RD,OD->RO",
        x_RD,
        w_OD.astype(x_RD.dtype),
        preferred_element_type=jnp.float32,
        precision=precision_of(x_RD.dtype),
    )
    return y_RO if bias_O is None else y_RO + bias_O.astype(jnp.float32)[None]
