"""Attention in XLA that never holds the scores of a long prompt.

`attend_aligned` blocks over queries and is differentiable; `attend_cache` runs over key blocks with
a running softmax and stops at the last position in use, so its cost follows the context and not the
cache's capacity.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gptoss_jax.kernels import einsum
from gptoss_jax.kernels.attention import reference
from gptoss_jax.kernels.attention.eight_bit import Pages, Scaled

# Scores of one block of queries: 2^25 float32 are 128 MiB.
_MAX_SCORES = 2**25
# Causal attention over the whole sequence wastes (1 + 1/n) / 2 of its work with n spans.
_SPANS = 8
_PAGES_A_BLOCK = 4  # of all sequences; fewer are not worth a step
_GROUP = 8  # sequences that a CPU reads the pages of at once


def attend_aligned(
    q_BTNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKHS: jax.Array,
    sinks_N: jax.Array,
    *,
    window: int | None = None,
    first_key_BT: jax.Array | None = None,
) -> jax.Array:
    """Causal attention where query t stands at key S - T + t.

    Args:
      q_BTNH: queries.
      k_BKHS: keys, S >= T.
      v_BKHS: values.
      sinks_N: sink logits.
      window: how many keys a query sees, itself included; None: all before it.
      first_key_BT: int32 [B, T], no query sees a key before its own first (default: 0): where its
        segment of a packed row starts, or what is there.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    batch, queries, heads, _ = q_BTNH.shape
    keys = k_BKHS.shape[-1]
    if first_key_BT is None:
        first_key_BT = jnp.zeros((batch, queries), jnp.int32)
    seen = keys if window is None else window
    # With a window a block of queries scores the keys of the window before it too.
    largest = 256 if window is None else min(256, max(64, window))
    block = max(8, min(largest, _MAX_SCORES // (batch * heads * seen)))
    if queries <= block:
        return _span(q_BTNH, k_BKHS, v_BKHS, sinks_N, first_key_BT, window, queries)
    blocks = -(-queries // block)
    # Padded queries come last and see only keys that are there anyway.
    padded = blocks * block - queries
    q = jnp.pad(q_BTNH, ((0, 0), (0, padded), (0, 0), (0, 0)))
    first_key_BT = jnp.pad(first_key_BT, ((0, 0), (0, padded)))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padded))) for x in (k_BKHS, v_BKHS))
    spans = 1 if window is not None else min(_SPANS, blocks)
    outs = []
    for span in range(spans):
        first, last = (blocks * i // spans * block for i in (span, span + 1))
        seen = keys - queries + last  # keys the span's last query can see
        rows = (q[:, first:last], k[..., :seen], v[..., :seen])
        outs.append(_span(*rows, sinks_N, first_key_BT[:, first:last], window, block))
    return jnp.concatenate(outs, axis=1)[:, :queries]


def _span(q_BTNH, k_BKHS, v_BKHS, sinks_N, first_key_BT, window, block):
    """Maps over blocks of queries; with a window each block reads only the keys it can see."""
    batch, queries, heads, head_dim = q_BTNH.shape
    keys = k_BKHS.shape[-1]
    width = keys if window is None else min(keys, block + window - 1)

    @jax.checkpoint
    def one(start):
        q = jax.lax.dynamic_slice_in_dim(q_BTNH, start, block, axis=1)
        q_keys = keys - queries + start + jnp.arange(block)
        first = jnp.clip(keys - queries + start + block - width, 0, keys - width)
        k = jax.lax.dynamic_slice_in_dim(k_BKHS, first, width, axis=-1)
        v = jax.lax.dynamic_slice_in_dim(v_BKHS, first, width, axis=-1)
        key_index = first + jnp.arange(width)
        mask = _causal(q_keys[None], key_index[None], window)
        first_key = jax.lax.dynamic_slice_in_dim(first_key_BT, start, block, axis=1)
        mask = mask & (key_index[None, None] >= first_key[..., None])
        return reference.attend(q, k, v, sinks_N, mask)

    if queries == block:
        return one(0)
    out = jax.lax.map(one, jnp.arange(0, queries, block))
    return jnp.moveaxis(out, 0, 1).reshape(batch, queries, heads, head_dim)


def _causal(q_BT: jax.Array, k_BS: jax.Array, window: int | None) -> jax.Array:
    distance = q_BT[..., None] - k_BS[..., None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def attend_cache(
    q_BTNH: jax.Array,
    k_PKHS: Pages,
    v_PKHS: Pages,
    sinks_N: jax.Array,
    table_BJ: jax.Array,
    position_BT: jax.Array,
) -> jax.Array:
    """Attention of queries at `position` over a cache in P pages of S slots.

    Slot s of page `table[b, j]` holds position S j + s of sequence b.

    The running softmax starts from the sink: as if one key with that logit and no value had been
    read. Pages past the largest position are not read, but for the rest of a block of pages. Of
    8-bit pages the scales are multiplied into scores and weights, not into the pages. Not
    differentiable.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    given = (q_BTNH, k_PKHS, v_PKHS, sinks_N, table_BJ, position_BT)
    if len(q_BTNH) <= _GROUP or len(q_BTNH) % _GROUP:
        return _together(*given)
    return jax.lax.platform_dependent(*given, cpu=_by_length, default=_together)


def _by_length(q_BTNH, k_PKHS, v_PKHS, sinks_N, table_BJ, position_BT):
    """A few sequences at a time, each few as far as the longest of them goes.

    Accelerators read all of them at once in the time of the longest; a CPU has no such width.
    """
    order_B = jnp.argsort(position_BT.max(1))
    rows = (q_BTNH, table_BJ, position_BT)
    groups = [x[order_B].reshape(-1, _GROUP, *x.shape[1:]) for x in rows]

    def one(group):
        q, table, position = group
        return _together(q, k_PKHS, v_PKHS, sinks_N, table, position)

    out_BTNH = jax.lax.map(one, groups).reshape(q_BTNH.shape)
    return jnp.zeros_like(out_BTNH).at[order_B].set(out_BTNH, unique_indices=True)


def _together(
    q_BTNH: jax.Array,
    k_PKHS: Pages,
    v_PKHS: Pages,
    sinks_N: jax.Array,
    table_BJ: jax.Array,
    position_BT: jax.Array,
) -> jax.Array:
    """As `attend_cache`, of sequences that go on for as long as the longest."""
    batch, queries, heads, head_dim = q_BTNH.shape
    _, kv_heads, _, page = k_PKHS.shape
    pages, groups = table_BJ.shape[1], heads // kv_heads
    dtype = q_BTNH.dtype if isinstance(k_PKHS, Scaled) else k_PKHS.dtype
    # One axis of all queries of a head: with two of them XLA:CPU takes twice as long for a dot.
    q_BTKGH = q_BTNH.astype(dtype).reshape(batch, queries, kv_heads, groups, head_dim)
    q_BKQH = jnp.moveaxis(q_BTKGH, 1, 2).reshape(batch, kv_heads, -1, head_dim)
    position_BQ = jnp.repeat(position_BT, groups, axis=1)
    block = min(pages_a_block(batch), pages)

    def body(index, carry):
        largest, total, out = carry
        # The last block is moved back to end with the table; keys it reads again are masked.
        first = jnp.minimum(index * block, pages - block)
        ids_BJ = jax.lax.dynamic_slice_in_dim(table_BJ, first, block, axis=1)
        ids = [ids_BJ[:, p] for p in range(block)]
        k, v = ([_taken(x, i, dtype) for i in ids] for x in (k_PKHS, v_PKHS))
        slots = first * page + jnp.arange(block * page)
        new = slots >= index * block * page
        mask = (slots[None, None] <= position_BQ[..., None]) & new[None, None]
        # A dot a page: one over all pages would want them beside the slots, and a copy.
        scores = [_times(einsum("BKQH,BKHS->BKQS", q_BKQH, x), scale) for x, scale in k]
        scores = jnp.concatenate(scores, axis=-1) * head_dim**-0.5
        scores = jnp.where(mask[:, None], scores, -jnp.inf)
        new_largest = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp(scores - new_largest[..., None])
        shrink = jnp.exp(largest - new_largest)
        of_page = zip(jnp.split(weights, block, axis=-1), v, strict=True)
        added = [
            einsum("BKQS,BKHS->BKQH", _times(w, scale).astype(dtype), x)
            for w, (x, scale) in of_page
        ]
        out = out * shrink[..., None] + sum(added[1:], start=added[0])
        return new_largest, total * shrink + weights.sum(-1), out

    shape = q_BKQH.shape[:3]
    sinks = jnp.tile(sinks_N.astype(jnp.float32).reshape(1, kv_heads, groups), (1, 1, queries))
    carry = (jnp.broadcast_to(sinks, shape), jnp.ones(shape), jnp.zeros((*shape, head_dim)))
    steps = jnp.minimum(position_BT.max() // (block * page) + 1, -(-pages // block))
    with jax.named_scope("cache_pages"):
        _, total, out = jax.lax.fori_loop(0, steps, body, carry)
    out_BKTGH = (out / total[..., None]).reshape(batch, kv_heads, queries, groups, head_dim)
    return jnp.moveaxis(out_BKTGH, 2, 1).reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def _taken(pages: Pages, index_B: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, Any]:
    """A page of each sequence, and its scales [B, K, 1, S] or None."""
    taken: Any = jax.tree.map(lambda x: jnp.take(x, index_B, axis=0, mode="clip"), pages)
    if isinstance(taken, Scaled):
        return taken.unscaled(dtype), taken.scale_PK1S
    return taken, None


def _times(x_BKQS: jax.Array, scale_BK1S: jax.Array | None) -> jax.Array:
    return x_BKQS if scale_BK1S is None else x_BKQS * scale_BK1S


def pages_a_block(batch: int) -> int:
    """How many pages of each sequence a step of the running softmax reads."""
    return max(1, _PAGES_A_BLOCK // batch)
