"""Quantisation-aware training: experts that are trained as MXFP4 will hold them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptoss_jax import mxfp4
from gptoss_jax.model.transformer import GptOss, abstract

_EXPERT_WEIGHTS = ("w_gate_up_EDF", "w_down_EFD")


def through_mxfp4(model: GptOss) -> GptOss:
    """The model with each expert weight as its encoding reads; gradients pass straight through.

    The gradient in a weight is that in its rounded value (Bengio et al., arXiv 1308.3432), so that
    float32 master weights move by steps smaller than the grid's.
    """

    def round_straight_through(w: jax.Array) -> jax.Array:
        rounded = mxfp4.decode(mxfp4.encode(w), w.dtype)
        return w + jax.lax.stop_gradient(rounded - w)

    return _with_experts(model, round_straight_through)


def pack(model: GptOss, dtype: jnp.dtype = jnp.bfloat16) -> GptOss:
    """The model to be shipped: packed experts, everything else in `dtype`.

    Args:
      model: with float experts.
      dtype: of the parameters that are no expert weights, and of the computing.
    """
    like = abstract(model.config, dtype=dtype, param_dtype=dtype)
    leaves, treedef = jax.tree.flatten(like)
    encoded = jax.tree.leaves(_with_experts(model, jax.jit(mxfp4.encode)))
    cast = [x.astype(want.dtype) for want, x in zip(leaves, encoded, strict=True)]
    return jax.tree.unflatten(treedef, cast)


def _with_experts(model: GptOss, change: Callable) -> GptOss:
    """A copy of the model with every expert weight changed; the model is left as it was."""
    copy = jax.tree.map(lambda x: x, model)
    for layer in copy.layers:
        for name in _EXPERT_WEIGHTS:
            param = getattr(layer.moe, name)
            param.set_value(change(param.get_value()))
    return copy
