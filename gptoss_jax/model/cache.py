"""The key/value cache: pages for full layers, a ring of the window for sliding ones."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from gptoss_jax.kernels.attention.eight_bit import (
    SCALE_DTYPE,
    EightBit,
    Pages,
    Scaled,
    dtype_of,
    like,
)
from gptoss_jax.model.config import Config

PAGE = 128  # slots: the lanes of a TPU


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, P pages of S slots each, of all sequences.

    Slots are minor-most: head_dim 64 there would be padded to 128 lanes on TPU, doubling the bytes.
    Pages are an axis of their own, because a slice that starts anywhere in the minor axis makes
    XLA:TPU copy the cache into a layout with slots major, and back.

    A page of a full layer holds PAGE positions that follow each other. A page of a sliding layer
    has W slots and is a sequence's ring: slot `position % W` holds the latest such position. Page 0
    belongs to no sequence: rows without one write there.

    Pages of full layers may be of 8 bits. Rings are not: all of them are 1.5 % of what 8,192 tokens
    of gpt-oss-20b take.
    """

    k_PKHS: Pages
    v_PKHS: Pages

    @staticmethod
    def empty(
        config: Config,
        pages: int,
        rings: int,
        dtype: jnp.dtype,
        kv_heads: int | None = None,
        *,
        eight_bit: EightBit | None = None,
    ) -> list["LayerCache"]:
        """Every layer's, for that many pages and rings beside page 0.

        Args:
          config: the network.
          pages: of a full layer.
          rings: of a sliding layer.
          dtype: of keys and values.
          kv_heads: K of one device; None: all.
          eight_bit: the format of pages, instead of `dtype`.
        """

        def layer(index: int) -> LayerCache:
            window = config.window(index)
            slots = (kv_heads or config.num_kv_heads, config.head_dim, window or PAGE)
            shape = (1 + (rings if window else pages), *slots)
            if eight_bit and not window:
                held = dtype_of(eight_bit)
                return LayerCache(Scaled.zeros(shape, held), Scaled.zeros(shape, held))
            return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        return [layer(index) for index in range(config.num_layers)]

    @staticmethod
    def nbytes(
        config: Config,
        pages: int,
        rings: int,
        dtype: jnp.dtype,
        kv_heads: int | None = None,
        *,
        eight_bit: EightBit | None = None,
    ) -> int:
        """Of all layers that `empty` makes."""
        heads = kv_heads or config.num_kv_heads
        windows = [config.window(index) for index in range(config.num_layers)]
        of_slots = sum(
            (1 + rings) * w * slot_bytes(config, dtype)
            if w
            else (1 + pages) * PAGE * slot_bytes(config, dtype, eight_bit)
            for w in windows
        )
        return heads * of_slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where the sequences of a batch have their keys and values.

    Attributes:
      table_BJ: int32, the pages of full layers in the order of positions; the last column, where
        a write may reach beyond the last position, and all that a sequence has no page for: 0.
      ring_B: int32, the pages of sliding layers.
      source_B: int32, the rings that the next prefill chunk goes on from; it writes `ring_B`. What
        was in another sequence's ring, or kept of a prefix, stays as it was.
    """

    table_BJ: jax.Array
    ring_B: jax.Array
    source_B: jax.Array

    @staticmethod
    def in_turn(batch: int, pages: int) -> "Places":
        """Sequence b has pages 1 + b * pages and on, and ring 1 + b."""
        table_BJ = 1 + jnp.arange(batch * pages, dtype=jnp.int32).reshape(batch, pages)
        ring_B = 1 + jnp.arange(batch, dtype=jnp.int32)
        return Places(jnp.pad(table_BJ, ((0, 0), (0, 1))), ring_B, ring_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """All layers' caches, and of a batch of sequences where each is and how long (int32 [B])."""

    layers: list[LayerCache]
    places: Places
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
        pages = pages_for(capacity)
        layers = LayerCache.empty(config, batch * pages, batch, dtype, kv_heads)
        return Cache(layers, Places.in_turn(batch, pages), jnp.zeros((batch,), jnp.int32))


def slot_bytes(config: Config, dtype: jnp.dtype, eight_bit: EightBit | None = None) -> int:
    """Of one position's key and value of one head and layer."""
    if eight_bit:
        return 2 * (config.head_dim * dtype_of(eight_bit).itemsize + SCALE_DTYPE.itemsize)
    return 2 * config.head_dim * jnp.dtype(dtype).itemsize


def pages_for(tokens: int) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // PAGE)


def write_pages(
    pages: Pages, new_BKHT: jax.Array, table_BJ: jax.Array, start_B: jax.Array
) -> Pages:
    """`write_positions` in pages of any format."""
    return jax.tree.map(
        lambda held, new: write_positions(held, new, table_BJ, start_B),
        pages,
        like(new_BKHT, pages),
    )


def write_positions(
    cache_PKHS: jax.Array, new_BKHT: jax.Array, table_BJ: jax.Array, start_B: jax.Array
) -> jax.Array:
    """Writes T slots of each sequence from its own start, in place where the cache is donated.

    A loop over pages and not a scatter, which XLA gives a layout of its own, and with it a copy of
    the cache.

    Args:
      cache_PKHS: keys or values.
      new_BKHT: what is written.
      table_BJ: int32, each sequence's pages.
      start_B: int32, the first slot, counted through a sequence's pages.
    """
    operands = (cache_PKHS, new_BKHT, table_BJ, start_B)
    if new_BKHT.shape[-1] == 1:
        return jax.lax.platform_dependent(*operands, cpu=_write_slots, default=_write_pages)
    return _write_pages(*operands)


def _write_slots(cache_PKHS, new_BKH1, table_BJ, start_B):
    """Of one position: where slots are no lanes, one of them is written for itself."""
    page = cache_PKHS.shape[-1]

    def write(row: int | jax.Array, cache_PKHS: jax.Array) -> jax.Array:
        at = (table_BJ[row, start_B[row] // page], 0, 0, start_B[row] % page)
        new = jax.lax.dynamic_slice_in_dim(new_BKH1, row, 1)
        return jax.lax.dynamic_update_slice(cache_PKHS, new, at)

    return _each_row(write, len(new_BKH1), cache_PKHS)


def _write_pages(cache_PKHS, new_BKHT, table_BJ, start_B):
    page = cache_PKHS.shape[-1]
    batch, added = new_BKHT.shape[0], new_BKHT.shape[-1]
    touched = (added + page - 2) // page + 1  # pages, wherever the slots start
    if added > 1:
        new_BKHT = jnp.pad(new_BKHT, ((0, 0), (0, 0), (0, 0), (page, touched * page - added)))

    def write(index: int | jax.Array, cache_PKHS: jax.Array) -> jax.Array:
        row, nth = index // touched, index % touched
        offset = start_B[row] % page
        at = (table_BJ[row, start_B[row] // page + nth], 0, 0, 0)
        old = jax.lax.dynamic_slice(cache_PKHS, at, (1, *cache_PKHS.shape[1:]))
        slot = nth * page + jnp.arange(page)[None, None, None]
        written = (slot >= offset) & (slot < offset + added)
        first, width = (0, 1) if added == 1 else ((nth + 1) * page - offset, page)
        size = (1, *new_BKHT.shape[1:3], width)
        new = jax.lax.dynamic_slice(new_BKHT, (row, 0, 0, first), size)
        return jax.lax.dynamic_update_slice(cache_PKHS, jnp.where(written, new, old), at)

    return _each_row(write, batch * touched, cache_PKHS)


def read_rings(cache_PKHW: jax.Array, ring_B: jax.Array) -> jax.Array:
    """The rings [B, K, H, W] of sequences."""
    return jnp.take(cache_PKHW, ring_B, axis=0, mode="clip")


def write_rings(cache_PKHW: jax.Array, ring_BKHW: jax.Array, ring_B: jax.Array) -> jax.Array:
    """Puts whole rings in their places; as `write_positions`, in place."""

    def write(row: int | jax.Array, cache_PKHW: jax.Array) -> jax.Array:
        ring_1KHW = jax.lax.dynamic_slice_in_dim(ring_BKHW, row, 1)
        return jax.lax.dynamic_update_slice_in_dim(cache_PKHW, ring_1KHW, ring_B[row], axis=0)

    return _each_row(write, len(ring_BKHW), cache_PKHW)


def _each_row(write, rows: int, cache_PKHS: jax.Array) -> jax.Array:
    """A loop that compilers see through where it is gone round once."""
    if rows > 1:
        return jax.lax.fori_loop(0, rows, write, cache_PKHS)
    written_PKHS = write(0, cache_PKHS)
    return jax.lax.platform_dependent(written_PKHS, cuda=_row_major, default=lambda x: x)


def _row_major(x: jax.Array) -> jax.Array:
    """XLA:GPU would have the rings transposed, all of them, in every call of one sequence."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def ring_in_order(ring_BKHW: jax.Array, length_B: jax.Array) -> jax.Array:
    """The ring's slots by position: index i is position length - W + i (unwritten: garbage)."""
    window = ring_BKHW.shape[-1]
    slots_BW = (length_B[:, None] + jnp.arange(window)[None]) % window
    return jnp.take_along_axis(ring_BKHW, slots_BW[:, None, None], axis=-1)


def next_ring(
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
