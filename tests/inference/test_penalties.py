"""Penalties and biases in the engine against the full forward and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import (
    CONFIG,
    displacements,
    engine_of,
    finished,
    full_logits,
    over_mesh,
    prompt,
)

from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.penalties import Tally
from gptoss_jax.inference.requests import Request, Sequence
from gptoss_jax.inference.sampling import Sampling

pytestmark = pytest.mark.slow

V = CONFIG.vocab_size
OPTIONS = [
    {"repetition_penalty": 1.6},
    {"presence_penalty": 1.9},
    {"frequency_penalty": 0.8},
    {"logit_bias": {3: 4.0, 90: -100.0, 17: 2.5}},
    {},
    {"repetition_penalty": 0.7, "presence_penalty": -0.5, "frequency_penalty": 1.1},
    {"repetition_penalty": 1.2, "frequency_penalty": -0.3, "logit_bias": {159: 3.0}},
]


def adjusted(logits_V: np.ndarray, request: Request, generated: list[int]) -> np.ndarray:
    """Plainly, id by id."""
    out_V = logits_V.astype(np.float64)
    for id_ in {*request.prompt, *generated}:
        penalty = request.repetition_penalty
        out_V[id_] = out_V[id_] / penalty if out_V[id_] > 0 else out_V[id_] * penalty
    for id_ in set(generated):
        out_V[id_] -= request.presence_penalty
        out_V[id_] -= request.frequency_penalty * generated.count(id_)
    for id_, bias in request.logit_bias.items():
        out_V[id_] += bias
    return out_V


def noise(seed: int, position: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(np.uint32(seed)), position)
    return np.asarray(jax.random.gumbel(key, (V,)), np.float64)


def check(model, sequence: Sequence) -> None:
    """Each token is the best of the adjusted logits, within the rounding of other shapes."""
    request, first = sequence.request, len(sequence.request.prompt)
    logits_TV = np.asarray(full_logits(model, sequence.tokens))
    assert len(sequence.generated) == request.max_tokens
    for position in range(first, len(sequence.tokens)):
        so_far = sequence.tokens[first:position]
        score_V = adjusted(logits_TV[position - 1], request, so_far)
        if request.temperature:
            score_V = score_V / request.temperature + noise(request.seed, position)
        short = score_V.max() - score_V[sequence.tokens[position]]
        assert short <= 2e-5 * np.ptp(logits_TV) / (request.temperature or 1), position


def requests(count: int, most: int = 50) -> list[Request]:
    return [
        Request(
            prompt(5 + 7 * (index % 5), seed=index),
            most - 11 * (index % 4),
            temperature=0.0 if index % 3 else 0.8,
            seed=index,
            **OPTIONS[index % len(OPTIONS)],
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 7.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    transformers = pytest.importorskip("transformers", reason="the oracle extra is not installed")
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    rng = np.random.default_rng(0)
    ids_BT = rng.integers(0, V, (3, 40))
    logits_BV = rng.normal(0, 3, (3, V)).astype(np.float32)
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    theirs = processor(torch.from_numpy(ids_BT), torch.from_numpy(logits_BV)).numpy()
    # The first 25 as a prompt, the others as generated.
    seen_BV = np.zeros((3, V), np.int32)
    for seen_V, ids_T in zip(seen_BV, ids_BT, strict=True):
        seen_V[ids_T[:25]] = 1
        np.add.at(seen_V, ids_T[25:], 2)
    sampling = Sampling.of([Request([0], 1, repetition_penalty=penalty)] * 3)
    ours = Tally(seen_BV, np.zeros((3, V), np.float32)).adjusted(jnp.asarray(logits_BV), sampling)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.fixture(scope="module")
def four(model) -> Engine:
    return engine_of(model, max_sequences=4, reuse=False)


def test_tokens_are_those_that_numpy_chooses(model, four):
    """Sequences join and leave, so that rows move; what is kept on the device moves with them."""
    calls = []
    programs = four._runner._programs
    renew = programs.renewed_tally
    programs.renewed_tally = lambda *arguments: (calls.append(1), renew(*arguments))[1]
    for sequence in finished(four, requests(12)):
        check(model, sequence)
    # Few a decode call: where nobody comes or goes, nothing is sent.
    assert 0 < len(calls) < four.timings.calls


def test_they_change_what_is_said(four):
    asked = [Request(prompt(9), 80, temperature=0.0, **options) for options in OPTIONS]
    said = [tuple(sequence.generated) for sequence in finished(four, asked)]
    assert len(set(said)) == len(said)


def test_a_row_that_asks_for_nothing_is_as_without_the_others(four):
    free = Request(prompt(11, seed=5), 20, temperature=0.9, seed=4)
    beside = [Request(prompt(11, seed=s), 20, seed=s, frequency_penalty=1.5) for s in range(3)]
    others = [Request(prompt(11, seed=s), 20, seed=s) for s in range(3)]
    first, second = (finished(four, [free, *rest])[0] for rest in (beside, others))
    assert first.generated == second.generated


def test_programs_without_them_hold_no_numbers_of_ids(model):
    engine = engine_of(model)
    finished(engine, [Request(prompt(5), 6)])
    assert not any(counts(key) for key in engine._runner._compiled)
    finished(engine, [Request(prompt(5), 6, presence_penalty=1.0)])
    assert sum(counts(key) for key in engine._runner._compiled) == 2
    assert len(engine._runner._compiled) == 4


def counts(key) -> bool:
    """Whether a program takes a number for each row and id."""
    return f"1, {V}, dtype('int32')" in str(key)


def test_displaced_sequences_go_on_as_they_would(small_pages, model):
    """Six pages of 16 hold less than both need."""
    engine = engine_of(model, max_sequences=2, pages=6, reuse=False)
    displaced = displacements(engine)
    asked = [
        Request(
            prompt(30, seed=seed),
            40,
            seed=seed,
            repetition_penalty=1.3,
            frequency_penalty=0.4,
            logit_bias={7: 1.0},
        )
        for seed in range(2)
    ]
    for sequence in finished(engine, asked):
        check(model, sequence)
    assert displaced


@pytest.mark.parametrize(
    "shape", [{"data": 2, "expert": 2}, pytest.param({"data": 4}, marks=pytest.mark.slow)], ids=str
)
def test_over_a_mesh(model, shape):
    engine = engine_of(over_mesh(model, shape), max_sequences=4, reuse=False)
    for sequence in finished(engine, requests(9)):
        check(model, sequence)
