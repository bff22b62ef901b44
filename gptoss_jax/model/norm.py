"""RMS normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """x / rms(x) * scale in float32, rounded to the compute dtype once, after the scale."""

    def __init__(self, size: int, eps: float, dtype: jnp.dtype):
        self.scale_D = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x = x_BTD.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * self.scale_D[...].astype(jnp.float32)[None, None]).astype(x_BTD.dtype)
