"""Rotary positions with YaRN's frequency ramp."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.model.config import Config


def inverse_frequencies(config: Config) -> np.ndarray:
    """float32 [H/2] radians a position, blended by YaRN (arXiv 2309.00071, section 3.2).

    float32, in the order transformers computes it, after a correctly rounded power: at position
    131,071 one unit in the last place of a frequency is 0.008 radians.
    """
    one = np.float32(1)
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # NumPy's vectorised float32 power is off by units in the last place on some processors.
    periods = np.power(float(config.rope_theta), exponents.astype(float)).astype(np.float32)
    extrapolated = one / periods
    interpolated = one / (np.float32(config.rope_factor) * periods)
    low, high = ramp_bounds(config)
    positions = np.arange(config.head_dim // 2, dtype=np.float32)
    ramp = (positions - np.float32(low)) / np.float32(max(high - low, 1e-3))
    keep = one - np.clip(ramp, 0, 1)
    return (interpolated * (one - keep) + extrapolated * keep).astype(np.float32)


def ramp_bounds(config: Config) -> tuple[float, float]:
    """The frequency indices between which YaRN blends (gpt-oss does not round them)."""

    def index_of(rotations: float) -> float:
        period = config.rope_original_context / (rotations * 2 * math.pi)
        return config.head_dim * math.log(period) / (2 * math.log(config.rope_theta))

    low, high = index_of(config.rope_beta_fast), index_of(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, config.head_dim - 1)


def rotation(config: Config, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), float32 [B, T, 1, H/2], both times YaRN's attention factor 0.1 ln(factor) + 1."""
    factor = 0.1 * math.log(config.rope_factor) + 1.0
    frequencies = jnp.asarray(inverse_frequencies(config))
    angles = positions_BT.astype(jnp.float32)[..., None, None] * frequencies[None, None, None]
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (h, h + H/2) of each head, in float32; same shape and dtype as x."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
