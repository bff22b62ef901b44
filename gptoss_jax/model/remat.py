"""Layers whose backward pass computes them again, one at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero


def remat(run: Callable) -> Callable:
    """`run(layer, x, …)` that keeps its arguments and nothing else for the backward pass.

    The gradients of a layer's own parameters are complete before the layer before it is gone back
    through. Nothing waits for those of an adapter but the optimizer: XLA:TPU puts them off, and
    holds the activations they need, of eleven layers at once in 20b.
    """
    checkpointed = jax.checkpoint(run)

    def rematted(layer: Any, x: jax.Array, *rest: Any) -> Any:
        return checkpointed(*_together((layer, x)), *rest)

    return rematted


def _together(tree: Any) -> Any:
    """The tree, whose cotangents are all there before one of them is used."""
    leaves, structure = jax.tree.flatten(tree)
    inexact = [n for n, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    for n, leaf in zip(inexact, _barrier(*(leaves[n] for n in inexact)), strict=True):
        leaves[n] = leaf
    return jax.tree.unflatten(structure, leaves)


@jax.custom_vjp
def _barrier(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return arrays


def _forward(*arrays: Any) -> tuple[tuple[jax.Array, ...], None]:
    return tuple(array.value for array in arrays), None


def _backward(_: None, cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
    # What is frozen has none, and is to get no array of zeros.
    frozen = [isinstance(one, SymbolicZero) for one in cotangents]
    wanted = [one for one, zero in zip(cotangents, frozen, strict=True) if not zero]
    tied = iter(lax.optimization_barrier(wanted))
    return tuple(None if zero else next(tied) for zero in frozen)


_barrier.defvjp(_forward, _backward, symbolic_zeros=True)
