"""Attention over the cache by the kernel for Hopper, in Mosaic GPU's interpret mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_interpreter import interpreted

from gptoss_jax.kernels import attention, hopper
from gptoss_jax.kernels.attention import mosaic_gpu, reference, xla

BATCH, KV_HEADS, GROUPS, HEAD_DIM, PAGES, PAGE = 3, 2, 3, 64, 4, 128
# Outputs are rounded to bfloat16; the reference rounds its weights too.
TOLERANCE = 2e-2


def make(last: list[int]):
    """Arguments, pages mixed: what lies on page 0 and after a sequence's last is poison."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    position = np.array(last, np.int32)
    read = np.arange(PAGES)[None] <= position[:, None] // PAGE
    poison = jnp.where(jnp.asarray(read)[..., None, None, None], 0, jnp.nan).astype(jnp.bfloat16)
    table = 1 + rng.permutation(BATCH * PAGES).reshape(BATCH, PAGES).astype(np.int32)

    def pool():
        x = normal(BATCH, PAGES, KV_HEADS, HEAD_DIM, PAGE) + poison
        nobodys = jnp.full((1, *x.shape[2:]), jnp.nan, jnp.bfloat16)
        order = np.argsort(table.reshape(-1))
        return jnp.concatenate([nobodys, x.reshape(-1, *x.shape[2:])[order]])

    k, v, heads = pool(), pool(), KV_HEADS * GROUPS
    q, sinks = normal(BATCH, 1, heads, HEAD_DIM), normal(heads) + 1
    return q, k, v, sinks, np.pad(table, ((0, 0), (0, 1))), position[:, None]


def expected_attend(q, k, v, sinks, table, position):
    def whole(x):
        x = jnp.moveaxis(jnp.nan_to_num(x)[table[:, :PAGES]], 1, 3)
        return x.reshape(BATCH, KV_HEADS, HEAD_DIM, PAGES * PAGE)

    mask = np.arange(PAGES * PAGE)[None, None] <= position[..., None]
    return reference.attend(q, whole(k), whole(v), sinks, jnp.asarray(mask))


@pytest.mark.parametrize(
    ("last", "programs"),
    [
        ([0, 511, 130], 6),  # one part; stages are filled again
        ([127, 128, 383], 12),  # two parts; some have no page
    ],
)
def test_cache(monkeypatch, last, programs):
    monkeypatch.setattr(mosaic_gpu, "_PROGRAMS", programs)
    arguments = make(last)
    actual = interpreted(mosaic_gpu.attend_cache, *arguments)
    assert actual.dtype == jnp.bfloat16
    expected = np.asarray(expected_attend(*arguments), np.float32)
    np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=0, atol=TOLERANCE)


def test_who_takes_the_kernel(monkeypatch):
    q, k, v, sinks, table, position = make([5, 6, 7])
    assert not attention._takes_kernel(q, k)  # no Hopper here
    monkeypatch.setattr(hopper, "is_target", lambda: True)
    assert attention._takes_kernel(q, k)
    assert not attention._takes_kernel(jnp.concatenate([q, q], axis=1), k)
    assert not attention._takes_kernel(q, k.astype(jnp.float32))
    assert not attention._takes_kernel(q, k[..., :64])
    # Compiled for this platform all the same, the other form runs.
    k, v = jnp.nan_to_num(k), jnp.nan_to_num(v)
    actual, expected = (
        jax.jit(form)(q, k, v, sinks, table, position)
        for form in (attention.attend_cache, xla.attend_cache)
    )
    np.testing.assert_array_equal(actual, expected)
