"""How far two models are apart, by hand and beside itself."""

import numpy as np
import pytest

from gptoss_jax.inference.divergence import PROMPTS, divergence, log_probabilities
from gptoss_jax.loading import load

pytestmark = pytest.mark.fast


def test_it_is_the_first_one_s_mean_surprise_at_the_second():
    first = [np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75]])]
    second = [np.log([[0.25, 0.75], [0.9, 0.1]]), np.log([[0.9, 0.1]])]
    one = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    other = 0.25 * np.log(0.25 / 0.9) + 0.75 * np.log(0.75 / 0.1)
    assert divergence(first, second) == pytest.approx((one + 0 + other) / 3)
    assert divergence(first, second) != pytest.approx(divergence(second, first), rel=0.01)


def test_a_model_is_not_apart_from_itself():
    model, tokenizer = load("nano", dtype="float32")
    assert tokenizer is not None
    found = log_probabilities(model, tokenizer)
    assert len(found) == len(PROMPTS)
    for one in found:
        np.testing.assert_allclose(np.exp(one).sum(-1), 1, rtol=1e-5)
    assert divergence(found, found) == 0
