"""Log-probabilities of the engine against the full forward, in NumPy."""

import dataclasses
import re

import numpy as np
import pytest
from small import displacements, engine_of, finished, full_logits, over_mesh, prompt

from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.logprobs import told
from gptoss_jax.inference.requests import Request, Sequence

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four(model) -> Engine:
    return engine_of(model, max_sequences=4, reuse=False)


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    shifted = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def check(model, sequence: Sequence) -> None:
    """Against the full forward: 1e-5 of the logits' range, as logits of other shapes differ."""
    first = len(sequence.request.prompt) - 1
    logits_TV = np.asarray(full_logits(model, sequence.tokens))[first:-1]
    expected_TV = log_softmax(logits_TV)
    tolerance = 1e-5 * np.ptp(logits_TV)
    assert len(sequence.logprobs) == len(sequence.generated)
    for token, place, row_V in zip(sequence.generated, sequence.logprobs, expected_TV, strict=True):
        ids = [id_ for id_, _ in place.likeliest]
        values = [value for _, value in place.likeliest]
        assert abs(place.chosen - row_V[token]) <= tolerance
        assert len(set(ids)) == sequence.request.logprobs == len(ids)
        np.testing.assert_allclose(values, row_V[ids], rtol=0, atol=tolerance)
        np.testing.assert_allclose(values, -np.sort(-row_V)[: len(ids)], rtol=0, atol=tolerance)


def requests(count: int, **options) -> list[Request]:
    return [
        Request(
            prompt(7 + 9 * index, seed=index),
            18,
            temperature=0.9,
            top_k=25,
            seed=index,
            logprobs=[3, None, 0, 20][index % 4],
            **options,
        )
        for index in range(count)
    ]


def test_they_are_of_the_models_own_distribution(model, four):
    """Whatever the temperature and the filters; of several tokens a call and of prefill's first."""
    for sequence in finished(four, requests(4)):
        assert len(sequence.generated) == 18
        if sequence.request.logprobs is None:
            assert sequence.logprobs == []
        else:
            check(model, sequence)


def test_asking_changes_no_token(four):
    asked = requests(4)
    silent = [dataclasses.replace(request, logprobs=None) for request in asked]
    asking, silent_ones = finished(four, asked), finished(four, silent)
    assert [s.generated for s in asking] == [s.generated for s in silent_ones]


def test_displaced_sequences_keep_theirs(small_pages, model):
    """Six pages of 16 hold less than both need."""
    engine = engine_of(model, max_sequences=2, pages=6, reuse=False)
    asked = [Request(prompt(30, seed=s), 40, seed=s, logprobs=2) for s in range(2)]
    displaced = displacements(engine)
    for sequence in finished(engine, asked):
        check(model, sequence)
    assert displaced


def test_a_program_that_tells_nothing_has_nothing_of_it(model):
    engine = engine_of(model)
    finished(engine, [Request(prompt(5), 6)])
    silent = programs_of(engine)
    finished(engine, [Request(prompt(5), 6, logprobs=4)])
    telling = programs_of(engine)[len(silent) :]
    assert len(telling) == len(silent) == 2
    assert not any(re.search(r"s32\[\d+,20\]", text) for text in silent)
    assert all(re.search(r"s32\[\d+,20\]", text) for text in telling)


def programs_of(engine) -> list[str]:
    return [future.result().as_text() for future in engine._runner._compiled.values()]


@pytest.mark.parametrize(
    "shape", [{"data": 2, "expert": 2}, pytest.param({"data": 4}, marks=pytest.mark.slow)], ids=str
)
def test_over_a_mesh(model, shape):
    engine = engine_of(over_mesh(model, shape), max_sequences=4, reuse=False)
    for sequence in finished(engine, requests(4)):
        if sequence.request.logprobs is not None:
            check(model, sequence)


def test_a_token_that_is_nearly_certain_keeps_its_digits():
    logits_BV = np.asarray([[250.0, 238.0, 100.0]], np.float32)
    ids_BK, values_BK = told(logits_BV, np.asarray([0]), 2)
    assert ids_BK.tolist() == [[0, 0, 1]]
    expected = log_softmax(logits_BV)[0, [0, 0, 1]]
    np.testing.assert_allclose(values_BK[0], expected, rtol=0, atol=1e-7 * 12)
