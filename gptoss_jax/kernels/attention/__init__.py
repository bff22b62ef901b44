"""Attention with sinks: causal, grouped queries, sliding or full."""

import jax

from gptoss_jax.kernels.attention import mosaic_gpu, xla
from gptoss_jax.kernels.attention.packed import attend_packed
from gptoss_jax.kernels.attention.reference import attend
from gptoss_jax.kernels.attention.xla import attend_aligned

__all__ = ["attend", "attend_aligned", "attend_cache", "attend_packed"]


def attend_cache(
    q_BTNH: jax.Array,
    k_BPKHS: jax.Array,
    v_BPKHS: jax.Array,
    sinks_N: jax.Array,
    position_BT: jax.Array,
) -> jax.Array:
    """Attention of queries at their positions over the cache; see `xla.attend_cache`."""
    operands = (q_BTNH, k_BPKHS, v_BPKHS, sinks_N, position_BT)
    if not mosaic_gpu.takes(q_BTNH, k_BPKHS):
        return xla.attend_cache(*operands)
    return jax.lax.platform_dependent(
        *operands, cuda=mosaic_gpu.attend_cache, default=xla.attend_cache
    )
