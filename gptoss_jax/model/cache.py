"""The key/value cache: a ring of the window in sliding layers, the whole length in full ones."""

import dataclasses

import jax
import jax.numpy as jnp

from gptoss_jax.model.config import Config


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, [B, K, H, S].

    Slots are minor-most: head_dim 64 there would be padded to 128 lanes on TPU, doubling the bytes.
    In a full layer slot s holds position s; in a sliding layer S is the window and slot
    `position % window` holds the latest such position.
    """

    k_BKHS: jax.Array
    v_BKHS: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """All layers' caches and how many positions of each sequence they hold (int32 [B])."""

    layers: list[LayerCache]
    length_B: jax.Array

    @staticmethod
    def empty(config: Config, batch: int, capacity: int, dtype: jnp.dtype) -> "Cache":
        """A cache for `batch` sequences of up to `capacity` positions, padding included."""

        def layer(index: int) -> LayerCache:
            slots = config.window(index) or capacity
            shape = (batch, config.num_kv_heads, config.head_dim, slots)
            return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        layers = [layer(index) for index in range(config.num_layers)]
        return Cache(layers, jnp.zeros((batch,), jnp.int32))


def write_positions(cache_BKHS: jax.Array, new_BKHT: jax.Array, start_B: jax.Array) -> jax.Array:
    """Writes T slots of each sequence from its own start, in place where the cache is donated.

    A loop over sequences and not a scatter: XLA gives a scatter its own layout, and with it a copy
    of the whole cache.
    """

    def write(row: int | jax.Array, cache: jax.Array) -> jax.Array:
        new = jax.lax.dynamic_slice_in_dim(new_BKHT, row, 1)
        return jax.lax.dynamic_update_slice(cache, new, (row, 0, 0, start_B[row]))

    if cache_BKHS.shape[0] == 1:
        return write(0, cache_BKHS)
    return jax.lax.fori_loop(0, cache_BKHS.shape[0], write, cache_BKHS)


def ring_in_order(ring_BKHW: jax.Array, length_B: jax.Array) -> jax.Array:
    """The ring's slots by position: index i is position length - W + i (unwritten: garbage)."""
    window = ring_BKHW.shape[-1]
    slots_BW = (length_B[:, None] + jnp.arange(window)[None]) % window
    return jnp.take_along_axis(ring_BKHW, slots_BW[:, None, None], axis=-1)


def write_ring(
    ordered_BKHS: jax.Array, length_B: jax.Array, added_B: jax.Array, num_new: int
) -> jax.Array:
    """The ring after `added` of T new positions.

    Args:
      ordered_BKHS: S = W + T; index i is position length - W + i.
      length_B: positions held before.
      added_B: how many of the T are real.
      num_new: T.

    Returns:
      The ring [B, K, H, W] that holds the last W positions.
    """
    window = ordered_BKHS.shape[-1] - num_new
    slots = jnp.arange(window)[None]
    index_BW = added_B[:, None] + (slots - (length_B + added_B)[:, None]) % window
    return jnp.take_along_axis(ordered_BKHS, index_BW[:, None, None], axis=-1)


def ring_positions(length_B: jax.Array, window: int) -> jax.Array:
    """int32 [B, W]: the position in each slot of a ring that holds `length` (negative: none)."""
    last_B1 = length_B[:, None] - 1
    return last_B1 - (last_B1 - jnp.arange(window)[None]) % window
