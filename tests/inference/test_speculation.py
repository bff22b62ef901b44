"""Guessed tokens: whatever is guessed, the answers are those without guesses."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONFIG, answers, displacements, engine_of, over_mesh, prompt

from gptoss_jax.inference import engine as engine_module
from gptoss_jax.inference.lookup import Lookup
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.runner import Pace


def guessing(monkeypatch, expected: dict[tuple[int, ...], list[int]], seed: int) -> None:
    """Guesses are right up to a random place, and then anything; now and then there is none."""
    draw = random.Random(seed)

    def guess(sequence):
        left = min(sequence.limit - len(sequence.tokens) - 1, 7)
        made = expected[tuple(sequence.request.prompt)][len(sequence.generated) :]
        right = made[: draw.randrange(8)]
        wrong = [draw.randrange(CONFIG.vocab_size) for _ in range(draw.randrange(8))]
        return (right + wrong)[: max(left, 0)]

    monkeypatch.setattr(engine_module, "_guess", guess)
    monkeypatch.setattr(Pace, "pays", lambda self: True)


@pytest.mark.parametrize("shape", [None, {"data": 2, "expert": 2}])
def test_answers_are_those_without_guesses(model, monkeypatch, small_pages, shape):
    """Beyond the sliding window of 8, over pages' borders, greedy and sampled, displaced or not."""
    asked = [
        Request(prompt(length, length), count, temperature=float(length % 2), seed=length)
        for length, count in ((3, 60), (20, 40), (37, 50), (50, 30), (1, 90), (64, 31))
    ]
    held = over_mesh(model, shape) if shape else model
    expected = answers(engine_of(held, stops=(7,)), asked)
    told = {tuple(one.prompt): tokens for one, tokens in zip(asked, expected, strict=True)}
    guessing(monkeypatch, told, 0)
    engine = engine_of(held, stops=(7,), speculate=True, pages=14, max_sequences=4)
    displaced = displacements(engine)
    assert answers(engine, asked) == expected
    assert 0 < engine.timings.right_tokens < engine.timings.guessed_tokens
    assert displaced
    engine.audit()
    assert engine.held_pages == 0


def test_rings_and_pages_hold_what_was_right_alone(model):
    """After a call with wrong guesses the next logits are as if nobody had guessed."""
    tokens = jnp.asarray([prompt(30)])
    start = model.extend(tokens[:, :20], jnp.array([20]), model.empty_cache(1, 64))[1]
    guessed = jnp.concatenate([tokens[:, 20:23], (tokens[:, 23:26] + 1) % CONFIG.vocab_size], 1)
    choose = jax.jit(lambda logits: jnp.array([3]))
    cache = model.verify(guessed, jnp.array([6]), start, choose)
    assert cache.length_B.tolist() == [3 + 20]
    logits_BV = model.extend(tokens[:, 23:24], jnp.array([1]), cache)[0]
    expected_BV = model.extend(tokens[:, :24], jnp.array([24]), model.empty_cache(1, 64))[0]
    np.testing.assert_allclose(logits_BV, expected_BV, atol=1e-5 * np.ptp(expected_BV))


def test_nobody_guesses_beside_penalties_and_logprobs(model, monkeypatch):
    asked = [Request([1, 2, 3] * 2, 10, temperature=0.0), Request([1, 2], 20, presence_penalty=1.0)]
    expected = answers(engine_of(model, pages=8), asked)
    monkeypatch.setattr(Pace, "pays", lambda self: True)
    monkeypatch.setattr(engine_module, "_guess", lambda sequence: [5])
    engine = engine_of(model, speculate=True, pages=8)
    assert answers(engine, asked) == expected
    assert engine.timings.guessed_tokens == 0
    told = dataclasses.replace(asked[0], logprobs=0)
    assert answers(engine, [told])[0] == expected[0] and engine.timings.guessed_tokens == 0


@pytest.mark.fast
def test_what_followed_the_last_time_is_guessed():
    said = Lookup()
    tokens = [1, 2, 3, 4, 5, 1, 2, 3]
    assert said.guess(tokens, 7) == [4, 5, 1, 2, 3]
    assert said.guess(tokens, 2) == [4, 5]
    tokens += [9, 9, 1, 2, 3]
    assert said.guess(tokens, 3) == [9, 9, 1]
    assert said.guess([*tokens, 8], 3) == ()
    assert Lookup().guess([1, 2], 3) == ()
    said = Lookup()
    for end in range(1, 40):  # as it grows, and all at once
        tokens = [n * n % 11 for n in range(end)]
        assert list(said.guess(tokens, 5)) == list(Lookup().guess(tokens, 5))


@pytest.mark.fast
def test_the_faster_way_is_taken_and_the_other_tried_again():
    pace = Pace()
    assert not pace.pays()
    pace.decoded(1.0, 10)
    assert pace.pays()
    pace.verified(1.0, 5)
    assert [pace.pays() for _ in range(64)].count(True) == 2
    for _ in range(20):
        pace.verified(1.0, 20)
    assert [pace.pays() for _ in range(64)].count(False) == 2
