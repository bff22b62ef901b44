"""Linear layers over weights in their storage dtype."""

import jax

from gptoss_jax.kernels.dense import reference, xla_cpu
from gptoss_jax.kernels.low_rank import LowRank, Weight


def dense(x_RD: jax.Array, w_OD: Weight, bias_O: jax.Array | None = None) -> jax.Array:
    """x w^T + b as float32 [R, O]; see `reference.dense`."""
    if isinstance(w_OD, LowRank):
        return dense(x_RD, w_OD.base, bias_O) + w_OD.addition(x_RD)  # pyright: ignore[reportArgumentType]
    return jax.lax.platform_dependent(
        x_RD, w_OD, bias_O, cpu=xla_cpu.dense, default=reference.dense
    )
