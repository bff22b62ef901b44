"""The gradient of the mixture of experts: tile by tile, through packed or float weights."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from gptoss_jax.kernels.moe import dispatch, weight_gradient
from gptoss_jax.kernels.moe.expert_matmul import expert_matmul, expert_matmul_transposed
from gptoss_jax.kernels.moe.experts import Experts, swiglu
from gptoss_jax.kernels.moe.pairs import sort_pairs

_FIELDS = ("w_gate_up", "b_gate_up", "w_down", "b_down")
_Sums = dict[str, weight_gradient.Sums]  # over an expert's rows, by the field in `Experts`


@jax.custom_vjp
def moe(x_RD: jax.Array, chosen_RX: jax.Array, weight_RX: jax.Array, experts: Experts) -> jax.Array:
    """As `reference.moe`, differentiable in rows, their weights, biases, float weights and factors.

    Packed weights, and those that have factors, are constants. Nothing but the arguments is kept
    for the backward pass, which computes the gate and up matmul again.
    """
    return dispatch.moe(x_RD, chosen_RX, weight_RX, experts)


def _forward(x_RD, chosen_RX, weight_RX, experts):
    return dispatch.moe(x_RD, chosen_RX, weight_RX, experts), (x_RD, chosen_RX, weight_RX, experts)


def _backward(saved, g_RD: jax.Array):
    x_RD, chosen_RX, weight_RX, experts = saved
    pairs = sort_pairs(chosen_RX, experts.num_experts, packed=experts.packed)
    length = len(pairs.row_P)
    share_P = jnp.zeros((length,)).at[pairs.place_RX].set(weight_RX.astype(jnp.float32))

    def add_tile(tile, carry):
        dx_PD, dshare_P, sums = carry
        expert, start, real = pairs.locate(tile)
        rows = pairs.rows_at(start)
        # Pairs that run over belong to another tile: without a gradient they add nothing here.
        g_SD = jnp.where(jnp.arange(pairs.size)[:, None] < real, g_RD[rows], 0)
        share_S = lax.dynamic_slice_in_dim(share_P, start, pairs.size)
        dx_SD, dshare_S, sums = _tile(x_RD[rows], share_S, g_SD, experts, expert, sums)
        dx_PD = lax.dynamic_update_slice_in_dim(dx_PD, dx_SD.astype(dx_PD.dtype), start, axis=0)
        return dx_PD, lax.dynamic_update_slice_in_dim(dshare_P, dshare_S, start, axis=0), sums

    dx_PD = jnp.zeros((length, x_RD.shape[-1]), x_RD.dtype)
    start = (dx_PD, jnp.zeros((length,)), _empty_sums(experts))
    dx_PD, dshare_P, sums = lax.fori_loop(0, pairs.num_tiles, add_tile, start)
    real_RX = chosen_RX < experts.num_experts
    dx_RXD = jnp.where(real_RX[..., None], dx_PD[pairs.place_RX].astype(jnp.float32), 0)
    dshare_RX = jnp.where(real_RX, dshare_P[pairs.place_RX], 0).astype(weight_RX.dtype)
    nowhere = weight_gradient.none(chosen_RX)
    return dx_RXD.sum(1).astype(x_RD.dtype), nowhere, dshare_RX, _as(experts, sums)


moe.defvjp(_forward, _backward)


def _tile(x_SD, share_S, g_SD, experts: Experts, expert, sums: _Sums):
    """(gradient of the rows, of their weights, the sums with this tile's) of S rows of one expert.

    The expert's output is y = W2 a + b2, a = swiglu(W1 x + b1), and the row's is share * y.
    """
    h_SF = expert_matmul(x_SD, experts.w_gate_up, expert)
    h_SF = h_SF + lax.dynamic_index_in_dim(experts.b_gate_up, expert).astype(jnp.float32)
    activation = functools.partial(swiglu, alpha=experts.alpha, limit=experts.limit)
    a_SF, activation_vjp = jax.vjp(activation, h_SF)
    b_1D = lax.dynamic_index_in_dim(experts.b_down, expert).astype(jnp.float32)

    back_SF = expert_matmul_transposed(g_SD.astype(x_SD.dtype), experts.w_down, expert)
    dshare_S = (back_SF * a_SF).sum(-1) + (g_SD * b_1D).sum(-1)
    (dh_SF,) = activation_vjp(share_S[:, None] * back_SF)
    dx_SD = expert_matmul_transposed(dh_SF.astype(x_SD.dtype), experts.w_gate_up, expert)

    gs_SD = share_S[:, None] * g_SD
    owed = {
        "w_gate_up": weight_gradient.of_tile(experts.w_gate_up, x_SD, dh_SF, expert),
        "b_gate_up": dh_SF.sum(0),
        "w_down": weight_gradient.of_tile(experts.w_down, a_SF.astype(x_SD.dtype), gs_SD, expert),
        "b_down": gs_SD.sum(0),
    }
    return dx_SD, dshare_S, {k: weight_gradient.add(sums[k], expert, owed[k]) for k in _FIELDS}


def _empty_sums(experts: Experts) -> _Sums:
    return {name: weight_gradient.zeros(getattr(experts, name)) for name in _FIELDS}


def _as(experts: Experts, sums: _Sums) -> Experts:
    """The sums as a cotangent of the experts."""
    fields = {k: weight_gradient.cotangent(getattr(experts, k), sums[k]) for k in _FIELDS}
    return Experts(**fields, alpha=experts.alpha, limit=experts.limit)
