"""Mixture of experts over packed weights."""

from gptoss_jax.kernels.moe.experts import Experts, swiglu
from gptoss_jax.kernels.moe.gradient import moe

__all__ = ["Experts", "moe", "swiglu"]
