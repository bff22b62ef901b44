"""The training step: gradients over microbatches, one update, compiled once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import tree_flatten_with_path, tree_unflatten

from gptoss_jax import sharding
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss, abstract
from gptoss_jax.training import objective, optimizer, spread
from gptoss_jax.training.packing import Batch
from gptoss_jax.training.qat import pack
from gptoss_jax.training.settings import Settings

Params = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a step changes.

    Attributes:
      params: float32 parameters by dotted path, "layers.3.attention.w_q_AD".
      optimizer: optax's state.
      step: int32, how many steps are done.
    """

    params: Params
    optimizer: Any
    step: jax.Array


class Trainer:
    """The functions of a run: `init`, `train_step`, `eval_step`, all to be jitted.

    Over a mesh the loss is one `shard_map`, and its gradient outside of it sums what devices share.
    Not done here: data, compiling, saving.

    Attributes:
      config: the training config.
      sizes: the network's.
      mesh: None for one device.
    """

    def __init__(self, config: Settings, sizes: Config, mesh: Mesh | None = None):
        self.config = config
        self.sizes = sizes
        self.mesh = mesh
        self._split = sharding.split_of(sizes, dict(mesh.shape) if mesh else {})
        self._dtype = jnp.dtype(config.dtype)
        like = abstract(sizes, dtype=self._dtype, param_dtype=jnp.float32, packed_experts=False)
        leaves, self._treedef = tree_flatten_with_path(like)
        self.paths = [spread.dotted(path) for path, _ in leaves]
        self._optimizer = optimizer.optimizer(config, self.paths)
        self._schedule = optimizer.schedule(config)

    def init(self) -> State:
        """The state before the first step, from the config's seed."""
        model = GptOss(
            self.sizes,
            dtype=self._dtype,
            param_dtype=jnp.float32,
            packed_experts=False,
            rngs=nnx.Rngs(self.config.seed),
        )
        params = dict(zip(self.paths, jax.tree.leaves(model), strict=True))
        return State(params, self._optimizer.init(params), jnp.zeros((), jnp.int32))

    def abstract_state(self) -> State:
        """`jax.ShapeDtypeStruct` leaves like those of `init`, with where they are to lie."""
        like = jax.eval_shape(self.init)
        where = spread.state_shardings(like, self.sizes, self.mesh)
        return jax.tree.map(
            lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), like, where
        )

    def model(self, params: Params) -> GptOss:
        """The network with these parameters."""
        return tree_unflatten(self._treedef, [params[path] for path in self.paths])

    def packed(self, params: Params) -> GptOss:
        """The model to be shipped, `qat.pack`."""
        model = self.model(params)
        if self.mesh is None:
            return pack(model)
        specs = sharding.parameter_specs(model, self._split)
        packed_specs = sharding.parameter_specs(jax.eval_shape(pack, model), self._split)
        over = jax.shard_map(
            pack, mesh=self.mesh, in_specs=(specs,), out_specs=packed_specs, check_vma=False
        )
        return jax.jit(over)(model)

    def train_step(self, state: State, batches: Batch, *, qat: bool) -> tuple[State, Metrics]:
        """One update from microbatches [A, B, T].

        The gradient is that of the mean over all the trained tokens of all microbatches, however
        unevenly these hold them.

        Returns:
          (the next state; `summary` of the step, with "gradient_norm" before clipping and
          "learning_rate").
        """

        def add(total, batch):
            (_, metrics), gradient = jax.value_and_grad(self._loss, has_aux=True)(
                state.params, batch, qat
            )
            return jax.tree.map(jnp.add, total, (gradient, _weighted(metrics))), None

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        like = jax.eval_shape(lambda: self._loss(state.params, first, qat)[1])
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        zeros = (jax.tree.map(jnp.zeros_like, state.params), nothing)
        (gradient, metrics), _ = jax.lax.scan(add, zeros, batches)
        weight = jnp.maximum(metrics["weight_sum"], 1.0)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, new = self._optimizer.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(gradient)
            rate = self._schedule(state.step)
        shown = summary(metrics) | {"gradient_norm": norm, "learning_rate": rate}
        return State(params, new, state.step + 1), shown  # pyright: ignore[reportArgumentType]

    def eval_step(self, params: Params, batch: Batch, *, qat: bool) -> Metrics:
        """The batch's metrics as sums over its trained tokens; add those of batches together."""
        return self.eval_model(self.model(params), batch, qat=qat)

    def eval_model(self, model: GptOss, batch: Batch, *, qat: bool = False) -> Metrics:
        """As `eval_step` of any model of these sizes; packed experts are used as they are."""
        return _weighted(self._model_loss(model, batch, qat)[1])

    def _loss(self, params: Params, batch: Batch, qat: bool):
        return self._model_loss(self.model(params), batch, qat)

    def _model_loss(self, model: GptOss, batch: Batch, qat: bool):
        loss = functools.partial(
            objective.loss,
            balance_coefficient=self.config.balance_coefficient,
            qat=qat,
            remat=self.config.remat,
        )
        if self.mesh is None:
            return loss(model, batch)
        specs = (sharding.parameter_specs(model, self._split), sharding.batch_spec(self._split))
        # What is the same everywhere in the results is so by the code's own sums.
        over = jax.shard_map(
            loss, mesh=self.mesh, in_specs=specs, out_specs=(P(), P()), check_vma=False
        )
        return over(model, batch)


def _weighted(metrics: Metrics) -> Metrics:
    """Means over a batch's tokens become sums, so that batches add up."""
    weight = metrics["weight_sum"]
    means = {name: value * weight for name, value in metrics.items() if not name.endswith("_sum")}
    return metrics | means


def summary(sums: Metrics) -> Metrics:
    """Means over the trained tokens, from `_weighted` metrics added up."""
    weight = jnp.maximum(sums["weight_sum"], 1.0)
    means = {name: value / weight for name, value in sums.items() if name != "weight_sum"}
    means["loss"] = means.pop("loss_sum")
    means["accuracy"] = means.pop("correct_sum")
    means["expert_use_least"] = means["expert_use_LE"].min()
    means["expert_use_most"] = means["expert_use_LE"].max()
    return means | {"weight_sum": sums["weight_sum"]}


def in_parts(batch: Batch, parts: int) -> Batch:
    """Rows [B, T] as microbatches [parts, B / parts, T]."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, x.shape[-1]), batch)


def compiled(function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> Callable:
    """The program of a function for these arguments; another shape is an error, not a recompile."""
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
