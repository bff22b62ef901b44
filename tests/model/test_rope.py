"""Rotary positions against the published figures, and transformers where it is installed."""

import dataclasses
import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sample

from gptoss_jax.model.config import PRESETS
from gptoss_jax.model.rope import inverse_frequencies, ramp_bounds, rotate, rotation

PUBLISHED = PRESETS["20b"]
PLAIN = dataclasses.replace(PUBLISHED, rope_factor=1.0)
POSITIONS = [0, 1, 127, 128, 4095, 4096, 40_000, 131_070, 131_071]


@pytest.mark.fast
def test_ramp_of_the_published_models():
    low, high = ramp_bounds(PUBLISHED)
    assert math.isclose(low, 8.092779115512402, rel_tol=1e-14)
    assert math.isclose(high, 17.39802450158856, rel_tol=1e-14)
    truncated = dataclasses.replace(PUBLISHED, rope_truncate=True)
    assert ramp_bounds(truncated) == (8, 18)


@pytest.mark.fast
def test_frequencies_of_the_published_models():
    # A table, several frequencies a line: not one each.
    expected = {
        0: 1.0, 1: 6.890443059e-01, 8: 5.081327482e-02, 9: 3.170569618e-02, 12: 6.794959490e-03,
        16: 4.564839192e-04, 17: 1.293187012e-04, 18: 3.830881237e-05, 24: 4.099978482e-06,
        31: 3.023511428e-07,
    }  # fmt: skip
    actual = inverse_frequencies(PUBLISHED)
    assert actual.dtype == np.float32
    assert actual.shape == (32,)
    for index, value in expected.items():
        assert math.isclose(actual[index], value, rel_tol=1.2e-7)


@pytest.mark.fast
def test_rotation_is_scaled_and_turns_by_position_times_frequency():
    cos, sin = (
        np.asarray(x) for x in jax.jit(lambda p: rotation(PUBLISHED, p))(jnp.asarray([POSITIONS]))
    )
    assert cos.shape == (1, len(POSITIONS), 1, 32)
    angle = np.array(POSITIONS, np.float32)[:, None] * inverse_frequencies(PUBLISHED)
    assert angle.dtype == np.float32
    np.testing.assert_allclose(
        cos[0, :, 0], 1.3465735902799727 * np.cos(angle.astype(float)), atol=2e-6
    )
    np.testing.assert_allclose(
        sin[0, :, 0], 1.3465735902799727 * np.sin(angle.astype(float)), atol=2e-6
    )


@pytest.mark.fast
def test_pairs_are_halves():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2, 3, 64)).astype(np.float32)
    cos, sin = rotation(PUBLISHED, jnp.asarray([[5, 9]]))
    z = (x[..., :32] + 1j * x[..., 32:]) * (np.asarray(cos) + 1j * np.asarray(sin))
    expected = np.concatenate([z.real, z.imag], -1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), cos, sin), expected, atol=1e-5)
    assert rotate(jnp.asarray(x, jnp.bfloat16), cos, sin).dtype == jnp.bfloat16


TRUNCATED = dataclasses.replace(PUBLISHED, rope_truncate=True)
CONFIGS = {"published": PUBLISHED, "truncated": TRUNCATED, "factor_1": PLAIN, **sample.SHAPES}


@pytest.mark.parametrize("name", CONFIGS)
def test_against_transformers(name):
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    pytest.importorskip("transformers", reason="needs the oracle extra")
    import oracle  # noqa: PLC0415 - needs torch and transformers
    from transformers.models.gpt_oss import modeling_gpt_oss  # noqa: PLC0415 - may be missing

    config = CONFIGS[name]
    theirs = modeling_gpt_oss.GptOssRotaryEmbedding(oracle.hf_config(config))
    our_freq, their_freq = inverse_frequencies(config), theirs.inv_freq.numpy()
    # torch's vectorised float32 pow is one unit off at a few exponents, on some machines; ours is
    # rounded correctly (below). All else is the same to the bit.
    np.testing.assert_array_max_ulp(our_freq, their_freq, maxulp=1)
    assert np.mean(our_freq == their_freq) > 0.8
    x = torch.zeros((1, 1), dtype=torch.float32)
    expected = theirs(x, torch.tensor([POSITIONS]))
    actual = jax.jit(lambda p: rotation(config, p))(jnp.asarray([POSITIONS]))
    # Where a frequency differs, so does the angle: by that, and by what its own rounding adds.
    positions = np.array(POSITIONS, np.float32)[:, None]
    drift = np.abs(our_freq - their_freq) * positions
    drift += np.where(drift > 0, np.spacing(positions * our_freq), 0)
    for ours, their in zip(actual, expected, strict=True):
        assert (np.abs(ours[0, :, 0] - their[0].numpy()) <= 1e-6 + 2 * drift).all()


@pytest.mark.fast
@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_by_transformers_formula_with_an_exact_power(name):
    """Bit for bit `_compute_yarn_parameters`, float32 after a correctly rounded power."""
    config = CONFIGS[name]
    half, one = config.head_dim // 2, np.float32(1)
    exponents = (np.arange(half) * 2).astype(np.float32) / np.float32(config.head_dim)
    theta = decimal.Decimal(config.rope_theta)
    periods = np.float32([float(theta ** decimal.Decimal(float(e))) for e in exponents])

    def dim_of(rotations):
        ratio = config.rope_original_context / (rotations * 2 * math.pi)
        return config.head_dim * math.log(ratio) / (2 * math.log(config.rope_theta))

    low, high = dim_of(config.rope_beta_fast), dim_of(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = one - np.clip(ramp, 0, 1)
    slow = one / (np.float32(config.rope_factor) * periods)
    expected = slow * (one - keep) + one / periods * keep
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(inverse_frequencies(config), expected)
