"""gpt-oss: embedding, layers of attention and experts, unembedding."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gptoss_jax import sharding
from gptoss_jax.kernels.attention.eight_bit import EightBit
from gptoss_jax.kernels.dense import dense
from gptoss_jax.kernels.embedding import embed
from gptoss_jax.kernels.low_rank import Chosen, Weight, for_rows, with_inputs
from gptoss_jax.model.attention import Attention, Rotation, normal
from gptoss_jax.model.cache import Cache, LayerCache, Places
from gptoss_jax.model.chunk import Chunk
from gptoss_jax.model.config import Config
from gptoss_jax.model.moe import MoE
from gptoss_jax.model.norm import RMSNorm
from gptoss_jax.model.remat import remat as rematted
from gptoss_jax.model.rope import rotation


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + experts(norm(x))."""

    def __init__(
        self,
        config: Config,
        index: int,
        dtype: jnp.dtype,
        *,
        packed_experts: bool = True,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.attention = Attention(config, index, dtype, rngs=rngs)
        self.moe_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.moe = MoE(config, dtype, packed_experts=packed_experts, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        rotation: Rotation,
        first_key_BT: jax.Array | None = None,
        real_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The layer's output and its router logits; see `Attention` and `MoE`."""
        self = sharding.whole(self, self.moe.config)
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, first_key_BT)
        out, logits_RE = self.moe(self.moe_norm(x_BTD), real_BT)
        return x_BTD + out, logits_RE

    def extend(
        self,
        x_BTD: jax.Array,
        rotation: Rotation,
        cache: LayerCache,
        places: Places,
        chunk: Chunk,
    ) -> tuple[jax.Array, LayerCache]:
        """The layer on T new positions after a cache; see `Attention.extend`."""
        normed = self.attention_norm(x_BTD)
        out, cache = self.attention.extend(normed, rotation, cache, places, chunk)
        x_BTD = x_BTD + out
        return x_BTD + self.moe(self.moe_norm(x_BTD), chunk.is_real)[0], cache


# Jitted so that layers of a kind are traced once: half of the time until the first answer of nano.
_extend = jax.jit(Layer.extend)


class GptOss(nnx.Module):
    """The whole network.

    Parameters keep the dtype they are stored in; `dtype` is what activations are computed in, with
    float32 norms, softmaxes, router and accumulation.

    Attributes:
      config: sizes and constants.
      dtype: the compute dtype, float32 or bfloat16.
    """

    def __init__(
        self,
        config: Config,
        *,
        dtype: jnp.dtype = jnp.bfloat16,
        param_dtype: jnp.dtype = jnp.bfloat16,
        packed_experts: bool = True,
        rngs: nnx.Rngs,
    ):
        size = (config.vocab_size, config.hidden_size)
        self.embedding_VD = normal(config, rngs, size, param_dtype)
        self.layers = nnx.List(
            Layer(config, index, param_dtype, packed_experts=packed_experts, rngs=rngs)
            for index in range(config.num_layers)
        )
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype)
        self.unembedding_VD = normal(config, rngs, size, param_dtype)
        self.config = config
        self.dtype = jnp.dtype(dtype)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """float32 logits [B, T, V] of int32 tokens [B, T], each row from position 0."""
        return self.unembed(self.hidden(tokens_BT)[0])

    def hidden(
        self,
        tokens_BT: jax.Array,
        position_BT: jax.Array | None = None,
        real_BT: jax.Array | None = None,
        *,
        remat: bool = False,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The residual stream after the last layer, for packed rows; differentiable.

        Args:
          tokens_BT: int32.
          position_BT: int32, rising by one within a segment and starting at 0; no attention goes
            from one segment to another (default: each row is one).
          real_BT: bool, False where there is padding (default: nowhere).
          remat: the backward pass computes each layer again instead of keeping what is in it.

        Returns:
          ([B, T, D] in the compute dtype, a layer's router logits float32 [B * T, E] each).
        """
        index_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        first_key_BT = None if position_BT is None else index_BT - position_BT
        angles = rotation(self.config, index_BT if position_BT is None else position_BT)
        run = rematted(Layer.__call__) if remat else Layer.__call__
        x_BTD, routers = self._embed(tokens_BT), []
        for layer in self.layers:
            x_BTD, logits_RE = run(layer, x_BTD, angles, first_key_BT, real_BT)
            routers.append(logits_RE)
        return x_BTD, routers

    def whole_unembedding(self) -> Weight:
        """The unembedding, gathered over `fsdp`: once for several calls of `unembed`."""
        axes = sharding.current(self.config).fsdp

        def whole(x: jax.Array) -> jax.Array:
            return sharding.gathered(x, axes, axis=-1)

        return with_inputs(whole, self.unembedding_VD.get_value())

    def unembed(self, x_BTD: jax.Array, table_VD: Weight | None = None) -> jax.Array:
        """float32 logits [B, T, V] of the residual stream [B, T, D].

        Args:
          x_BTD: in the compute dtype.
          table_VD: of `whole_unembedding`, where that was called before.
        """
        table_VD = self.whole_unembedding() if table_VD is None else table_VD
        batch, length, hidden = x_BTD.shape
        x_RD = self.final_norm(x_BTD).reshape(batch * length, hidden)
        logits_RV = dense(x_RD, table_VD)
        logits_RV = sharding.gathered(logits_RV, sharding.current(self.config).vocab, axis=-1)
        return logits_RV.reshape(batch, length, -1)

    def empty_cache(self, batch: int, capacity: int) -> Cache:
        """A cache for `batch` sequences of up to `capacity` positions, in the compute dtype.

        Args:
          batch: B.
          capacity: positions, the padding of the last prefill chunk included.
        """
        return Cache.empty(self.config, batch, capacity, self.dtype, self._own_kv_heads())

    def empty_layers(
        self, pages: int, rings: int, dtype: jnp.dtype, eight_bit: EightBit | None = None
    ) -> list[LayerCache]:
        """As `LayerCache.empty`, with the heads of one device."""
        heads = self._own_kv_heads()
        return LayerCache.empty(self.config, pages, rings, dtype, heads, eight_bit=eight_bit)

    def _own_kv_heads(self) -> int:
        heads = sharding.parts(sharding.current(self.config).heads)
        return -(-self.config.num_kv_heads // heads)

    def extend(
        self,
        tokens_BT: jax.Array,
        added_B: jax.Array,
        cache: Cache,
        adapters: Chosen | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Appends up to T tokens to each sequence of a cache: prefill, and decode with T = 1.

        Args:
          tokens_BT: int32; row b's first `added_B[b]` are real, the rest is padding.
          added_B: int32, 0..T.
          cache: a capacity of at least `length + T` is the caller's duty.
          adapters: which of several each sequence takes; None: the weights hold none or one.

        Returns:
          (float32 logits [B, V] after each row's last real token, garbage where it added none; the
          cache with the new tokens).
        """
        axes, places = sharding.current(self.config).sequence, cache.places
        chunk = Chunk.of(cache.length_B, added_B, tokens_BT.shape[1], axes)
        x_BTD, layers = self._extended(tokens_BT, cache, chunk, adapters)
        last_B = jnp.maximum(added_B - 1, 0)
        own_B = jnp.clip(last_B - chunk.offset, 0, x_BTD.shape[1] - 1)
        x_B1D = jnp.take_along_axis(x_BTD, own_B[:, None, None], axis=1)
        if chunk.axes:
            is_own = chunk.holds(last_B)[:, None, None]
            x_B1D = sharding.total(jnp.where(is_own, x_B1D, 0), chunk.axes)
        if tokens_BT.shape[1] > 1:
            places = dataclasses.replace(places, source_B=places.ring_B)
        table_VD = for_rows(self.whole_unembedding(), adapters)
        logits_BV = self.unembed(x_B1D, table_VD)[:, 0]
        return logits_BV, Cache(layers, places, cache.length_B + added_B)

    def verify(
        self,
        tokens_BT: jax.Array,
        added_B: jax.Array,
        cache: Cache,
        choose: Callable[[jax.Array], jax.Array],
        adapters: Chosen | None = None,
    ) -> Cache:
        """Appends up to T > 1 tokens to each sequence, and keeps as many as turn out to be right.

        Args:
          tokens_BT: as `extend` takes them, also the next two.
          added_B: int32, 0..T.
          cache: see there.
          choose: takes float32 logits [B, T, V] after each token; gives how many of each row's
            first tokens are kept, int32 [B] up to `added_B`.
          adapters: as `extend` takes them.
        """
        size = tokens_BT.shape[1]
        chunk = Chunk.of(cache.length_B, added_B, size, (), tentative=True)
        x_BTD, after = self._extended(tokens_BT, cache, chunk, adapters)
        table_VD = for_rows(self.whole_unembedding(), adapters and adapters.repeated(size))
        kept_B = choose(self.unembed(x_BTD, table_VD))
        chunk = dataclasses.replace(chunk, added_B=kept_B)
        layers = [
            layer.attention.kept(before, new, cache.places, chunk)
            for layer, before, new in zip(self.layers, cache.layers, after, strict=True)
        ]
        places = dataclasses.replace(cache.places, source_B=cache.places.ring_B)
        return Cache(layers, places, cache.length_B + kept_B)

    def _extended(
        self, tokens_BT: jax.Array, cache: Cache, chunk: Chunk, adapters: Chosen | None
    ) -> tuple[jax.Array, list[LayerCache]]:
        """(The residual stream of this part's tokens, the layers' caches after them)."""
        angles = rotation(self.config, chunk.position_BT)
        x_BTD, layers = self._embed(chunk.own(tokens_BT)), []
        rows = adapters and adapters.repeated(x_BTD.shape[1])
        for layer, before in zip(for_rows(self.layers, rows), cache.layers, strict=True):
            x_BTD, after = _extend(layer, x_BTD, angles, before, cache.places, chunk)
            layers.append(after)
        return x_BTD, layers

    def _embed(self, tokens_BT):
        axes, split = sharding.current(self.config).fsdp, sharding.current(self.config).vocab
        table_VD = sharding.gathered(self.embedding_VD[...], axes, axis=-1)
        if not split:
            return embed(table_VD, tokens_BT).astype(self.dtype)
        held = len(table_VD)
        row_BT = tokens_BT - sharding.place(split) * held
        is_here = (row_BT >= 0) & (row_BT < held)
        x_BTD = embed(table_VD, jnp.where(is_here, row_BT, 0)).astype(self.dtype)
        # All but one part are zero, so the sum is exact.
        return sharding.total(jnp.where(is_here[..., None], x_BTD, 0), split)


def parameter(model: GptOss, path: str) -> nnx.Param:
    """The parameter at "layers.3.attention.w_q_AD"."""
    node: Any = model
    for key in path.split("."):
        node = node[int(key)] if key.isdigit() else getattr(node, key)
    return node


def abstract(
    config: Config,
    *,
    dtype: jnp.dtype = jnp.bfloat16,
    param_dtype: jnp.dtype = jnp.bfloat16,
    packed_experts: bool = True,
) -> GptOss:
    """The model with `ShapeDtypeStruct` leaves: nothing is allocated."""

    def build() -> GptOss:
        return GptOss(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            packed_experts=packed_experts,
            rngs=nnx.Rngs(0),
        )

    return nnx.eval_shape(build)
