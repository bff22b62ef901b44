"""Attention with sinks: causal, grouped queries, sliding or full."""

import jax
import jax.numpy as jnp

from gptoss_jax.kernels import hopper
from gptoss_jax.kernels.attention import xla
from gptoss_jax.kernels.attention.eight_bit import Pages, Scaled
from gptoss_jax.kernels.attention.packed import attend_packed
from gptoss_jax.kernels.attention.reference import attend
from gptoss_jax.kernels.attention.xla import attend_aligned

__all__ = ["attend", "attend_aligned", "attend_cache", "attend_packed"]

# Head dimension and slots of a page that the kernel is written for.
_PAGE = (64, 128)


def attend_cache(
    q_BTNH: jax.Array,
    k_PKHS: Pages,
    v_PKHS: Pages,
    sinks_N: jax.Array,
    table_BJ: jax.Array,
    position_BT: jax.Array,
) -> jax.Array:
    """Attention of queries at their positions over the cache; see `xla.attend_cache`."""
    operands = (q_BTNH, k_PKHS, v_PKHS, sinks_N, table_BJ, position_BT)
    if not _takes_kernel(q_BTNH, k_PKHS):
        return xla.attend_cache(*operands)
    # As in `moe.grouped`: Pallas's half for GPUs is imported where it is used.
    from gptoss_jax.kernels.attention import mosaic_gpu

    return jax.lax.platform_dependent(
        *operands, cuda=mosaic_gpu.attend_cache, default=xla.attend_cache
    )


def _takes_kernel(q_BTNH: jax.Array, k_PKHS: Pages) -> bool:
    """One query a sequence, pages of 16 bits, on Hopper."""
    if isinstance(k_PKHS, Scaled):
        return False
    _, queries, heads, _ = q_BTNH.shape
    fitting = k_PKHS.shape[2:] == _PAGE and heads // k_PKHS.shape[1] <= hopper.UNIT_ROWS
    return fitting and queries == 1 and k_PKHS.dtype == jnp.bfloat16 and hopper.is_target()
