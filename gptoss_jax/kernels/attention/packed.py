"""Causal attention within the segments of packed rows, whose cost follows the segments' lengths."""

import functools

import jax
import jax.numpy as jnp

from gptoss_jax.kernels.attention import reference

_BLOCK = 128  # queries
# Keys of a block whose segments all start near it; other blocks look at the whole row.
_NEAR = 2 * _BLOCK


def attend_packed(
    q_BTNH: jax.Array,
    k_BKHT: jax.Array,
    v_BKHT: jax.Array,
    sinks_N: jax.Array,
    first_key_BT: jax.Array,
) -> jax.Array:
    """Attention of each query to the keys from its own first to its own.

    Rows go one by one, and blocks of queries within them: whether a block needs the whole row is
    decided when it runs. Differentiable; a block's scores are computed again backwards.

    Args:
      q_BTNH: queries.
      k_BKHT: keys of the same positions.
      v_BKHT: values.
      sinks_N: sink logits.
      first_key_BT: int32, where each query's segment starts.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    length = q_BTNH.shape[1]
    padded = -length % _BLOCK
    q = jnp.pad(q_BTNH, ((0, 0), (0, padded), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padded))) for x in (k_BKHT, v_BKHT))
    # Padded queries see themselves.
    own = jnp.arange(length, length + padded)[None]
    own = jnp.broadcast_to(own, (len(first_key_BT), padded))
    first = jnp.concatenate([first_key_BT, own.astype(first_key_BT.dtype)], axis=1)
    row = functools.partial(_row, sinks_N)
    out = jax.lax.map(lambda arguments: row(*arguments), (q, k, v, first))
    return out[:, :length]


def _row(sinks_N, q_TNH, k_KHT, v_KHT, first_key_T):
    length = len(q_TNH)
    widths = [min(_NEAR, length), length]

    @jax.checkpoint
    def one(start):
        first_key = jax.lax.dynamic_slice_in_dim(first_key_T, start, _BLOCK)
        is_far = first_key.min() < start + _BLOCK - widths[0]
        branches = [functools.partial(attend_last, width) for width in widths]
        return jax.lax.switch(is_far.astype(jnp.int32), branches, start, first_key)

    def attend_last(width, start, first_key):
        """The block's queries to the `width` keys that end with it."""
        q = jax.lax.dynamic_slice_in_dim(q_TNH, start, _BLOCK)
        begin = jnp.maximum(start + _BLOCK - width, 0)
        k, v = (jax.lax.dynamic_slice_in_dim(x, begin, width, axis=-1) for x in (k_KHT, v_KHT))
        key_index = begin + jnp.arange(width)[None]
        own_index = start + jnp.arange(_BLOCK)[:, None]
        mask = (key_index <= own_index) & (key_index >= first_key[:, None])
        return reference.attend(q[None], k[None], v[None], sinks_N, mask[None])[0]

    out = jax.lax.map(one, jnp.arange(0, length, _BLOCK))
    return out.reshape(q_TNH.shape)
