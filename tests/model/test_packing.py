"""Packed rows: segments in one row are as rows of their own, forwards and backwards."""

import functools

import jax
import numpy as np
import pytest
import sample

pytestmark = pytest.mark.fast

CONFIG = sample.SHAPES["narrow"]
# Two segments longer than the window and the original context, a short one, and padding.
LENGTHS = (70, 5, 40)
ROW = 128
MAX_ERROR = 3e-6  # of the logits' range: sums in another order


@functools.cache
def model():
    return sample.make_model(CONFIG, sample.make_weights(CONFIG, seed=2), packed_experts=False)


def packed(tokens: np.ndarray):
    position_T = np.concatenate([*(np.arange(n) for n in LENGTHS), np.zeros(ROW - sum(LENGTHS))])
    real_T = np.arange(ROW) < sum(LENGTHS)
    return tokens, position_T.astype(np.int32)[None], real_T[None]


def segments():
    start = 0
    for length in LENGTHS:
        yield slice(start, start + length)
        start += length


@functools.partial(jax.jit, static_argnames="remat")
def logits(model, tokens, position, real, remat=False):
    return model.unembed(model.hidden(tokens, position, real, remat=remat)[0])


def test_a_segment_is_a_row_of_its_own():
    tokens = sample.prompt(CONFIG, ROW, 5)
    actual = np.asarray(logits(model(), *packed(tokens)))[0]
    for cut in segments():
        expected = np.asarray(jax.jit(lambda m, t: m(t))(model(), tokens[:, cut]))[0]
        assert np.abs(actual[cut] - expected).max() <= MAX_ERROR * np.ptp(expected)


def test_no_gradient_crosses_a_segment():
    first, second, third = segments()
    tokens, position, real = packed(sample.prompt(CONFIG, ROW, 5))

    def of_second(embedded_TD):
        copy = jax.tree.map(lambda x: x, model())
        copy._embed = lambda tokens_BT: embedded_TD[None]
        return copy.unembed(copy.hidden(tokens, position, real)[0])[0, second].sum()

    gradient = np.abs(np.asarray(jax.jit(jax.grad(of_second))(model()._embed(tokens)[0]))).max(-1)
    assert gradient[second].min() > 0
    assert not gradient[first].any()
    assert not gradient[third].any()


def test_remat_changes_nothing():
    tokens, position, real = packed(sample.prompt(CONFIG, ROW, 5))

    @functools.partial(jax.jit, static_argnames="remat")
    def gradient(model, remat):
        return jax.grad(lambda m: logits(m, tokens, position, real, remat=remat).std())(model)

    kept, again = (jax.tree.leaves(gradient(model(), remat)) for remat in (False, True))
    for a, b in zip(kept, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1e-3, np.abs(a).max()))
