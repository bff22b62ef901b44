"""Looking up rows, and the gradient of that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.kernels import embedding

pytestmark = pytest.mark.fast

TOKENS = jnp.asarray([[3, 0, 3, 6], [6, 3, 1, 0]])
FORMS = {"chosen": embedding.embed, "default": embedding._gather, "cpu": embedding._cpu}


def table(dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_rows(form, dtype):
    actual = jax.jit(FORMS[form])(table(dtype), TOKENS)
    np.testing.assert_array_equal(actual, np.asarray(table(dtype))[np.asarray(TOKENS)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_row_add_up(dtype):
    g = jnp.asarray(np.random.default_rng(1).integers(-4, 5, (2, 4, 5)), dtype)
    gradient = jax.jit(jax.grad(lambda t: (embedding.embed(t, TOKENS) * g).sum()))(table(dtype))
    expected = np.zeros((7, 5))
    np.add.at(expected, np.asarray(TOKENS), np.asarray(g, np.float64))
    assert gradient.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(gradient.astype(jnp.float32), expected)
