"""Attention with sinks: causal, grouped queries, sliding or full."""

from gptoss_jax.kernels.attention.packed import attend_packed
from gptoss_jax.kernels.attention.reference import attend
from gptoss_jax.kernels.attention.xla import attend_aligned, attend_cache

__all__ = ["attend", "attend_aligned", "attend_cache", "attend_packed"]
