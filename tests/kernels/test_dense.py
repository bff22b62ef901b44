"""Linear layers: XLA:CPU's forms and the dispatch against the reference, that against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.kernels.dense import dense, reference, xla_cpu

pytestmark = pytest.mark.fast

OUTPUTS, INPUTS = 70, 48
DTYPES = [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]


def make(rows: int, dtype: str, weight_dtype: str, inputs: int = INPUTS):
    rng = np.random.default_rng(rows)

    def normal(*shape, dtype):
        return jnp.asarray(rng.normal(size=shape), jnp.dtype(dtype))

    return (
        normal(rows, inputs, dtype=dtype),
        normal(OUTPUTS, inputs, dtype=weight_dtype),
        normal(OUTPUTS, dtype=weight_dtype),
    )


def check(actual, x, w, bias) -> None:
    """Products of bfloat16 are exact in float32, so one tolerance serves every dtype."""
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    exact = exact if bias is None else exact + np.asarray(bias, np.float64)
    assert actual.dtype == jnp.float32
    assert actual.shape == exact.shape
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize("form", [reference.dense, xla_cpu.dense, dense])
def test_forms(form, rows, dtype, weight_dtype):
    x, w, bias = make(rows, dtype, weight_dtype)
    check(jax.jit(form)(x, w, bias), x, w, bias)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("form", [reference.dense, xla_cpu.dense])
def test_no_bias(form, rows):
    x, w, _ = make(rows, "float32", "bfloat16")
    check(jax.jit(form)(x, w), x, w, None)


@pytest.mark.parametrize("tile", [1, 7, 16, 35, 69, 70, 71])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiles_that_overlap_or_do_not(monkeypatch, tile, dtype):
    monkeypatch.setattr(xla_cpu, "_TILE", tile * INPUTS)
    x, w, bias = make(6, dtype, "bfloat16")
    check(jax.jit(lambda *args: xla_cpu.dense(*args))(x, w, bias), x, w, bias)


def test_one_row_of_a_wide_weight_takes_no_temporary_of_its_size():
    w = jax.ShapeDtypeStruct((201_088, 2880), jnp.bfloat16)
    for rows in (1, 2, 4, 16):
        x = jax.ShapeDtypeStruct((rows, 2880), jnp.bfloat16)
        compiled = jax.jit(lambda x, w: dense(x, w)).lower(x, w).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        tile = 4 * xla_cpu._TILE
        logits = 4 * rows * 201_088
        assert temporary <= 2 * tile + 2 * logits
