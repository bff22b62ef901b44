"""The training step: gradients over microbatches, one update, compiled once."""

import collections
import dataclasses
import functools
import math
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
from gptoss_jax.kernels.compiler import compiler_options
from gptoss_jax.model import lora
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss, abstract
from gptoss_jax.training import objective, optimizer, preference, spread
from gptoss_jax.training.packing import Batch
from gptoss_jax.training.qat import pack, unpacked
from gptoss_jax.training.settings import Settings, adapter_of

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
    """The functions of a run: `init` or `begin_from`, `train_step`, `eval_step`, all to be jitted.

    With an adapter in the config the adapter alone is trained, and every function is given the base
    beside the state, a model that stays as it is.

    Over a mesh the loss is one `shard_map`, and its gradient outside of it sums what devices share.
    Not done here: data, compiling, saving.

    Attributes:
      config: the training config.
      sizes: the network's.
      mesh: None for one device.
      adapter: what is trained; None: everything.
      paths: of what is trained.
    """

    def __init__(
        self,
        config: Settings,
        sizes: Config,
        mesh: Mesh | None = None,
        base: GptOss | None = None,
    ):
        """Of a network.

        Args:
          config: the training config.
          sizes: of the network.
          mesh: None for one device.
          base: with an adapter, the model it is for; `jax.ShapeDtypeStruct` leaves suffice.
        """
        self.config = config
        self.sizes = sizes
        self.mesh = mesh
        self.adapter = adapter_of(config)
        self._split = sharding.split_of(sizes, dict(mesh.shape) if mesh else {})
        self._dtype = jnp.dtype(config.dtype)
        like = abstract(sizes, dtype=self._dtype, param_dtype=jnp.float32, packed_experts=False)
        leaves, self._treedef = tree_flatten_with_path(like)
        self._shapes = {spread.dotted(path): leaf.shape for path, leaf in leaves}
        if self.adapter is not None:
            assert base is not None  # an adapter is one for something
            self._shapes = lora.trained_shapes(base, self.adapter)
        self.paths = list(self._shapes)
        self._optimizer = optimizer.optimizer(config, self.paths)
        self._schedule = optimizer.schedule(config)
        self._score: objective.Score = objective.learned_tokens
        if config.data.kind == "pairs":
            self._score = functools.partial(preference.pairs, beta=config.preference.beta)

    def described(self) -> list[str]:
        """What is trained, a line a target of the adapter."""
        if self.adapter is None:
            return []
        counts: collections.Counter[str] = collections.Counter()
        targets = self.adapter.paths(self.sizes.num_layers)
        for path, shape in self._shapes.items():
            stem = path.removesuffix(".a").removesuffix(".b")
            counts[targets[stem]] += math.prod(shape)
        lines = [f"trained: {target:12} {n:>13,} parameters" for target, n in counts.items()]
        return [*lines, f"trained: {'all':12} {counts.total():>13,} parameters"]

    def init(self) -> State:
        """The state before the first step of a model that begins with nothing, from the seed."""
        model = GptOss(
            self.sizes,
            dtype=self._dtype,
            param_dtype=jnp.float32,
            packed_experts=False,
            rngs=nnx.Rngs(self.config.seed),
        )
        return self._state(dict(zip(self.paths, jax.tree.leaves(model), strict=True)))

    def begin_from(self, base: GptOss) -> State:
        """The state before the first step on a base: its weights in float32, or a new adapter."""
        if self.adapter is not None:
            return self._state(lora.begin(base, self.adapter, self.config.seed))
        leaves = (x.astype(jnp.float32) for x in jax.tree.leaves(unpacked(base)))
        return self._state(dict(zip(self.paths, leaves, strict=True)))

    def _state(self, params: Params) -> State:
        return State(params, self._optimizer.init(params), jnp.zeros((), jnp.int32))

    def abstract_state(self) -> State:
        """`jax.ShapeDtypeStruct` leaves like those of the state, with where they are to lie."""
        params = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in self._shapes.items()
        }
        like = jax.eval_shape(self._state, params)
        where = spread.state_shardings(like, self.sizes, self.mesh)
        return jax.tree.map(
            lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), like, where
        )

    def model(self, params: Params, base: GptOss | None = None) -> GptOss:
        """The network with these parameters."""
        if self.adapter is not None:
            assert base is not None
            return lora.attach(base, self.adapter, params)
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

    def train_step(
        self, state: State, base: GptOss | None, batches: Batch, *, qat: bool
    ) -> tuple[State, Metrics]:
        """One update from microbatches [A, B, T].

        The gradient is that of the mean over all the trained tokens, or pairs, of all microbatches,
        however unevenly these hold them.

        Returns:
          (the next state; `summary` of the step, with "gradient_norm" before clipping,
          "learning_rate", and "finite": whether all the next state is).
        """
        step_key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)

        def loss(params: Params, batch: Batch, number: jax.Array):
            key = jax.random.fold_in(step_key, number) if self._drops else None
            return self._model_loss(self.model(params, base), batch, qat, key)

        def add(total, numbered):
            (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, *numbered)
            return jax.tree.map(jnp.add, total, (gradient, _weighted(metrics))), None

        numbered = batches, jnp.arange(len(batches.tokens_BT))
        first = jax.tree.map(lambda leaf: leaf[0], numbered)
        like = jax.eval_shape(lambda: loss(state.params, *first)[1])
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        zeros = (jax.tree.map(jnp.zeros_like, state.params), nothing)
        (gradient, metrics), _ = jax.lax.scan(add, zeros, numbered)
        weight = jnp.maximum(metrics["weight_sum"], 1.0)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, new = self._optimizer.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(gradient)
            rate = self._schedule(state.step)
        shown = summary(metrics) | {"gradient_norm": norm, "learning_rate": rate}
        shown["finite"] = _all_finite((params, new))
        return State(params, new, state.step + 1), shown  # pyright: ignore[reportArgumentType]

    @property
    def _drops(self) -> bool:
        return self.adapter is not None and self.adapter.dropout > 0

    def eval_step(
        self, params: Params, base: GptOss | None, batch: Batch, *, qat: bool = False
    ) -> Metrics:
        """The batch's metrics as sums over what is trained on; add those of batches together."""
        return self.eval_model(self.model(params, base), batch, qat=qat)

    def eval_model(self, model: GptOss, batch: Batch, *, qat: bool = False) -> Metrics:
        """As `eval_step` of any model of these sizes; packed experts are used as they are."""
        return _weighted(self._model_loss(model, batch, qat)[1])

    def log_probabilities(self, model: GptOss, batch: Batch) -> jax.Array:
        """Of the learned targets under any model of these sizes, float32 [B, T], else 0."""
        if self.mesh is None:
            return objective.log_probabilities(model, batch)
        rows = sharding.batch_spec(self._split)
        over = jax.shard_map(
            objective.log_probabilities,
            mesh=self.mesh,
            in_specs=(sharding.parameter_specs(model, self._split), rows),
            out_specs=rows,
            check_vma=False,
        )
        return over(model, batch)

    def _model_loss(self, model: GptOss, batch: Batch, qat: bool, key: jax.Array | None = None):
        def loss(model: GptOss, batch: Batch, key: jax.Array | None):
            return objective.loss(
                model if key is None else lora.with_dropout(model, key),
                batch,
                balance_coefficient=self.config.balance_coefficient,
                qat=qat,
                remat=self.config.remat,
                score=self._score,
            )

        if self.mesh is None:
            return loss(model, batch, key)
        parameters = sharding.parameter_specs(model, self._split)
        specs = (parameters, sharding.batch_spec(self._split), P())
        # What is the same everywhere in the results is so by the code's own sums.
        over = jax.shard_map(
            loss, mesh=self.mesh, in_specs=specs, out_specs=(P(), P()), check_vma=False
        )
        return over(model, batch, key)


def _all_finite(tree: Any) -> jax.Array:
    """Whether no number is NaN or infinite, bool []; one pass over what the update has written."""
    each = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
    return jnp.stack(each).all()


def _weighted(metrics: Metrics) -> Metrics:
    """Means over a batch become sums, so that batches add up."""
    weight = metrics["weight_sum"]
    means = {name: value * weight for name, value in metrics.items() if not name.endswith("_sum")}
    return metrics | means


def summary(sums: Metrics) -> Metrics:
    """Means over the trained tokens or pairs, from `_weighted` metrics added up."""
    weight = jnp.maximum(sums["weight_sum"], 1.0)
    means = {
        name.removesuffix("_sum"): value / weight
        for name, value in sums.items()
        if name != "weight_sum"
    }
    means["accuracy"] = means.pop("correct")
    means["expert_use_least"] = means["expert_use_LE"].min()
    means["expert_use_most"] = means["expert_use_LE"].max()
    return means | {"weight_sum": sums["weight_sum"]}


def in_parts(batch: Batch, parts: int) -> Batch:
    """Rows [B, T] as microbatches [parts, B / parts, T]."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, x.shape[-1]), batch)


def compiled(function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> Callable:
    """The program of a function for these arguments; another shape is an error, not a recompile."""
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    return lowered.compile(compiler_options=compiler_options(jax.default_backend()))
