"""Attention with sinks, plainly."""

import jax
import jax.numpy as jnp

from gptoss_jax.kernels import einsum


def attend(
    q_BTNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKHS: jax.Array,
    sinks_N: jax.Array,
    mask_BTS: jax.Array,
) -> jax.Array:
    """softmax over [q.k / sqrt(H) where the mask allows, sink] applied to v; the sink has no value.

    The sink is a logit of its own and is not scaled (gpt-oss `model.py`, `sdpa`). Query head n
    reads key/value head n // (N / K).

    Args:
      q_BTNH: queries, rotated.
      k_BKHS: keys, rotated.
      v_BKHS: values, in the keys' dtype, which is what is multiplied in.
      sinks_N: one logit a query head, any float dtype.
      mask_BTS: bool, True where the query may see the key. A query that sees none yields zero.

    Returns:
      [B, T, N, H] in q's dtype; scores and softmax are float32.
    """
    batch, queries, heads, head_dim = q_BTNH.shape
    kv_heads = k_BKHS.shape[1]
    groups = heads // kv_heads
    q_BTKGH = q_BTNH.astype(k_BKHS.dtype).reshape(batch, queries, kv_heads, groups, head_dim)
    # In the order in which a dot yields them: any other would move all scores.
    scores = einsum("BTKGH,BKHS->BKTGS", q_BTKGH, k_BKHS)
    scores = jnp.where(mask_BTS[:, None, :, None], scores * head_dim**-0.5, -jnp.inf)
    sinks = sinks_N.astype(jnp.float32).reshape(1, kv_heads, 1, groups, 1)
    # Any number in its place gives the same softmax, so no gradient goes through it.
    largest = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), sinks))
    weights = jnp.exp(scores - largest)
    weights = weights / (weights.sum(-1, keepdims=True) + jnp.exp(sinks - largest))
    out_BKTGH = einsum("BKTGS,BKHS->BKTGH", weights.astype(v_BKHS.dtype), v_BKHS)
    out_BTKGH = jnp.moveaxis(out_BKTGH, 1, 2)
    return out_BTKGH.reshape(q_BTNH.shape).astype(q_BTNH.dtype)
