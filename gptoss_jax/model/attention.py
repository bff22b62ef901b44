"""Grouped-query attention with sinks, sliding or full."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gptoss_jax.kernels import attention as kernels
from gptoss_jax.kernels.dense import dense
from gptoss_jax.model import cache as kv
from gptoss_jax.model.config import Config
from gptoss_jax.model.rope import rotate

Rotation = tuple[jax.Array, jax.Array]


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: jnp.dtype) -> nnx.Param:
    """A weight drawn with the published models' initialiser range, 0.02."""
    return nnx.Param(_draw(rngs.params(), shape, dtype))


# Jitted so that layers of one shape are traced once: `abstract` is part of every load.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return (jax.random.normal(key, shape) * 0.02).astype(dtype)


class Attention(nnx.Module):
    """q, k, v with bias, RoPE, softmax with a sink a head, output with bias."""

    def __init__(self, config: Config, layer: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        attention, kv_width, hidden = config.attention_width, config.kv_width, config.hidden_size
        self.w_q_AD = normal(rngs, (attention, hidden), dtype)
        self.b_q_A = nnx.Param(jnp.zeros((attention,), dtype))
        self.w_k_CD = normal(rngs, (kv_width, hidden), dtype)
        self.b_k_C = nnx.Param(jnp.zeros((kv_width,), dtype))
        self.w_v_CD = normal(rngs, (kv_width, hidden), dtype)
        self.b_v_C = nnx.Param(jnp.zeros((kv_width,), dtype))
        self.w_o_DA = normal(rngs, (hidden, attention), dtype)
        self.b_o_D = nnx.Param(jnp.zeros((hidden,), dtype))
        self.sinks_N = nnx.Param(jnp.zeros((config.num_heads,), dtype))
        self.window = config.window(layer)
        self.head_dim = config.head_dim

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
        length_B: jax.Array,
        added_B: jax.Array,
    ) -> tuple[jax.Array, kv.LayerCache]:
        """Attention of T new positions to a cache that holds `length`, of which `added` are real.

        Returns:
          ([B, T, D], the cache with the new positions).
        """
        q, k_BKHT, v_BKHT = self._project(x_BTD, rotation)
        k_BKHT, v_BKHT = (x.astype(layer.k_BPKHS.dtype) for x in (k_BKHT, v_BKHT))
        if self.window is None:
            out, layer = self._extend_full(q, k_BKHT, v_BKHT, layer, length_B)
        elif x_BTD.shape[1] == 1:
            out, layer = self._decode_ring(q, k_BKHT, v_BKHT, layer, length_B)
        else:
            out, layer = self._extend_ring(q, k_BKHT, v_BKHT, layer, length_B, added_B)
        return self._output(out), layer

    def _extend_full(self, q_BTNH, k_BKHT, v_BKHT, layer, length_B):
        # Slots of positions that are not real hold garbage that no real query sees; the next
        # positions are written over it.
        k_BPKHS = kv.write_positions(layer.k_BPKHS, k_BKHT, length_B)
        v_BPKHS = kv.write_positions(layer.v_BPKHS, v_BKHT, length_B)
        position_BT = length_B[:, None] + jnp.arange(q_BTNH.shape[1])[None]
        out = kernels.attend_cache(q_BTNH, k_BPKHS, v_BPKHS, self.sinks_N[...], position_BT)
        return out, kv.LayerCache(k_BPKHS, v_BPKHS)

    def _decode_ring(self, q_B1NH, k_BKH1, v_BKH1, layer, length_B):
        # A sequence that adds nothing writes garbage where its position length - W was, which no
        # later query of its sees: the window holds W - 1 positions before the query's own.
        window = layer.k_BPKHS.shape[-1]
        k_B1KHW = kv.write_positions(layer.k_BPKHS, k_BKH1, length_B % window)
        v_B1KHW = kv.write_positions(layer.v_BPKHS, v_BKH1, length_B % window)
        held_BW = kv.ring_positions(length_B + 1, window) >= 0
        rings = (k_B1KHW[:, 0], v_B1KHW[:, 0])
        out = kernels.attend(q_B1NH, *rings, self.sinks_N[...], held_BW[:, None])
        return out, kv.LayerCache(k_B1KHW, v_B1KHW)

    def _extend_ring(self, q_BTNH, k_BKHT, v_BKHT, layer, length_B, added_B):
        num_new, window = q_BTNH.shape[1], layer.k_BPKHS.shape[-1]

        def join(ring_B1KHW, new_BKHT):
            ordered = kv.ring_in_order(ring_B1KHW[:, 0], length_B)
            return jnp.concatenate([ordered, new_BKHT], axis=-1)

        k_BKHS, v_BKHS = join(layer.k_BPKHS, k_BKHT), join(layer.v_BPKHS, v_BKHT)
        out = kernels.attend_aligned(
            q_BTNH,
            k_BKHS,
            v_BKHS,
            self.sinks_N[...],
            window=window,
            first_key_BT=jnp.broadcast_to(
                jnp.maximum(window - length_B, 0)[:, None], q_BTNH.shape[:2]
            ),
        )
        rings = (kv.write_ring(x, length_B, added_B, num_new)[:, None] for x in (k_BKHS, v_BKHS))
        return out, kv.LayerCache(*rings)

    def _project(self, x_BTD, rotation):
        batch, length, hidden = x_BTD.shape
        x_RD = x_BTD.reshape(batch * length, hidden)

        def heads(weight, bias):
            y = dense(x_RD, weight[...], bias[...]).astype(x_BTD.dtype)
            return y.reshape(batch, length, -1, self.head_dim)

        q_BTNH = rotate(heads(self.w_q_AD, self.b_q_A), *rotation)
        k_BTKH = rotate(heads(self.w_k_CD, self.b_k_C), *rotation)
        v_BTKH = heads(self.w_v_CD, self.b_v_C)
        return q_BTNH, k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 3, 1)

    def _output(self, out_BTNH):
        batch, length, *_ = out_BTNH.shape
        out_RA = out_BTNH.reshape(batch * length, -1)
        y_RD = dense(out_RA, self.w_o_DA[...], self.b_o_D[...])
        return y_RD.astype(out_BTNH.dtype).reshape(batch, length, -1)
