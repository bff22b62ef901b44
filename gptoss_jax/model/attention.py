"""Grouped-query attention with sinks, sliding or full."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gptoss_jax import sharding
from gptoss_jax.kernels import attention as kernels
from gptoss_jax.kernels.attention.eight_bit import like
from gptoss_jax.kernels.dense import dense
from gptoss_jax.kernels.low_rank import with_outputs
from gptoss_jax.model import cache as kv
from gptoss_jax.model.chunk import Chunk
from gptoss_jax.model.config import Config
from gptoss_jax.model.rope import rotate

Rotation = tuple[jax.Array, jax.Array]


def normal(config: Config, rngs: nnx.Rngs, shape: tuple[int, ...], dtype: jnp.dtype) -> nnx.Param:
    """A weight drawn with the config's `initializer_range` as its standard deviation."""
    return nnx.Param(_draw(rngs.params(), shape, dtype, config.initializer_range))


# Jitted so that layers of one shape are traced once: `abstract` is part of every load.
@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, deviation: float) -> jax.Array:
    return (jax.random.normal(key, shape) * deviation).astype(dtype)


class Attention(nnx.Module):
    """q, k, v with bias, RoPE, softmax with a sink a head, output with bias."""

    def __init__(self, config: Config, layer: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        attention, kv_width, hidden = config.attention_width, config.kv_width, config.hidden_size
        self.w_q_AD = normal(config, rngs, (attention, hidden), dtype)
        self.b_q_A = nnx.Param(jnp.zeros((attention,), dtype))
        self.w_k_CD = normal(config, rngs, (kv_width, hidden), dtype)
        self.b_k_C = nnx.Param(jnp.zeros((kv_width,), dtype))
        self.w_v_CD = normal(config, rngs, (kv_width, hidden), dtype)
        self.b_v_C = nnx.Param(jnp.zeros((kv_width,), dtype))
        self.w_o_DA = normal(config, rngs, (hidden, attention), dtype)
        self.b_o_D = nnx.Param(jnp.zeros((hidden,), dtype))
        self.sinks_N = nnx.Param(jnp.zeros((config.num_heads,), dtype))
        self.window = config.window(layer)
        self.head_dim = config.head_dim
        self.config = config

    def __call__(
        self, x_BTD: jax.Array, rotation: Rotation, first_key_BT: jax.Array | None = None
    ) -> jax.Array:
        """Attention within x itself, [B, T, D]; no query sees an index before its first key."""
        q, k, v = self._project(x_BTD, rotation)
        sinks_N, window = self.sinks_N[...], self.window
        if window is None and first_key_BT is not None:
            return self._output(kernels.attend_packed(q, k, v, sinks_N, first_key_BT))
        out = kernels.attend_aligned(q, k, v, sinks_N, window=window, first_key_BT=first_key_BT)
        return self._output(out)

    def extend(
        self,
        x_BTD: jax.Array,
        rotation: Rotation,
        layer: kv.LayerCache,
        places: kv.Places,
        chunk: Chunk,
    ) -> tuple[jax.Array, kv.LayerCache]:
        """Attention of a chunk's T positions to a cache and to each other.

        Returns:
          ([B, T, D], the cache with the new positions; of a sliding layer and a tentative chunk
          what `kept` makes that of).
        """
        q, k_BKHT, v_BKHT = self._project(x_BTD, rotation)
        if self.window is None:
            out, layer = self._extend_full(q, k_BKHT, v_BKHT, layer, places, chunk)
            return self._output(out), layer
        k_BKHT, v_BKHT = (like(x, layer.k_PKHS) for x in (k_BKHT, v_BKHT))
        if chunk.size == 1:
            out, layer = self._decode_ring(q, k_BKHT, v_BKHT, layer, places, chunk.length_B)
        else:
            out, layer = self._extend_ring(q, k_BKHT, v_BKHT, layer, places, chunk)
        return self._output(out), layer

    def _extend_full(self, q_BTNH, k_BKHT, v_BKHT, layer, places, chunk):
        k_BKHT, v_BKHT = (sharding.gathered(x, chunk.axes, axis=-1) for x in (k_BKHT, v_BKHT))
        # Slots of positions that are not real hold garbage that no real query sees; the next
        # positions are written over it.
        table_BJ = places.table_BJ
        k_PKHS = kv.write_pages(layer.k_PKHS, k_BKHT, table_BJ, chunk.length_B)
        v_PKHS = kv.write_pages(layer.v_PKHS, v_BKHT, table_BJ, chunk.length_B)
        out = kernels.attend_cache(
            q_BTNH, k_PKHS, v_PKHS, self.sinks_N[...], table_BJ, chunk.position_BT
        )
        return out, kv.LayerCache(k_PKHS, v_PKHS)

    def _decode_ring(self, q_B1NH, k_BKH1, v_BKH1, layer, places, length_B):
        # A sequence that adds nothing writes garbage where its position length - W was, which no
        # later query of its sees: the window holds W - 1 positions before the query's own.
        window = layer.k_PKHS.shape[-1]
        ring_B1, slot_B = places.ring_B[:, None], length_B % window
        k_PKHW = kv.write_positions(layer.k_PKHS, k_BKH1, ring_B1, slot_B)
        v_PKHW = kv.write_positions(layer.v_PKHS, v_BKH1, ring_B1, slot_B)
        held_BW = kv.ring_positions(length_B + 1, window) >= 0
        k_BKHW, v_BKHW = (kv.read_rings(x, places.ring_B) for x in (k_PKHW, v_PKHW))
        out = kernels.attend(q_B1NH, k_BKHW, v_BKHW, self.sinks_N[...], held_BW[:, None])
        return out, kv.LayerCache(k_PKHW, v_PKHW)

    def _extend_ring(self, q_BTNH, k_BKHT, v_BKHT, layer, places, chunk):
        window = layer.k_PKHS.shape[-1]

        def join(rings_PKHW, new_BKHT):
            ring_BKHW = kv.read_rings(rings_PKHW, places.source_B)
            ordered = kv.ring_in_order(ring_BKHW, chunk.length_B)
            return jnp.concatenate([_before(ordered, new_BKHT, chunk), new_BKHT], axis=-1)

        k_BKHS, v_BKHS = join(layer.k_PKHS, k_BKHT), join(layer.v_PKHS, v_BKHT)
        first_key_B1 = jnp.maximum(window - chunk.position_BT[:, :1], 0)
        out = kernels.attend_aligned(
            q_BTNH,
            k_BKHS,
            v_BKHS,
            self.sinks_N[...],
            window=window,
            first_key_BT=jnp.broadcast_to(first_key_B1, q_BTNH.shape[:2]),
        )

        ordered = kv.LayerCache(k_BKHS, v_BKHS)
        return out, ordered if chunk.tentative else self._written(layer, ordered, places, chunk)

    def kept(
        self, layer: kv.LayerCache, after: kv.LayerCache, places: kv.Places, chunk: Chunk
    ) -> kv.LayerCache:
        """The cache with those tokens of a tentative chunk that turned out to be real.

        Args:
          layer: the cache before.
          after: what `extend` gave.
          places: as there.
          chunk: the same one, its `added_B` now only of what is kept.
        """
        return after if self.window is None else self._written(layer, after, places, chunk)

    def _written(self, layer, ordered, places, chunk):
        def written(rings_PKHW, ordered_BKHS):
            ring_BKHW = self._new_ring(ordered_BKHS, rings_PKHW.shape[-1], chunk)
            return kv.write_rings(rings_PKHW, ring_BKHW, places.ring_B)

        return kv.LayerCache(
            written(layer.k_PKHS, ordered.k_PKHS), written(layer.v_PKHS, ordered.v_PKHS)
        )

    def _new_ring(self, ordered_BKHS, window, chunk):
        if not chunk.axes:
            return kv.next_ring(ordered_BKHS, chunk.length_B, chunk.added_B, chunk.size)
        index_BW = kv.latest_indices(chunk.length_B, chunk.added_B, window)
        # What was in the ring before is in every part's cache; the first one adds it.
        is_old = (index_BW < 0) & (sharding.place(chunk.axes) == 0)
        is_own = is_old | chunk.holds(index_BW)
        at_BW = jnp.where(is_own, index_BW - chunk.offset + window, 0)
        taken = jnp.take_along_axis(ordered_BKHS, at_BW[:, None, None], axis=-1)
        return sharding.total(jnp.where(is_own[:, None, None], taken, 0), chunk.axes)

    def _project(self, x_BTD, rotation):
        batch, length, hidden = x_BTD.shape
        x_RD = x_BTD.reshape(batch * length, hidden)

        def heads(weight, bias):
            y = dense(x_RD, weight, bias).astype(x_BTD.dtype)
            return y.reshape(batch, length, -1, self.head_dim)

        split = sharding.current(self.config)
        q_BTNH = rotate(heads(self.w_q_AD.get_value(), self.b_q_A[...]), *rotation)
        k_BTKH, v_BTKH = (
            heads(*(self._own_kv_head(x.get_value(), split) for x in parameters))
            for parameters in ((self.w_k_CD, self.b_k_C), (self.w_v_CD, self.b_v_C))
        )
        k_BTKH = rotate(k_BTKH, *rotation)
        return q_BTNH, k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 3, 1)

    def _own_kv_head(self, x, split: sharding.Split):
        """Of a key or value parameter: the rows of the head that this device's queries meet."""
        if split.kv_heads == split.heads:
            return x
        sharers = sharding.parts(split.heads) // self.config.num_kv_heads
        first = sharding.place(split.heads) // sharers * self.head_dim

        def own(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, first, self.head_dim, axis)

        return with_outputs(own, x)

    def _output(self, out_BTNH):
        batch, length, *_ = out_BTNH.shape
        out_RA = out_BTNH.reshape(batch * length, -1)
        y_RD = dense(out_RA, self.w_o_DA.get_value())
        y_RD = sharding.total(y_RD, sharding.current(self.config).heads)
        y_RD = y_RD + self.b_o_D[...].astype(jnp.float32)[None]
        return y_RD.astype(out_BTNH.dtype).reshape(batch, length, -1)


def _before(ring_BKHW: jax.Array, new_BKHT: jax.Array, chunk: Chunk) -> jax.Array:
    """The W keys or values before this part's first token: of its neighbours, or of the ring."""
    if not chunk.axes:
        return ring_BKHW
    window, own = ring_BKHW.shape[-1], new_BKHT.shape[-1]
    part, before = new_BKHT[..., -window:], []
    # Where parts are shorter than the window, several neighbours, if there are as many.
    hops = min(-(-window // own), sharding.parts(chunk.axes) - 1)
    for _ in range(hops):
        part = sharding.from_left(part, chunk.axes)
        before.insert(0, part)
    left_BKHT = jnp.concatenate(before, axis=-1)[..., -window:]
    missing = window - left_BKHT.shape[-1]  # further back than any neighbour: the ring's
    left_BKHW = jnp.pad(left_BKHT, ((0, 0), (0, 0), (0, 0), (missing, 0)))
    # Further back than the chunk goes.
    twice = jnp.concatenate([ring_BKHW, ring_BKHW], axis=-1)
    start = jnp.minimum(chunk.offset, window)
    ring_BKHW = jax.lax.dynamic_slice_in_dim(twice, start, window, axis=-1)
    return jnp.where(jnp.arange(window) + start < window, ring_BKHW, left_BKHW)
