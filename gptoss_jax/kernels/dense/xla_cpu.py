"""Linear layers on XLA:CPU, which would upcast a whole bfloat16 operand of a dot to float32."""

import jax
import jax.numpy as jnp

from gptoss_jax.kernels.dense import reference

# float32 elements of one upcast tile of the weight: 8 MiB, well inside a shared cache.
_TILE = 2**21


def dense(x_RD: jax.Array, w_OD: jax.Array, bias_O: jax.Array | None = None) -> jax.Array:
    """As the reference, holding no more than one float32 tile of a bfloat16 weight."""
    if w_OD.dtype == jnp.float32:
        return reference.dense(x_RD, w_OD, bias_O)
    # Tied to the rows, else XLA takes the conversion out of the decode loop and keeps its result.
    w_OD, x_RD = jax.lax.optimization_barrier((w_OD, x_RD))
    x_RD = x_RD.astype(jnp.float32)  # products of two bfloat16 are exact in float32
    y_RO = _one_row(x_RD, w_OD) if x_RD.shape[0] == 1 else _tiled(x_RD, w_OD)
    return y_RO if bias_O is None else y_RO + bias_O.astype(jnp.float32)[None]


def _one_row(x_1D: jax.Array, w_OD: jax.Array) -> jax.Array:
    # A fused multiply and sum reads the weight once, in place. With two rows XLA would upcast the
    # whole weight for them to share.
    return (w_OD.astype(jnp.float32) * x_1D).sum(-1)[None]


def _tiled(x_RD: jax.Array, w_OD: jax.Array) -> jax.Array:
    outputs, inputs = w_OD.shape
    tile = min(outputs, max(1, _TILE // inputs))
    tiles = -(-outputs // tile)
    if tiles == 1:
        return reference.dense(x_RD, w_OD.astype(jnp.float32))

    def body(index, y_RO):
        # The last tile is moved back to end with the weight; its overlap is written twice. Tied to
        # the index, else XLA converts the whole weight before the loop and slices that.
        start = jnp.minimum(index * tile, outputs - tile)
        w, start = jax.lax.optimization_barrier((w_OD, start))
        w = jax.lax.dynamic_slice_in_dim(w, start, tile)
        y = reference.dense(x_RD, w.astype(jnp.float32))
        return jax.lax.dynamic_update_slice_in_dim(y_RO, y, start, axis=1)

    # Overwritten whole. Zeros would be shared by all layers, and so live all along and be copied.
    start_RO = jnp.broadcast_to(x_RD[:, :1], (x_RD.shape[0], outputs))
    return jax.lax.fori_loop(0, tiles, body, start_RO)
