"""A small model of noise, and its engine, for the tests of this folder."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from gptoss_jax import sharding
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request, Sequence
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss

CONFIG = Config(
    num_layers=2,
    num_experts=6,
    experts_per_token=2,
    hidden_size=64,
    expert_width=96,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=160,
    sliding_window=8,
    rope_original_context=64,
    max_context=96,
)


def small_model() -> GptOss:
    model = GptOss(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(1))
    # Large enough that the argmax is not a matter of rounding.
    return jax.tree.map(lambda x: x * 12 if x.dtype == jnp.float32 and x.ndim == 2 else x, model)


def engine_of(model: GptOss, stops=(), banned=(), **options) -> Engine:
    options = {"max_sequences": 2} | options
    return Engine(model, stops, np.asarray(banned, np.int32), **options)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist()


def answers(engine: Engine, asked: list[Request]) -> list[list[int]]:
    made = [[] for _ in asked]
    for index, tokens in engine.run(asked):
        made[index] += tokens
    return made


def full_logits(model, ids: list[int]):
    padded = jnp.asarray([ids + [0] * (CONFIG.max_context - len(ids))])
    return jax.jit(lambda model, tokens: model(tokens))(model, padded)[0, : len(ids)]


def finished(engine: Engine, asked: list[Request]) -> list[Sequence]:
    sequences = [engine.submit(request) for request in asked]
    while engine.busy:
        engine.step()
    return sequences


def over_mesh(model: GptOss, shape: dict[str, int]) -> GptOss:
    mesh = sharding.make_mesh(CONFIG, shape, jax.devices())
    specs = sharding.parameter_specs(model, sharding.split_of(CONFIG, dict(mesh.shape)))
    return jax.device_put(model, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))


def displacements(engine: Engine) -> list[Sequence]:
    """A list to which those are added that are displaced from now on."""
    displaced, displace = [], engine._scheduler._displace

    def noted(sequence: Sequence) -> None:
        displaced.append(sequence)
        displace(sequence)

    engine._scheduler._displace = noted
    return displaced
