"""Quantisation-aware training: experts that are trained as they will be held."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptoss_jax import mxfp4
from gptoss_jax.model.transformer import GptOss

_EXPERT_WEIGHTS = ("w_gate_up_EDF", "w_down_EFD")


def as_shipped(model: GptOss) -> GptOss:
    """The model with every parameter as `pack` will hold it; gradients pass straight through.

    The gradient in a parameter is that in its rounded value (Bengio et al., arXiv 1308.3432), so
    that float32 master weights move by steps smaller than the grid's.
    """

    def encoded(w: jax.Array) -> jax.Array:
        return mxfp4.decode(mxfp4.encode(w), w.dtype)

    rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), model)
    rounded = _with_experts(rounded, model, encoded)
    return jax.tree.map(
        lambda r, w: jax.lax.stop_gradient(r) + (w - jax.lax.stop_gradient(w)), rounded, model
    )


def pack(model: GptOss, dtype: jnp.dtype = jnp.bfloat16) -> GptOss:
    """The model to be shipped: packed experts, everything else in `dtype`.

    Args:
      model: with float experts.
      dtype: of the parameters that are no expert weights, and of the computing.
    """
    encoded = _with_experts(model, model, jax.jit(mxfp4.encode))
    packed = jax.tree.map(lambda x: x if x.dtype == jnp.uint8 else x.astype(dtype), encoded)
    packed.dtype = jnp.dtype(dtype)
    return packed


def unpacked(model: GptOss) -> GptOss:
    """The model with its experts as float arrays, in float32."""

    def decoded(weight: mxfp4.MXFP4 | jax.Array) -> jax.Array:
        return mxfp4.decode(weight, jnp.float32) if isinstance(weight, mxfp4.MXFP4) else weight

    return _with_experts(model, model, decoded)


def _with_experts(model: GptOss, source: GptOss, change: Callable) -> GptOss:
    """A copy of the model whose expert weights are those of `source`, changed."""
    copy = jax.tree.map(lambda x: x, model)
    for layer, layer_of_source in zip(copy.layers, source.layers, strict=True):
        for name in _EXPERT_WEIGHTS:
            weight = getattr(layer_of_source.moe, name).get_value()
            getattr(layer.moe, name).set_value(change(weight))
    return copy
