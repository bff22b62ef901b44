"""A small model, and adapters of it with random factors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptoss_jax.model import lora
from gptoss_jax.model.adapter import TARGETS, Adapter
from gptoss_jax.model.config import Config
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss

# Every pair of widths differs, but for a shape whose experts are as wide as the model, and one
# whose gate_up and down have as many outputs.
CONFIG = Config(
    num_layers=2,
    num_experts=4,
    experts_per_token=2,
    hidden_size=96,
    expert_width=64,
    num_heads=6,
    num_kv_heads=2,
    head_dim=20,
    vocab_size=301,
    sliding_window=16,
    rope_original_context=64,
    rope_factor=8.0,
    max_context=512,
    initializer_range=0.1,
)
SQUARE = dataclasses.replace(CONFIG, expert_width=96)
DOUBLE = dataclasses.replace(CONFIG, hidden_size=128)
IN_PEFT = tuple(target for target in TARGETS if target != "sinks")
IDS = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (1, 40))


@functools.cache
def base(config: Config = CONFIG) -> GptOss:
    float32 = jnp.dtype("float32")
    return GptOss(config, dtype=float32, param_dtype=float32, rngs=nnx.Rngs(3))


def trained(config: Config = CONFIG, **fields) -> Trained:
    adapter = Adapter(**{"rank": 3, "alpha": 5.0, "targets": IN_PEFT} | fields)
    rng = np.random.default_rng(0)
    shapes = lora.trained_shapes(base(config), adapter)
    values = {p: rng.normal(0, 0.2, shape).astype(np.float32) for p, shape in shapes.items()}
    return Trained(adapter, values)


def logits(model: GptOss) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, ids: model(ids))(model, jnp.asarray(IDS, jnp.int32)))


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours - theirs).max() <= 1e-5 * np.ptp(theirs)
