"""Low-rank adapters in the model: which weights have factors, and how they begin.

A weight with an adapter is a `LowRank` in its own parameter, so that whatever multiplies with it
applies the factors too; nothing else in the model knows of them.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gptoss_jax import sharding
from gptoss_jax.kernels.low_rank import LowRank
from gptoss_jax.model.adapter import Adapter
from gptoss_jax.model.transformer import GptOss, parameter


@dataclasses.dataclass(frozen=True)
class Trained:
    """An adapter with its values.

    Attributes:
      adapter: rank, scale and targets.
      values: float32 arrays by path, see `trained_shapes`.
    """

    adapter: Adapter
    values: Mapping[str, Any]

    @property
    def has_experts(self) -> bool:
        """Whether experts' weights have factors."""
        return not {"gate_up", "down"}.isdisjoint(self.adapter.targets)


def shapes(weight: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of `LowRank.a` and `LowRank.b` for a weight."""
    if len(weight.shape) == 2:
        outputs, inputs = weight.shape
        return (rank, inputs), (rank, outputs)
    experts, inputs, outputs = weight.shape
    return (experts, rank, inputs), (experts, rank, outputs)


def trained_shapes(model: GptOss, adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The shapes of what an adapter's training changes, by path.

    Paths are "layers.3.attention.w_q_AD.a" and ".b" of factors; of sinks the parameter's own.

    Args:
      model: without factors; `jax.ShapeDtypeStruct` leaves suffice.
      adapter: what has factors.

    Raises:
      UserError: as `Adapter.paths`.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path, target in adapter.paths(model.config.num_layers).items():
        weight: Any = parameter(model, path).get_value()
        if target == "sinks":
            found[path] = weight.shape
        else:
            found[f"{path}.a"], found[f"{path}.b"] = shapes(weight, adapter.rank)
    return found


def begin(model: GptOss, adapter: Adapter, seed: int) -> dict[str, jax.Array]:
    """float32 values as training begins: the model with them computes what it does without.

    Every `a` is uniform within 1 / sqrt(inputs) and every `b` zero, as in PEFT.
    """
    found = trained_shapes(model, adapter)
    keys = dict(zip(found, jax.random.split(jax.random.key(seed), len(found)), strict=True))

    def value(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith(".a"):
            bound = 1 / math.sqrt(shape[-1])
            return jax.random.uniform(keys[path], shape, minval=-bound, maxval=bound)
        if path.endswith(".b"):
            return jnp.zeros(shape)
        return parameter(model, path)[...].astype(jnp.float32)

    return {path: value(path, shape) for path, shape in found.items()}


def attach(model: GptOss, adapter: Adapter, values: Mapping[str, Any]) -> GptOss:
    """A copy of the model with an adapter.

    Args:
      model: without factors; its arrays are shared.
      adapter: the factors' scale.
      values: arrays by path, those of `trained_shapes`.
    """
    copy: GptOss = jax.tree.map(lambda x: x, model)
    for path, value in values.items():
        stem, _, field = path.rpartition(".")
        if field == "a":
            node = parameter(copy, stem)
            b = values[f"{stem}.b"]
            scale, dropout = adapter.scale, adapter.dropout
            node.set_value(LowRank(node.get_value(), value, b, None, scale, dropout))
        elif field != "b":
            parameter(copy, path).set_value(value)  # float32, as it was trained
    return copy


def with_dropout(model: GptOss, key: jax.Array) -> GptOss:
    """A copy whose factors drop inputs; devices with other rows drop others.

    A matrix's row by row. An expert's the same ones for all rows of the call, which costs its
    kernels nothing: what is dropped is missing from `a`. Devices with other experts drop others.
    """
    split = sharding.current(model.config)
    key = jax.random.fold_in(key, sharding.place(split.batch))
    numbers = itertools.count()

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, LowRank) or not leaf.dropout:
            return leaf
        own = jax.random.fold_in(key, next(numbers))
        if leaf.a.ndim == 2:
            return dataclasses.replace(leaf, key=own)
        experts, _, inputs = leaf.a.shape
        own = jax.random.fold_in(own, sharding.place(split.experts))
        kept = jax.random.bernoulli(own, 1 - leaf.dropout, (experts, 1, inputs))
        return dataclasses.replace(leaf, a=jnp.where(kept, leaf.a / (1 - leaf.dropout), 0.0))

    return jax.tree.map(one, model, is_leaf=lambda leaf: isinstance(leaf, LowRank))
