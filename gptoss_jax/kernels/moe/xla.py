"""Mixture of experts in XLA over packed weights: only chosen experts are read, no row is dropped.

Which form runs is decided by the static number of rows. For its gradient see `gradient.py`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from gptoss_jax.kernels.low_rank import at_rows
from gptoss_jax.kernels.moe.expert_matmul import expert_matmul
from gptoss_jax.kernels.moe.experts import Experts, swiglu
from gptoss_jax.kernels.moe.pairs import sort_pairs
from gptoss_jax.kernels.moe.reference import combine_weights

# Up to here every active expert computes every row: rows are cheaper than sorting them.
FEW_ROWS = 16
# The outputs of all (row, expert) pairs are held at once, twice: 0.4 GB at the published widths.
_MAX_ROWS = 4096


def moe(x_RD: jax.Array, chosen_RX: jax.Array, weight_RX: jax.Array, experts: Experts) -> jax.Array:
    """As `reference.moe`."""
    rows = x_RD.shape[0]
    if rows <= FEW_ROWS:
        return few_rows(x_RD, chosen_RX, weight_RX, experts)
    blocks, size = blocks_of(rows)
    if blocks == 1:
        return many_rows(x_RD, chosen_RX, weight_RX, experts)

    def compute_block(block, y_RD):
        # The last block is moved back to end with the rows; its overlap is written twice.
        start = jnp.minimum(block * size, rows - size)

        def part(whole: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(whole, start, size)

        x, chosen, weight = (part(whole) for whole in (x_RD, chosen_RX, weight_RX))
        y = many_rows(x, chosen, weight, at_rows(part, experts))
        return lax.dynamic_update_slice_in_dim(y_RD, y, start, axis=0)

    # Overwritten whole. Zeros would be shared by all layers, and so live all along and be copied.
    with jax.named_scope(f"rounds_{blocks}"):
        return lax.fori_loop(0, blocks, compute_block, x_RD.astype(jnp.float32))


def blocks_of(rows: int) -> tuple[int, int]:
    """(How many blocks many rows are computed in, rows of each)."""
    blocks = -(-rows // _MAX_ROWS)
    return blocks, -(-rows // blocks)


def _mlp(x_RD: jax.Array, experts: Experts, expert: jax.Array) -> jax.Array:
    """One expert on all rows: float32 [R, D]."""
    h = expert_matmul(x_RD, experts.w_gate_up, expert)
    h = h + _row(experts.b_gate_up, expert)
    a_RF = swiglu(h, experts.alpha, experts.limit).astype(x_RD.dtype)
    return expert_matmul(a_RF, experts.w_down, expert) + _row(experts.b_down, expert)


def _row(bias_EN: jax.Array, expert: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(bias_EN, expert).astype(jnp.float32)


def few_rows(
    x_RD: jax.Array, chosen_RX: jax.Array, weight_RX: jax.Array, experts: Experts
) -> jax.Array:
    """Loops over the experts that any row chose, each on all rows."""
    num_experts = experts.num_experts
    combine_RE = combine_weights(chosen_RX, weight_RX, num_experts)
    chosen_E = (chosen_RX.reshape(-1, 1) == jnp.arange(num_experts)[None]).any(0)
    most = min(num_experts, chosen_RX.size)
    (active,) = jnp.nonzero(chosen_E, size=most, fill_value=0)

    def add_expert(index, y_RD):
        expert = active[index]
        share_R1 = lax.dynamic_slice_in_dim(combine_RE, expert, 1, axis=1)
        return y_RD + share_R1 * _mlp(x_RD, experts, expert)

    empty = jnp.zeros(x_RD.shape, jnp.float32)
    with jax.named_scope("active_experts"):
        return lax.fori_loop(0, chosen_E.sum(), add_expert, empty)


def many_rows(
    x_RD: jax.Array, chosen_RX: jax.Array, weight_RX: jax.Array, experts: Experts
) -> jax.Array:
    """Sorts (row, expert) pairs by expert and loops over tiles that lie within one expert.

    An expert's last tile runs over into the next one's rows; the next expert's tile, which comes
    later, writes those again.
    """
    pairs = sort_pairs(chosen_RX, experts.num_experts, packed=experts.packed)

    def compute_tile(tile, y_PD):
        expert, start, _ = pairs.locate(tile)
        rows = pairs.rows_at(start)
        y = _mlp(x_RD[rows], at_rows(lambda x: x[rows], experts), expert)
        return lax.dynamic_update_slice_in_dim(y_PD, y.astype(y_PD.dtype), start, axis=0)

    # Overwritten where it counts. Zeros would be shared by all layers: live all along, and copied.
    y_PD = jnp.broadcast_to(x_RD[:1], (len(pairs.row_P), x_RD.shape[-1]))
    with jax.named_scope("expert_tiles"):
        y_PD = lax.fori_loop(0, pairs.num_tiles, compute_tile, y_PD)
    y_RXD = y_PD[pairs.place_RX].astype(jnp.float32) * weight_RX.astype(jnp.float32)[..., None]
    return jnp.where(chosen_RX[..., None] < experts.num_experts, y_RXD, 0.0).sum(1)
