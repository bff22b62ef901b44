"""A weight with a low-rank addition beside it (LoRA, arXiv 2106.09685), applied without merging."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from gptoss_jax.kernels import precision_of
from gptoss_jax.mxfp4 import MXFP4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which of the adapters that lie along the rank of a `LowRank` each row takes; R is any axes.

    Attributes:
      slot_R: int32; slot s, from 1, has the s-th `rank` of the factors; 0: none of them.
      scale_R: float32, of the addition; 0 where the slot is.
      rank: of a slot.
    """

    slot_R: jax.Array
    scale_R: jax.Array
    rank: int = dataclasses.field(metadata={"static": True})

    def repeated(self, times: int) -> "Chosen":
        """For so many rows of each one."""
        return jax.tree.map(lambda x: jnp.repeat(x, times), self)

    def own(self, h_Rr: jax.Array) -> jax.Array:
        """What the first factors of all slots gave, 0 where it is not of the row's own."""
        slot_r = 1 + jnp.arange(h_Rr.shape[-1]) // self.rank
        slot_1r = jnp.expand_dims(slot_r, range(self.slot_R.ndim))
        return jnp.where(self.slot_R[..., None] == slot_1r, h_Rr, 0)


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
      scale: of the addition, where there are no `rows` to say it.
      dropout: the share that is dropped where there is a key.
      rows: which of several adapters each row takes, their ranks after another's in r; None: r is
        one adapter's, every row's.
    """

    base: jax.Array | MXFP4
    a: jax.Array
    b: jax.Array
    key: jax.Array | None = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    rows: Chosen | None = None

    def addition(self, x_RD: jax.Array) -> jax.Array:
        """float32 [R, O]: what the factors of a matrix add for rows in the compute dtype."""
        if self.key is not None:
            kept = jax.random.bernoulli(self.key, 1 - self.dropout, x_RD.shape)
            x_RD = jnp.where(kept, x_RD / (1 - self.dropout), 0).astype(x_RD.dtype)
        return self.through(x_RD, self.a, self.b)

    def through(self, x_RK: jax.Array, a_rK: jax.Array, b_rN: jax.Array) -> jax.Array:
        """float32 [R, N]: rows through two factors, those of the matrix or of one expert."""
        h_Rr = matmul(x_RK, a_rK.T)
        if self.rows is None:
            return self.scale * matmul(h_Rr.astype(x_RK.dtype), b_rN)
        h_Rr = self.rows.own(h_Rr)
        return self.rows.scale_R[:, None] * matmul(h_Rr.astype(x_RK.dtype), b_rN)


Weight = jax.Array | LowRank
Tree = TypeVar("Tree")


def for_block(weight: Weight, number: jax.Array) -> Weight:
    """The weight for one of several blocks of rows, each of which drops others."""
    if not isinstance(weight, LowRank) or weight.key is None:
        return weight
    return dataclasses.replace(weight, key=jax.random.fold_in(weight.key, number))


def for_rows(tree: Tree, rows: Chosen | None) -> Tree:
    """A tree of weights, those with factors told which adapter each row takes."""
    if rows is None:
        return tree
    return _factored(lambda weight: dataclasses.replace(weight, rows=rows), tree)


def at_rows(take: Callable[[jax.Array], jax.Array], tree: Tree) -> Tree:
    """A tree of weights for other rows: `take` picks theirs out of an array of all rows."""

    def one(weight: LowRank) -> LowRank:
        return dataclasses.replace(weight, rows=jax.tree.map(take, weight.rows))

    return _factored(one, tree)


def _factored(change: Callable[[LowRank], LowRank], tree: Tree) -> Tree:
    def one(leaf):
        return change(leaf) if isinstance(leaf, LowRank) else leaf

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, LowRank))


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
