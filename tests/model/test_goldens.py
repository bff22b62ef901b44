"""The network against committed logits of transformers' float64 run; neither is needed here."""

from pathlib import Path

import jax
import numpy as np
import pytest
import sample

pytestmark = pytest.mark.fast

GOLDENS = dict(np.load(Path(__file__).parent / "goldens" / "logits.npz"))
NAMES = ["narrow", "one_kv_head", "no_groups"]
# As in test_against_transformers.py; the project's bounds are 1e-4 and 2e-7.
MAX_ERROR = 3e-6
MAX_KL = 1e-10

forward = jax.jit(lambda model, tokens_BT: model(tokens_BT))


@pytest.mark.parametrize("name", NAMES)
def test_logits(name):
    config = sample.SHAPES[name]
    weights = sample.make_weights(config, int(GOLDENS["seed"]))
    assert sample.checksum(weights) == GOLDENS[f"{name}.checksum"], "sample makes other weights now"
    logits = forward(sample.make_model(config, weights), GOLDENS[f"{name}.tokens"])
    actual, expected = np.asarray(logits)[0, GOLDENS["kept"]], GOLDENS[f"{name}.logits"]
    assert sample.relative_error(expected, actual) <= MAX_ERROR
    assert sample.kl(expected, actual).max() <= MAX_KL


@pytest.mark.parametrize("name", NAMES)
def test_goldens_are_worth_comparing_with(name):
    """Spread out, and different at every position."""
    logits = GOLDENS[f"{name}.logits"]
    assert logits.max() - logits.min() > 5
    assert np.abs(np.diff(logits, axis=0)).max(-1).min() > 0.5
