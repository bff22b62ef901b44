"""Turns of nano: stop strings, log-probabilities, biases and copies as a caller has them."""

import math

import pytest

import gptoss_jax
from gptoss_jax.errors import UserError
from gptoss_jax.inference.completion import completions, render_chat
from gptoss_jax.inference.engine import engine_for
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.turns import turns

QUESTION = [{"role": "user", "content": "What is 347 + 586?"}]


@pytest.fixture(scope="module")
def nano():
    return gptoss_jax.load("nano", dtype="float32")


@pytest.fixture(scope="module")
def engine(nano):
    return engine_for(*nano, 2, max_tokens=256)


def test_a_stop_string_ends_its_own_turn(nano, engine):
    tokenizer = nano[1]
    prompt = render_chat(tokenizer, QUESTION)
    free = Request(prompt, 150, temperature=0.0)
    # In the reasoning there are 3s as well.
    stopped = Request(prompt, 150, temperature=0.0, stop=("33",), logprobs=1)
    first, second = turns(engine, tokenizer, [stopped, free])
    assert (first.text, first.finish_reason) == ("9", "stop")
    assert (second.text, second.finish_reason) == ("933", "stop")
    assert first.tokens == second.tokens[: len(first.tokens)]
    assert [m["content"] for m in first.messages][1:] == ["9"]
    assert first.logprobs is not None and second.logprobs is None
    likeliest = [id_ for told in first.logprobs for id_, _ in told.likeliest]
    assert likeliest == first.tokens


def test_what_has_stopped_is_cancelled_within_a_step(nano, engine):
    tokenizer = nano[1]
    prompt = render_chat(tokenizer, QUESTION)
    long = Request(prompt, 90, temperature=1.0, logit_bias=dict.fromkeys(tokenizer.stop_ids, -100))
    stop = [chr(code) for code in range(32, 127)]
    (turn,) = turns(engine, tokenizer, [long])
    assert len(turn.tokens) == 90
    asked = Request(prompt, 90, temperature=1.0, logit_bias=long.logit_bias, stop=stop)
    (again,) = turns(engine, tokenizer, [asked])
    assert again.finish_reason == "stop" and again.text == ""
    engine.step()
    assert not engine.busy and engine.held_pages == 0


def test_whoever_stops_iterating_cancels_the_rest(nano, engine):
    prompt = render_chat(nano[1], QUESTION)
    for _ in turns(engine, nano[1], [Request(prompt, 150)] * 5):
        break
    with pytest.raises(UserError, match="max_tokens is 0"):
        next(turns(engine, nano[1], [Request(prompt, 150), Request(prompt, 0)]))
    engine.step()
    assert not engine.busy and engine.held_pages == 0


def test_completions(nano):
    asked = Request((), 150, temperature=0.0, stop=["33"], logprobs=2)
    several = completions(*nano, QUESTION, asked, 3)
    assert [one.text for one in several] == ["9"] * 3
    assert [one.finish_reason for one in several] == ["stop"] * 3
    for one in several:
        assert one.logprobs is not None
        assert len(one.logprobs) == one.usage["completion_tokens"]
        for place in one.logprobs:
            # Greedy: the chosen one is the likeliest.
            assert place["top"][0] == {key: place[key] for key in ("id", "text", "logprob")}
            assert sum(math.exp(other["logprob"]) for other in place["top"]) <= 1 + 1e-5
    text = "".join(place["text"] for place in several[0].logprobs or [])
    assert text.startswith("<|channel|>analysis<|message|>347 + 586")


def test_a_bias_forbids(nano):
    tokenizer = nano[1]
    pieces = [tokenizer.token_bytes(id_) or b"" for id_ in range(tokenizer.vocab_size)]
    nines = {id_: -100.0 for id_, piece in enumerate(pieces) if b"9" in piece}
    said = gptoss_jax.complete(*nano, QUESTION, temperature=0.0, logit_bias=nines, max_tokens=99)
    assert "9" not in said.reasoning + said.text
