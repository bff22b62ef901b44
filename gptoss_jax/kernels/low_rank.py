"""A weight with a low-rank addition beside it (LoRA, arXiv 2106.09685), applied without merging."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptoss_jax.kernels import precision_of
from gptoss_jax.mxfp4 import MXFP4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A frozen weight and its factors, each of them [..., r, width].

    The rank comes first of the two axes because accelerators pad the last to 128 and the one before
    it to 8: [E, D, r] would take sixteen times its bytes.

    Attributes:
      base: a matrix [outputs O, inputs D], or experts' weights [E, K, N], packed or a float array.
      a: [r, D] or [E, r, K], what inputs are multiplied with.
      b: [r, O] or [E, r, N], what that is multiplied with.
      key: of the dropout of what goes into `a`; None: no dropout.
      scale: of the addition.
      dropout: the share that is dropped where there is a key.
    """

    base: jax.Array | MXFP4
    a: jax.Array
    b: jax.Array
    key: jax.Array | None = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

    def addition(self, x_RD: jax.Array) -> jax.Array:
        """float32 [R, O]: what the factors of a matrix add for rows in the compute dtype."""
        if self.key is not None:
            kept = jax.random.bernoulli(self.key, 1 - self.dropout, x_RD.shape)
            x_RD = jnp.where(kept, x_RD / (1 - self.dropout), 0).astype(x_RD.dtype)
        return self.scale * matmul(matmul(x_RD, self.a.T).astype(x_RD.dtype), self.b)


Weight = jax.Array | LowRank


def matmul(x_RK: jax.Array, w_KN: jax.Array) -> jax.Array:
    """float32 [R, N], multiplied in x's dtype."""
    w_KN = w_KN.astype(x_RK.dtype)
    precision = precision_of(x_RK.dtype)
    return jnp.dot(x_RK, w_KN, precision=precision, preferred_element_type=jnp.float32)


def base_of(weight):
    """The weight itself, of one with factors the frozen one."""
    return weight.base if isinstance(weight, LowRank) else weight


def with_outputs(change: Callable[[jax.Array, int], jax.Array], weight: Weight) -> Weight:
    """A matrix changed along its outputs: `change` gets what has them, and along which axis."""
    if not isinstance(weight, LowRank):
        return change(weight, 0)
    b, base = change(weight.b, 1), change(weight.base, 0)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(weight, base=base, b=b)


def with_inputs(change: Callable[[jax.Array], jax.Array], weight: Weight) -> Weight:
    """A matrix changed along its inputs, the last axis of what `change` gets."""
    if not isinstance(weight, LowRank):
        return change(weight)
    a, base = change(weight.a), change(weight.base)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(weight, base=base, a=a)
