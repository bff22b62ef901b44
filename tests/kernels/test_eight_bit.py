"""Keys and values in 8 bits: as near as the formats are, and attended to as what they hold."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gptoss_jax.kernels.attention import eight_bit, xla
from gptoss_jax.kernels.attention.eight_bit import Scaled, dtype_of

pytestmark = pytest.mark.fast


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Positions from a thousandth to a thousand in size, one of them nothing but zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10 ** rng.uniform(-3, 3, (*shape[:2], 1, shape[-1]))
    x[0, 0, :, 0] = 0
    return x.astype(np.float32)


def values_of(scaled: Scaled) -> np.ndarray:
    x = np.asarray(scaled.x_PKHS)
    x = x.view(ml_dtypes.float8_e4m3fn) if x.dtype == np.uint8 else x
    return x.astype(np.float32) * np.asarray(scaled.scale_PK1S)


@pytest.mark.parametrize("kind", eight_bit.EIGHT_BIT)
def test_values_are_the_nearest_of_the_format(kind):
    x = drawn(2, 3, 64, 5)
    scaled = jax.jit(Scaled.of, static_argnums=1)(x, dtype_of(kind))
    largest = np.abs(x).max(2, keepdims=True)
    most = {"int8": 127, "fp8": 448}[kind]
    np.testing.assert_allclose(
        scaled.scale_PK1S, np.where(largest, largest / most, 1), rtol=1e-6, atol=0
    )
    held = values_of(scaled)
    ratio = x / np.asarray(scaled.scale_PK1S)
    if kind == "int8":
        values = np.arange(-127, 128, dtype=np.float32)
    else:
        every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        values = np.unique(every[np.isfinite(every)])
    errors = np.abs(held / np.asarray(scaled.scale_PK1S) - ratio)
    least = np.abs(ratio[..., None] - values).min(-1)
    np.testing.assert_allclose(errors, least, rtol=0, atol=1e-4 * most / 127)
    assert (held[0, 0, :, 0] == 0).all()


@pytest.mark.parametrize("kind", eight_bit.EIGHT_BIT)
@pytest.mark.parametrize("queries", [1, 4])
def test_attention_is_that_over_what_is_held(kind, queries):
    """The same function over the same values in float32, whose tests are in test_attention."""
    rng = np.random.default_rng(1)
    pages, heads, head_dim, slots, batch = 7, 2, 16, 8, 3
    pools = [drawn(pages, heads, head_dim, slots, seed=s) / 100 for s in (2, 3)]
    scaled = [Scaled.of(jnp.asarray(pool), dtype_of(kind)) for pool in pools]
    held = [jnp.asarray(values_of(x)) for x in scaled]
    table = jnp.asarray(rng.permutation(6).reshape(batch, 2) + 1, jnp.int32)
    position = jnp.asarray(rng.integers(0, 16, (batch, queries)), jnp.int32)
    q = jnp.asarray(rng.normal(size=(batch, queries, 4, head_dim)), jnp.float32)
    sinks = jnp.zeros(4)
    attend = jax.jit(xla.attend_cache)
    actual = attend(q, *scaled, sinks, table, position)
    expected = attend(q, *held, sinks, table, position)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    exact = attend(q, *(jnp.asarray(pool) for pool in pools), sinks, table, position)
    assert np.abs(actual - exact).max() > 1e-4 * np.abs(expected).max()  # they do round
