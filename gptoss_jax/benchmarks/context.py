"""One long prompt at real attention widths: chunked prefill, then decoding, and what that holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.benchmarks.layers import random_model, small
from gptoss_jax.benchmarks.resident import most_resident
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request
from gptoss_jax.kernels import attention as kernels
from gptoss_jax.kernels.attention.eight_bit import EightBit
from gptoss_jax.model.config import Config
from gptoss_jax.model.rope import rotation
from gptoss_jax.model.transformer import GptOss

DECODED = 32


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of a context.

    Attributes:
      tokens: of the whole sequence.
      prefill_tokens_per_second: of the prompt.
      decode_ms: a token, at the context's end.
      cache_bytes: of pages and rings.
      max_resident_bytes: of the process, the check left out.
      error: of the first generated token's log-probabilities against attention of its one query
        over all keys at once, as a share of the logits' range; the largest of 20.
    """

    tokens: int
    prefill_tokens_per_second: float
    decode_ms: float
    cache_bytes: int
    max_resident_bytes: int
    error: float


def measure(preset: Config, tokens: int, dtype: str, cache: EightBit | None = None) -> Run:
    """A sequence of so many tokens through an engine.

    Args:
      preset: whose attention; one sliding and one full layer, few and narrow experts.
      tokens: of prompt and answer together.
      dtype: the compute dtype.
      cache: as `Engine` takes it.
    """
    config = dataclasses.replace(small(preset), num_experts=4, experts_per_token=2, expert_width=64)
    model = random_model(config, dtype)
    engine = Engine(
        model,
        [],
        np.array([], np.int32),
        max_sequences=1,
        max_tokens=tokens,
        reuse=False,
        cache=cache,
    )
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, tokens - DECODED).tolist()
    sequence = engine.submit(Request(prompt, DECODED, temperature=0.0, logprobs=20))
    while engine.busy:
        engine.step()
    timings = engine.timings
    resident = most_resident()
    told = sequence.logprobs[0].likeliest
    return Run(
        tokens=len(sequence.tokens),
        prefill_tokens_per_second=timings.prefill_tokens_per_second,
        decode_ms=1e3 / timings.decode_tokens_per_second,
        cache_bytes=engine.cache_bytes,
        max_resident_bytes=resident,
        error=_error(model, prompt, told),
    )


def _error(model: GptOss, prompt: list[int], told: list[tuple[int, float]]) -> float:
    logits_V = np.asarray(jax.jit(_last_logits)(model, jnp.asarray([prompt])), np.float64)
    shifted_V = logits_V - logits_V.max()
    expected_V = shifted_V - np.log(np.exp(shifted_V).sum())
    return max(abs(value - expected_V[id_]) for id_, value in told) / np.ptp(logits_V)


def _last_logits(model: GptOss, tokens_BT: jax.Array) -> jax.Array:
    """float32 [V] after the last token: of the last layer only that token's query is computed."""
    sliding, full = model.layers
    position_BT = jnp.arange(tokens_BT.shape[1])[None]
    angles = rotation(model.config, position_BT)
    x_BTD, _ = sliding(model.embedding_VD[...][tokens_BT].astype(model.dtype), angles)
    attention = full.attention
    q_BTNH, k_BKHT, v_BKHT = attention._project(full.attention_norm(x_BTD), angles)
    every = jnp.ones((1, 1, tokens_BT.shape[1]), bool)
    out = kernels.attend(q_BTNH[:, -1:], k_BKHT, v_BKHT, attention.sinks_N[...], every)
    x_B1D = x_BTD[:, -1:] + attention._output(out)
    x_B1D = x_B1D + full.moe(full.moe_norm(x_B1D))[0]
    return model.unembed(x_B1D)[0, 0]
