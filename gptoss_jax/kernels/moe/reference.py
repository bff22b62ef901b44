"""Mixture of experts, plainly: every expert on every row."""

import jax
import jax.numpy as jnp

from gptoss_jax import mxfp4
from gptoss_jax.kernels import einsum
from gptoss_jax.kernels.low_rank import LowRank
from gptoss_jax.kernels.moe.experts import Experts, ExpertWeight, swiglu


def combine_weights(chosen_RX: jax.Array, weight_RX: jax.Array, num_experts: int) -> jax.Array:
    """float32 [R, E]: how much of each expert's output each row takes (0 for most)."""
    one_hot_RXE = jax.nn.one_hot(chosen_RX, num_experts, dtype=jnp.float32)
    return (one_hot_RXE * weight_RX.astype(jnp.float32)[..., None]).sum(1)


def moe(x_RD: jax.Array, chosen_RX: jax.Array, weight_RX: jax.Array, experts: Experts) -> jax.Array:
    """Sum over each row's chosen experts of weight * (W2 swiglu(W1 x + b1) + b2).

    Args:
      x_RD: rows in the compute dtype.
      chosen_RX: int32 expert ids, distinct within a row. An id of E or more: no expert.
      weight_RX: float32.
      experts: the layer's experts.

    Returns:
      float32 [R, D]. Weights are multiplied in the compute dtype; biases, activation and the sum
      over experts are float32.
    """

    def dense(weight: ExpertWeight) -> jax.Array:
        if isinstance(weight, LowRank):
            assert weight.rows is None, "one adapter is the meaning; rows choose theirs in `xla`"
            added = jnp.einsum("ErK,ErN->EKN", weight.a, weight.b, precision="highest")
            return dense(weight.base) + (weight.scale * added).astype(x_RD.dtype)
        if isinstance(weight, mxfp4.MXFP4):
            return mxfp4.decode(weight, x_RD.dtype)
        return weight.astype(x_RD.dtype)

    h = einsum("RD,EDF->ERF", x_RD, dense(experts.w_gate_up))
    h = h + experts.b_gate_up.astype(jnp.float32)[:, None]
    a_ERF = swiglu(h, experts.alpha, experts.limit).astype(x_RD.dtype)
    y_ERD = einsum("ERF,EFD->ERD", a_ERF, dense(experts.w_down))
    y_ERD = y_ERD + experts.b_down.astype(jnp.float32)[:, None]
    combine_RE = combine_weights(chosen_RX, weight_RX, experts.num_experts)
    return jnp.einsum("ERD,RE->RD", y_ERD, combine_RE, precision=jax.lax.Precision.HIGHEST)
