"""Linear layers over weights in their storage dtype."""

import jax

from gptoss_jax.kernels.dense import reference, xla_cpu


def dense(x_RD: jax.Array, w_OD: jax.Array, bias_O: jax.Array | None = None) -> jax.Array:
    """x w^T + b as float32 [R, O]; see `reference.dense`."""
    return jax.lax.platform_dependent(
        x_RD, w_OD, bias_O, cpu=xla_cpu.dense, default=reference.dense
    )
