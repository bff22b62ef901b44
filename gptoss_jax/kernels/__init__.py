"""One folder an operation: `reference.py` is the meaning, the others are how a platform does it."""

import jax
import jax.numpy as jnp


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 means float32: accelerators would multiply it in fewer bits by default."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
