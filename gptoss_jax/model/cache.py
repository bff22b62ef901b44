"""The key/value cache: a ring of the window in sliding layers, the whole length in full ones."""

import dataclasses

import jax
import jax.numpy as jnp

from gptoss_jax.model.config import Config

PAGE = 128  # slots: the lanes of a TPU


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, P pages of S slots each.

    Slots are minor-most: head_dim 64 there would be padded to 128 lanes on TPU, doubling the bytes.
    Pages are an axis of their own, because a slice that starts anywhere in the minor axis makes
    XLA:TPU copy the cache into a layout with slots major, and back.

    In a full layer slot s of page p holds position 128 p + s. A sliding layer is one page of W
    slots, a ring: slot `position % W` holds the latest such position.
    """

    k_BPKHS: jax.Array
    v_BPKHS: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """All layers' caches and how many positions of each sequence they hold (int32 [B])."""

    layers: list[LayerCache]
    length_B: jax.Array

    @staticmethod
    def empty(
        config: Config, batch: int, capacity: int, dtype: jnp.dtype, kv_heads: int | None = None
    ) -> "Cache":
        """A cache for `batch` sequences of up to `capacity` positions, padding included.

        Args:
          config: the network.
          batch: B.
          capacity: positions.
          dtype: of keys and values.
          kv_heads: K of one device; None: all.
        """
        # One page more: a write touches whole pages, the one after its last slot included.
        pages = -(-capacity // PAGE) + 1

        def layer(index: int) -> LayerCache:
            window = config.window(index)
            page = (kv_heads or config.num_kv_heads, config.head_dim, window or PAGE)
            shape = (batch, 1 if window else pages, *page)
            return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        layers = [layer(index) for index in range(config.num_layers)]
        return Cache(layers, jnp.zeros((batch,), jnp.int32))


def write_positions(cache_BPKHS: jax.Array, new_BKHT: jax.Array, start_B: jax.Array) -> jax.Array:
    """Writes T slots of each sequence from its own start, in place where the cache is donated.

    A loop over sequences and not a scatter, which XLA gives a layout of its own, and with it a copy
    of the cache.
    """
    batch, _, _, _, page = cache_BPKHS.shape
    added = new_BKHT.shape[-1]
    touched = (added + page - 2) // page + 1  # pages, wherever the slots start
    width = touched * page

    def write(row: int | jax.Array, cache_BPKHS: jax.Array) -> jax.Array:
        offset = start_B[row] % page
        at = (row, start_B[row] // page, 0, 0, 0)
        old = jax.lax.dynamic_slice(cache_BPKHS, at, (1, touched, *cache_BPKHS.shape[2:]))
        new_KHT = jax.lax.dynamic_index_in_dim(new_BKHT, row, keepdims=False)
        slot = jnp.arange(width).reshape(1, touched, 1, 1, page)
        written = (slot >= offset) & (slot < offset + added)
        new = jnp.where(written, _in_pages(new_KHT, offset, touched, page), old)
        return jax.lax.dynamic_update_slice(cache_BPKHS, new, at)

    if batch == 1:
        return write(0, cache_BPKHS)
    return jax.lax.fori_loop(0, batch, write, cache_BPKHS)


def _in_pages(new_KHT: jax.Array, offset: jax.Array, touched: int, page: int) -> jax.Array:
    """[1, P, K, H, page] with the T new slots from `offset` on; around them anything."""
    kv_heads, head_dim, added = new_KHT.shape
    if added == 1:
        return new_KHT[None, None]
    width = touched * page
    padded = jnp.pad(new_KHT, ((0, 0), (0, 0), (page, width - added)))
    shifted = jax.lax.dynamic_slice_in_dim(padded, page - offset, width, axis=-1)
    return shifted.reshape(kv_heads, head_dim, touched, page).transpose(2, 0, 1, 3)[None]


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
    index_BW = latest_indices(length_B, added_B, window) + window
    return jnp.take_along_axis(ordered_BKHS, index_BW[:, None, None], axis=-1)


def latest_indices(length_B: jax.Array, added_B: jax.Array, window: int) -> jax.Array:
    """int32 [B, W]: which of the new positions, from 0, each slot of a ring holds after them.

    Negative: one that it held before.
    """
    slots = jnp.arange(window)[None]
    end_B1 = (length_B + added_B)[:, None]
    return added_B[:, None] - window + (slots - end_B1) % window


def ring_positions(length_B: jax.Array, window: int) -> jax.Array:
    """int32 [B, W]: the position in each slot of a ring that holds `length` (negative: none)."""
    last_B1 = length_B[:, None] - 1
    return last_B1 - (last_B1 - jnp.arange(window)[None]) % window
