"""Mixture of experts in two grouped matmuls: all tiles of all experts at once.

For a kernel that takes any number of tiles and reads packed weights, see `mosaic_gpu`.
"""

import jax
import jax.numpy as jnp

from gptoss_jax.kernels import einsum, hopper
from gptoss_jax.kernels.low_rank import LowRank, base_of
from gptoss_jax.kernels.moe.experts import Experts, ExpertWeight, swiglu
from gptoss_jax.kernels.moe.pairs import sort_pairs
from gptoss_jax.mxfp4 import MXFP4

# With more an expert has hundreds: decoding it once for all of them and cuBLAS serve that better.
_MOST_ROWS = 512
_WIDTH = 64  # what divides both axes of the weights that the kernel takes


def takes(x_RD: jax.Array, experts: Experts) -> bool:
    """Whether `moe` can be compiled for these, on the device that is being compiled for."""
    weights = (base_of(experts.w_gate_up), base_of(experts.w_down))
    fitting = all(
        isinstance(w, MXFP4) and not any(n % _WIDTH for n in w.shape[1:]) for w in weights
    )
    few = x_RD.dtype == jnp.bfloat16 and x_RD.shape[0] <= _MOST_ROWS
    return fitting and few and hopper.is_target()


def moe(x_RD: jax.Array, chosen_RX: jax.Array, weight_RX: jax.Array, experts: Experts) -> jax.Array:
    """As `reference.moe`, for what `takes` says."""
    # Pallas's half for GPUs takes a third of a second to import: only where it is used.
    from gptoss_jax.kernels.moe import mosaic_gpu

    rows, chosen = chosen_RX.shape
    num_experts = experts.num_experts
    size = tile_size(rows, chosen, num_experts)
    pairs = sort_pairs(chosen_RX, num_experts, size=size)
    expert_T, start_T, _ = pairs.locate(jnp.arange(most_tiles(rows, chosen, num_experts, size)))
    # Of what lies beyond the last tile nothing is computed.
    expert_T = jnp.minimum(expert_T, num_experts - 1).astype(jnp.int32)
    row_TS = pairs.row_P[start_T[:, None] + jnp.arange(min(rows, size))[None]]

    def multiply(x_TSK: jax.Array, weight: ExpertWeight) -> jax.Array:
        if isinstance(weight, LowRank):
            return multiply(x_TSK, weight.base) + _added(x_TSK, weight, expert_T, row_TS)
        assert isinstance(weight, MXFP4)
        return mosaic_gpu.matmul(x_TSK, weight, expert_T=expert_T, tiles=pairs.num_tiles)

    h_TSF = multiply(x_RD[row_TS], experts.w_gate_up) + _rows(experts.b_gate_up, expert_T)
    a_TSF = swiglu(h_TSF, experts.alpha, experts.limit).astype(x_RD.dtype)
    y_TSD = multiply(a_TSF, experts.w_down) + _rows(experts.b_down, expert_T)

    y_RXD = y_TSD[pairs.tile_and_slot(chosen_RX)] * weight_RX.astype(jnp.float32)[..., None]
    return jnp.where(chosen_RX[..., None] < num_experts, y_RXD, 0.0).sum(1)


def _added(x_TSK: jax.Array, weight: LowRank, expert_T: jax.Array, row_TS: jax.Array) -> jax.Array:
    """What the factors add; those of a tile's expert are copied for it."""
    a_TrK, b_TrN = (factor[expert_T].astype(x_TSK.dtype) for factor in (weight.a, weight.b))
    h_TSr = einsum("TSK,TrK->TSr", x_TSK, a_TrK)
    if weight.rows is None:
        return weight.scale * einsum("TSr,TrN->TSN", h_TSr.astype(x_TSK.dtype), b_TrN)
    rows = jax.tree.map(lambda x_R: x_R[row_TS], weight.rows)
    h_TSr = rows.own(h_TSr).astype(x_TSK.dtype)
    return rows.scale_R[..., None] * einsum("TSr,TrN->TSN", h_TSr, b_TrN)


def _rows(bias_EN: jax.Array, expert_T: jax.Array) -> jax.Array:
    return bias_EN[expert_T].astype(jnp.float32)[:, None]


def tile_size(rows: int, chosen: int, num_experts: int) -> int:
    """Rows a tile: a power of two of about twice an expert's share, so that most need one tile."""
    share = min(rows, 2 * -(-rows * chosen // num_experts))
    return max(8, min(hopper.UNIT_ROWS, 1 << (share - 1).bit_length()))


def most_tiles(rows: int, chosen: int, num_experts: int, size: int) -> int:
    """However the pairs fall: at most one tile of each expert is not full."""
    pairs = rows * chosen
    if rows <= size:
        return min(num_experts, pairs)
    return min(pairs, (pairs + num_experts * (size - 1)) // size)
