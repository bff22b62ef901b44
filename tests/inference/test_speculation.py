"""Guessed tokens: whatever is guessed, the answers are those without guesses."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import CONFIG, answers, displacements, engine_of, over_mesh, prompt

import gptoss_jax
from gptoss_jax.errors import UserError
from gptoss_jax.inference import engine as engine_module
from gptoss_jax.inference.lookup import Lookup
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.runner import Pace
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.sharding import make_mesh


def guessing(monkeypatch, expected: dict[tuple[int, ...], list[int]], seed: int) -> None:
    """Guesses are right up to a random place, and then anything; now and then there is none."""
    draw = random.Random(seed)

    def guess(sequence, left):
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
    monkeypatch.setattr(engine_module, "_guess", lambda sequence, most: [5])
    engine = engine_of(model, speculate=True, pages=8)
    assert answers(engine, asked) == expected
    assert engine.timings.guessed_tokens == 0
    told = dataclasses.replace(asked[0], logprobs=0)
    assert answers(engine, [told])[0] == expected[0] and engine.timings.guessed_tokens == 0


def noisy(model, share: float):
    """Of the same sizes, and mostly of the same opinion."""
    key = jax.random.key(0)

    def changed(x):
        if x.dtype != jnp.float32 or x.ndim < 2:
            return x
        return x + share * x.std() * jax.random.normal(key, x.shape)

    return jax.tree.map(changed, model)


@pytest.mark.parametrize(
    ("shape", "cache"), [(None, None), ({"data": 2, "expert": 2}, None), (None, "int8")]
)
def test_answers_are_those_without_a_draft(model, monkeypatch, small_pages, shape, cache):
    """Prompts longer and shorter than a chunk, kept prefixes, greedy and sampled, displaced."""
    asked = [
        Request(prompt(length, length), count, temperature=float(length % 2), seed=length)
        for length, count in ((3, 60), (20, 40), (37, 50), (50, 30), (1, 90), (64, 31))
    ]
    asked += asked[3:5]
    held, draft = model, noisy(model, 0.01)
    if shape:
        held, draft = over_mesh(held, shape), over_mesh(draft, shape)
    expected = answers(engine_of(held, stops=(7,), cache=cache), asked)
    monkeypatch.setattr(Pace, "pays", lambda self: True)
    options = {"pages": 14, "max_sequences": 4, "cache": cache}
    engine = engine_of(held, stops=(7,), draft=draft, **options)
    displaced = displacements(engine)
    assert answers(engine, asked) == expected
    timings = engine.timings
    print(f"{timings.right_tokens} of {timings.guessed_tokens} guesses were right")
    assert timings.guessed_tokens / 4 < timings.right_tokens < timings.guessed_tokens
    assert displaced
    engine.audit()
    assert engine.held_pages == 0


def test_a_model_guesses_itself(model, monkeypatch, small_pages):
    """Also what is sampled, over the window and the pages' borders: its cache is as the other's."""
    asked = [Request(prompt(33, i), 60, temperature=i / 2, seed=i) for i in range(3)]
    expected = answers(engine_of(model, max_sequences=4), asked)
    monkeypatch.setattr(Pace, "pays", lambda self: True)
    engine = engine_of(model, max_sequences=4, draft=model)
    assert answers(engine, asked) == expected
    assert engine.timings.right_tokens == engine.timings.guessed_tokens > 120


def test_what_a_draft_cannot_follow_is_not_guessed(model, monkeypatch):
    config = dataclasses.replace(CONFIG, rope_original_context=32, max_context=40)
    draft = GptOss(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(1))
    asked = [Request(prompt(20), 60, temperature=0.0)]
    expected = answers(engine_of(model), asked)
    monkeypatch.setattr(Pace, "pays", lambda self: True)
    engine = engine_of(model, draft=draft)
    assert answers(engine, asked) == expected
    assert 0 < engine.timings.guessed_tokens <= 7 * (40 - 20)


@pytest.mark.fast
def test_a_draft_that_does_not_belong_is_refused(model):
    config = dataclasses.replace(CONFIG, vocab_size=170)
    other = GptOss(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(1))
    with pytest.raises(UserError, match="the draft has 170 ids, the model 160"):
        engine_of(model, draft=other)
    with pytest.raises(UserError, match="not on the model's mesh"):
        engine_of(over_mesh(model, {"expert": 2}), draft=model)


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


def test_a_mesh_of_one_device_is_that_device():
    """As without a mesh, guesses included; it has to be the first."""
    alone, tokenizer = gptoss_jax.load("nano", dtype="float32")
    first, *_, last = (make_mesh(alone.config, {}, [device]) for device in jax.devices())
    held, _ = gptoss_jax.load("nano", dtype="float32", mesh=first)
    asked = [Request([200, 201, *range(60, 80), 200, 201], 40, temperature=0.0)]
    stops = sorted(tokenizer.stop_ids)
    expected = answers(engine_of(alone, stops=stops, max_tokens=128), asked)
    engine = engine_of(held, stops=stops, max_tokens=128, speculate=True)
    assert answers(engine, asked) == expected
    with pytest.raises(UserError, match="one device has to be the first"):
        gptoss_jax.load("nano", mesh=last)
