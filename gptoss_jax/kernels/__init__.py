"""One folder an operation: `reference.py` is the meaning, the others are how a platform does it."""

import jax
import jax.numpy as jnp


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 means float32: accelerators would multiply it in fewer bits by default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 einsum of two operands of one dtype.

    XLA:CPU refuses some batched dots of bfloat16 when they run (jaxlib 0.10.2: "Unsupported element
    type for DotThunk") and upcasts the others; widened operands are the same dot, as products of
    bfloat16 are exact in float32.
    """

    def native(a: jax.Array, b: jax.Array) -> jax.Array:
        precision = precision_of(a.dtype)
        return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)

    def widened(a: jax.Array, b: jax.Array) -> jax.Array:
        return native(a.astype(jnp.float32), b.astype(jnp.float32))

    if a.dtype == jnp.float32:
        return native(a, b)
    return jax.lax.platform_dependent(a, b, cpu=widened, default=native)
