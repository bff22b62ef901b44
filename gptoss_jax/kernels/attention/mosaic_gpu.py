"""Attention of one query a sequence over the cache, on Hopper: a page is read once, where it is.

Written in Pallas for Mosaic GPU.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from gptoss_jax.kernels.hopper import UNIT_ROWS

# As many as the rows of a product: one layout is for queries and for components of a head.
_HEAD_DIM = 64
_PAGE = 128
_STAGES = 2
# Programs that H100 holds at once: two a multiprocessor, by their shared memory.
_PROGRAMS = 264
_OF_ROW, _OF_SLOT = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def attend_cache(
    q_B1NH: jax.Array,
    k_PKHS: jax.Array,
    v_PKHS: jax.Array,
    sinks_N: jax.Array,
    table_BJ: jax.Array,
    position_B1: jax.Array,
) -> jax.Array:
    """As `xla.attend_cache`, for one query a sequence; its own pages are read, no others.

    Each program keeps the largest score, the sum and the output of the pages it read, which meet
    each other and the sink here.
    """
    batch, _, heads, head_dim = q_B1NH.shape
    kv_heads = k_PKHS.shape[1]
    groups = heads // kv_heads
    q_BKGH = q_B1NH.astype(k_PKHS.dtype).reshape(batch, kv_heads, groups, head_dim)
    out_BKPGH, largest_BKPG, total_BKPG = _parts(
        q_BKGH, k_PKHS, v_PKHS, table_BJ, position_B1[:, 0]
    )

    sinks_1KG = sinks_N.astype(jnp.float32).reshape(1, kv_heads, groups)
    largest_BKG = jnp.maximum(largest_BKPG.max(2), sinks_1KG)
    share_BKPG = jnp.exp(largest_BKPG - largest_BKG[:, :, None])
    total_BKG = (total_BKPG * share_BKPG).sum(2) + jnp.exp(sinks_1KG - largest_BKG)
    out_BKGH = (out_BKPGH * share_BKPG[..., None]).sum(2) / total_BKG[..., None]
    return out_BKGH.reshape(q_B1NH.shape).astype(q_B1NH.dtype)


def _parts(
    q_BKGH: jax.Array,
    k_PKHS: jax.Array,
    v_PKHS: jax.Array,
    table_BJ: jax.Array,
    position_B: jax.Array,
):
    """(outputs [B, K, P, G, H], largest scores and sums of exponentials [B, K, P, G]) of P parts.

    The outputs are not divided by the sums; of a part without pages the largest score is -inf.
    """
    batch, kv_heads, groups, head_dim = q_BKGH.shape
    parts = -(-_PROGRAMS // (batch * kv_heads))
    # Shared memory is swizzled in blocks of eight rows.
    q_BKGH = jnp.pad(q_BKGH, ((0, 0), (0, 0), (0, -groups % 8), (0, 0)))
    last_page = jnp.arange(_PAGE)[None] <= position_B[:, None] % _PAGE
    mask_B2S = jnp.stack([jnp.ones_like(last_page), last_page], axis=1)
    kernel = plgpu.kernel(
        functools.partial(_program, groups=groups),
        out_type=jax.ShapeDtypeStruct((batch, kv_heads, parts, groups + 2, head_dim), jnp.float32),
        grid=(kv_heads, parts, batch),
        grid_names=("head", "part", "sequence"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )
    pages_B = position_B // _PAGE + 1
    bias_B2S = jnp.where(mask_B2S, 0.0, -jnp.inf).astype(jnp.float32)
    with jax.named_scope("attend_cache"):
        y = kernel(q_BKGH, k_PKHS, v_PKHS, bias_B2S, table_BJ, pages_B)
    return y[..., :groups, :], y[..., groups, :groups], y[..., groups + 1, :groups]


class _Buffers(NamedTuple):
    """In shared memory.

    Attributes:
      q: the queries; of more rows than there are, whatever lies there.
      k: [stages, head_dim, slots].
      v: as k.
      bias: [stages, slots], -inf where no position is.
      weights: exponentials of scores. A row is longer than it needs be, so that rows are not tiled.
      shrink: by how much a row's sums are to shrink.
      y: outputs, largest scores, sums.
      arrived: a barrier for each stage.
      q_arrived: a barrier.
    """

    q: Any
    k: Any
    v: Any
    bias: Any
    weights: Any
    shrink: Any
    y: Any
    arrived: Any
    q_arrived: Any


def _buffers(groups: int) -> _Buffers:
    pages = plgpu.SMEM((_STAGES, _HEAD_DIM, _PAGE), jnp.bfloat16)
    return _Buffers(
        q=plgpu.SMEM((UNIT_ROWS, _HEAD_DIM), jnp.bfloat16),
        k=pages,
        v=pages,
        bias=plgpu.SMEM((_STAGES, _PAGE), jnp.float32),
        weights=plgpu.SMEM((UNIT_ROWS, _PAGE + 4), jnp.float32),
        shrink=plgpu.SMEM((UNIT_ROWS,), jnp.float32),
        y=plgpu.SMEM((groups + 2, _HEAD_DIM), jnp.float32),
        arrived=plgpu.Barrier(num_arrivals=3, num_barriers=_STAGES),
        q_arrived=plgpu.Barrier(),
    )


def _program(q, k, v, bias, table, pages, y, *, groups: int):
    """One sequence, one head of keys and values, a part of the pages."""
    head, part, sequence = (lax.axis_index(name) for name in ("head", "part", "sequence"))
    each = (pages[sequence] + y.shape[2] - 1) // y.shape[2]
    first = part * each
    count = jnp.maximum(jnp.minimum(pages[sequence] - first, each), 0)

    def run(buffers: _Buffers):
        def bring(index):
            """Has a page copied to its stage."""
            stage, page = lax.rem(index, _STAGES), first + index
            arrived = buffers.arrived.at[stage]
            is_last = (page == pages[sequence] - 1).astype(jnp.int32)
            place = table[sequence, page]
            plgpu.copy_gmem_to_smem(k.at[place, head], buffers.k.at[stage], arrived)
            plgpu.copy_gmem_to_smem(v.at[place, head], buffers.v.at[stage], arrived)
            plgpu.copy_gmem_to_smem(bias.at[sequence, is_last], buffers.bias.at[stage], arrived)

        own_rows = buffers.q.at[pl.ds(0, q.shape[2])]
        plgpu.copy_gmem_to_smem(q.at[sequence, head], own_rows, buffers.q_arrived)
        for index in range(_STAGES):
            pl.when(index < count)(functools.partial(bring, jnp.int32(index)))
        plgpu.barrier_wait(buffers.q_arrived)

        def add_page(index, carry):
            carry = _add_page(lax.rem(index, _STAGES), carry, buffers)
            pl.when(index + _STAGES < count)(lambda: bring(index + _STAGES))
            return carry

        nothing = (_filled(-jnp.inf), _filled(0), [_filled(0)] * groups)
        largest, total, out = lax.fori_loop(0, count, add_page, nothing)
        for row, values in enumerate((*out, largest, total)):
            buffers.y[row] = values
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffers.y, y.at[sequence, head, part])
        plgpu.wait_smem_to_gmem(0)

    pl.run_scoped(lambda *buffers: run(_Buffers(*buffers)), *_buffers(groups))


def _filled(value: float) -> jax.Array:
    return plgpu.layout_cast(jnp.full((UNIT_ROWS,), value, jnp.float32), _OF_ROW)


def _add_page(stage: jax.Array, carry, buffers: _Buffers):
    """(largest score of each query, sum, output of each query) with those of a page."""
    largest, total, out = carry
    plgpu.barrier_wait(buffers.arrived.at[stage])

    def multiply(scores):
        plgpu.wgmma(scores, buffers.q, buffers.k.at[stage])
        return scores[...]

    scores = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((UNIT_ROWS, _PAGE), jnp.float32))
    scores = scores * _HEAD_DIM**-0.5 + _over_rows(buffers.bias[stage])
    new_largest = jnp.maximum(largest, scores.max(1))
    shrink = jnp.exp(largest - new_largest)
    weights = jnp.exp(scores - lax.broadcast_in_dim(new_largest, scores.shape, (0,)))
    total = total * shrink + weights.sum(1)

    # wgmma's second product would want the values transposed, which the interpreter does not know;
    # so few queries are not worth it either.
    buffers.weights[:, pl.ds(0, _PAGE)] = weights
    buffers.shrink[...] = shrink
    v = plgpu.layout_cast(buffers.v[stage], plgpu.Layout.WGMMA).astype(jnp.float32)
    new_out = [
        of_query * buffers.shrink[row]
        + (v * _over_rows(buffers.weights[row, pl.ds(0, _PAGE)])).sum(1)
        for row, of_query in enumerate(out)
    ]
    return new_largest, total, new_out


def _over_rows(x: jax.Array) -> jax.Array:
    """A value a slot, the same in all 64 rows."""
    return lax.broadcast_in_dim(plgpu.layout_cast(x, _OF_SLOT), (UNIT_ROWS, _PAGE), (1,))
