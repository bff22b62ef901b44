"""A whole checkpoint: load, prefill, decode, and the process's peak memory."""

import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gptoss_jax.benchmarks.resident import most_resident
from gptoss_jax.checkpoint.load import load_model
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request


def measure(
    checkpoint: Path, prompt: int, tokens: int, dtype: str, mesh: Mesh | None
) -> dict[str, float]:
    """Prefills `prompt` random tokens and decodes `tokens`, greedily, batch of one.

    Over a mesh, or on one device where that is None.

    Returns:
      seconds, tokens a second (compilation apart), and the maximum resident set in bytes.
    """
    began = time.perf_counter()
    model = load_model(checkpoint, dtype=jnp.dtype(dtype), mesh=mesh)
    load_s = time.perf_counter() - began
    room = {"max_sequences": 1, "max_tokens": prompt + tokens, "reuse": False}
    engine = Engine(model, [], np.array([], np.int32), **room)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, prompt)
    for _ in engine.run([Request(ids.tolist(), tokens, temperature=0.0)]):
        pass
    timings = engine.timings
    return {
        "load_s": load_s,
        "compile_s": timings.compile_s,
        "prefill_tokens_per_second": timings.prefill_tokens_per_second,
        "decode_tokens_per_second": timings.decode_tokens_per_second,
        "max_resident_bytes": most_resident(),
    }
