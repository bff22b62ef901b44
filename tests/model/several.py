"""Eight adapters of different ranks, scales and targets for one small model."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptoss_jax.model import lora
from gptoss_jax.model.adapter import TARGETS, Adapter
from gptoss_jax.model.config import Config
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss

CONFIG = Config(
    num_layers=2,
    num_experts=8,
    experts_per_token=2,
    hidden_size=64,
    expert_width=96,
    num_heads=8,
    num_kv_heads=4,
    head_dim=12,
    vocab_size=160,
    sliding_window=8,
    rope_original_context=64,
    max_context=128,
    initializer_range=0.15,
)
COUNT, RANK = 8, 4
IN_SLOTS = tuple(target for target in TARGETS if target != "sinks")
KINDS = (
    Adapter(rank=4, alpha=6.0, targets=IN_SLOTS),
    Adapter(rank=2, alpha=5.0, rslora=True, targets=("q", "down")),
    Adapter(rank=3, alpha=4.0, targets=("k", "v", "o", "gate_up", "router"), layers=(1,)),
)


@functools.cache
def base(dtype: str = "float32") -> GptOss:
    return GptOss(CONFIG, dtype=jnp.dtype(dtype), param_dtype=jnp.float32, rngs=nnx.Rngs(1))


@functools.cache
def trained(number: int) -> Trained:
    """As far from the base as from each other."""
    adapter = KINDS[number % len(KINDS)]
    rng = np.random.default_rng(number)
    shapes = lora.trained_shapes(base(), adapter)
    values = {p: rng.normal(0, 0.2, shape).astype(np.float32) for p, shape in shapes.items()}
    return Trained(adapter, values)


def alone(number: int | None, dtype: str = "float32") -> GptOss:
    """The model with one adapter, as `load(adapter=)` gives it, or without."""
    if number is None:
        return base(dtype)
    one = trained(number)
    values = {path: jnp.asarray(value) for path, value in one.values.items()}
    return lora.attach(base(dtype), one.adapter, values)


def beside(dtype: str = "float32") -> GptOss:
    """The model with all eight: slot s has `trained(s - 1)`, its ranks from (s - 1) RANK on."""
    room = Adapter(COUNT * RANK, alpha=1.0, targets=IN_SLOTS)
    values = {}
    for path, shape in lora.trained_shapes(base(), room).items():
        whole = np.zeros(shape, np.float32)
        for number in range(COUNT):
            part = trained(number).values.get(path)
            if part is not None:
                first = number * RANK
                whole[..., first : first + part.shape[-2], :] = part
        values[path] = jnp.asarray(whole)
    return lora.attach(base(dtype), room, values)
