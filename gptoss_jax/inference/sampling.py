"""Choosing the next token, on the device."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.inference.requests import Request

# Of float32; what is colder than its least normal number is greedy.
_COLDEST, _HOTTEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How each sequence of a batch is sampled.

    Attributes:
      temperature_B: float32; 0 is greedy.
      top_p_B: float32; the smallest set of tokens that holds this much probability (1: all).
      top_k_B: int32; the k most likely tokens (0: all).
      min_p_B: float32; tokens at least this fraction as likely as the likeliest (0: all).
      repetition_penalty_B: float32; see `Tally.adjusted`, also for the next two (1: none).
      presence_penalty_B: float32 (0: none).
      frequency_penalty_B: float32 (0: none).
      seed_B: uint32; with the token's position, all that its random numbers depend on.
    """

    temperature_B: jax.Array
    top_p_B: jax.Array
    top_k_B: jax.Array
    min_p_B: jax.Array
    repetition_penalty_B: jax.Array
    presence_penalty_B: jax.Array
    frequency_penalty_B: jax.Array
    seed_B: jax.Array

    @staticmethod
    def of(requests: Sequence[Request | None]) -> "Sampling":
        """As each row's request asks; NumPy arrays, rows without one greedy."""

        def column(name: str, dtype: type, none: float) -> np.ndarray:
            values = [none if r is None else getattr(r, name) for r in requests]
            return np.asarray(values, dtype)

        temperature_B = np.minimum(column("temperature", np.float64, 0.0), _HOTTEST)
        temperature_B[temperature_B < _COLDEST] = 0
        return Sampling(
            temperature_B.astype(np.float32),  # pyright: ignore[reportArgumentType]
            column("top_p", np.float32, 1.0),  # pyright: ignore[reportArgumentType]
            column("top_k", np.int32, 0),  # pyright: ignore[reportArgumentType]
            column("min_p", np.float32, 0.0),  # pyright: ignore[reportArgumentType]
            column("repetition_penalty", np.float32, 1.0),  # pyright: ignore[reportArgumentType]
            column("presence_penalty", np.float32, 0.0),  # pyright: ignore[reportArgumentType]
            column("frequency_penalty", np.float32, 0.0),  # pyright: ignore[reportArgumentType]
            column("seed", np.uint32, 0),  # pyright: ignore[reportArgumentType]
        )


def sample(
    logits_BV: jax.Array, sampling: Sampling, position_B: jax.Array, banned_BV: jax.Array
) -> jax.Array:
    """int32 [B] tokens from float32 logits [B, V].

    Args:
      logits_BV: unnormalised scores.
      sampling: see there. Filters apply to the tempered distribution: top-k, then top-p over what
        is left, then min-p.
      position_B: the position each sampled token will have.
      banned_BV: bool, ids that must not be chosen; or [1, V], the same for every row.
    """
    allowed_BV = jnp.where(banned_BV, -jnp.inf, logits_BV)
    greedy_B = jnp.argmax(allowed_BV, axis=-1)
    greedy = sampling.temperature_B == 0

    def drawn() -> jax.Array:
        # Below the best score none overflows upwards, however low the temperature.
        below_BV = logits_BV - allowed_BV.max(axis=-1, keepdims=True)
        scaled_BV = below_BV / jnp.where(greedy, 1.0, sampling.temperature_B)[:, None]
        # After the division: minus infinity over a huge temperature is not a number.
        scaled_BV = jnp.where(banned_BV, -jnp.inf, scaled_BV)
        # Without any filter a sort of the vocabulary is saved.
        filters_B = (sampling.top_p_B < 1) | (sampling.top_k_B > 0) | (sampling.min_p_B > 0)
        scaled_BV = jax.lax.cond(filters_B.any(), _filtered, lambda x, _: x, scaled_BV, sampling)
        noise_BV = jax.vmap(functools.partial(_noise, logits_BV.shape[-1]))(
            sampling.seed_B, position_B
        )
        return jnp.where(greedy, greedy_B, jnp.argmax(scaled_BV + noise_BV, axis=-1))

    # Without a row that is drawn a random number for each token of the vocabulary is saved.
    return jax.lax.cond(greedy.all(), lambda: greedy_B, drawn).astype(jnp.int32)


def _noise(size: int, seed: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (size,))


def _filtered(scaled_BV: jax.Array, sampling: Sampling) -> jax.Array:
    return jnp.where(scaled_BV >= _threshold(scaled_BV, sampling), scaled_BV, -jnp.inf)


def _threshold(scaled_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """float32 [B, 1]: the least score that every filter keeps (ties are kept)."""
    sorted_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    size = sorted_BV.shape[-1]
    rank_BV = jnp.arange(size)[None]
    top_k_B = jnp.where(sampling.top_k_B > 0, sampling.top_k_B, size)
    kept_BV = rank_BV < top_k_B[:, None]
    p_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
    # A token stays while those before it do not reach top_p, so the first always does.
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    top_p_B = jnp.where(sampling.top_p_B < 1, sampling.top_p_B, jnp.inf)
    kept_BV &= (before_BV < top_p_B[:, None]) | (rank_BV == 0)
    kept_BV &= p_BV >= sampling.min_p_B[:, None] * p_BV[:, :1]
    return jnp.where(kept_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
