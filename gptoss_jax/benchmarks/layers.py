"""Two layers at real widths: milliseconds a layer for a decoded and for a prefilled token."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.benchmarks.one_sequence import endless, fresh_state
from gptoss_jax.inference.programs import Programs
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss, abstract

# One sliding and one full layer; a vocabulary too small to be seen in the time.
LAYERS = 2
VOCAB = 256


def small(preset: Config) -> Config:
    """The preset's widths and experts with two layers and a small vocabulary."""
    return dataclasses.replace(preset, num_layers=LAYERS, layer_types=(), vocab_size=VOCAB)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, one unmeasured call before."""
    call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(preset: Config, prompt: int, dtype: str, repeats: int = 5) -> dict[str, float]:
    """Ours on the default device.

    Args:
      preset: whose widths.
      prompt: tokens prefilled in one call, and held by the cache while decoding.
      dtype: the compute dtype.
      repeats: calls, of which the median counts; a decode call makes 16 tokens.

    Returns:
      {"decode_ms", "prefill_ms"}, a layer and token.
    """
    model = random_model(small(preset), dtype)
    programs, rules = Programs(model, None), endless(VOCAB)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (1, prompt)), jnp.int32)
    added = jnp.full((1,), prompt, jnp.int32)

    def prefill():
        state = fresh_state(programs, prompt + 512)
        return jax.block_until_ready(programs.prefill(model, tokens, added, state, rules))[0]

    state = prefill()
    steps = 16

    def decode():
        nonlocal state
        state, made, _ = programs.decode(model, state, rules, jnp.int32(steps))
        jax.block_until_ready(made)

    return {
        "decode_ms": seconds(decode, repeats) * 1e3 / LAYERS / steps,
        "prefill_ms": seconds(prefill, repeats) * 1e3 / LAYERS / prompt,
    }


def random_model(config: Config, dtype: str) -> GptOss:
    """Random weights of sane size: packed bytes as they come, everything else near 0.02."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        if leaf.dtype == jnp.uint8:
            low, high = (118, 122) if "scales" in name else (0, 256)
            return jnp.asarray(rng.integers(low, high, leaf.shape, np.uint8))
        mean = 1.0 if "scale_D" in name else 0.0
        return jnp.asarray(rng.normal(mean, 0.02, leaf.shape).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(fill, abstract(config, dtype=jnp.dtype(dtype)))
