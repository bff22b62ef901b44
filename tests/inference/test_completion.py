"""A turn from scripted tokens: channels, finish reasons, raw text, and what generate shows."""

import argparse

import numpy as np
import pytest

from gptoss_jax.generate import _stream
from gptoss_jax.inference.completion import Turn
from gptoss_jax.inference.generator import Timings
from gptoss_jax.text import o200k_harmony

pytestmark = pytest.mark.fast

THOUGHT = "<|channel|>analysis<|message|>Hmm, é.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>Sky: é.<|return|>"
CALL = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
# Models also call tools on the analysis channel: what they send there is no reasoning.
QUIET_CALL = " to=python<|channel|>analysis<|message|>1+1<|call|>"


class Script:
    """A generator that makes the tokens of a text, some a call."""

    def __init__(self, text: str, a_call: int = 3):
        self.timings = Timings()
        self._tokens = list(tokens_of(text))
        self._a_call = a_call

    def run(self, prompts, sampling, max_tokens):
        for first in range(0, len(self._tokens), self._a_call):
            yield np.array([self._tokens[first : first + self._a_call]])


def tokens_of(text: str):
    tokenizer = o200k_harmony()
    while text:
        special = next((s for s in tokenizer.specials if text.startswith(s)), None)
        cut = len(special) if special else (text.find("<|", 1) % (len(text) + 1))
        piece, text = text[:cut], text[cut:]
        yield from [tokenizer.token_id(special)] if special else tokenizer.encode(piece)


def turn(text: str, **options) -> Turn:
    return Turn(Script(text), o200k_harmony(), [1, 2], None, 100, **options)


def pieces(one: Turn) -> list[tuple[str, str]]:
    """What came, neighbours of one channel joined."""
    joined: list[tuple[str, str]] = []
    for channel, text in one:
        if joined and joined[-1][0] == channel:
            text = joined.pop()[1] + text
        joined.append((channel, text))
    return joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THOUGHT + ANSWER, [("analysis", "Hmm, é."), ("final", "Sky: é.")]),
        (THOUGHT + CALL, [("analysis", "Hmm, é."), ("commentary", "{}")]),
        (QUIET_CALL, [("commentary", "1+1")]),
        ("<|channel|>commentary<|message|>One moment.<|end|>", [("commentary", "One moment.")]),
    ],
)
def test_channels(text, expected):
    assert pieces(turn(text)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (THOUGHT + ANSWER, "stop"),
        (THOUGHT + CALL, "tool_calls"),
        (THOUGHT, "length"),
        (ANSWER.removesuffix("<|return|>"), "length"),
    ],
)
def test_finish_reason(text, reason):
    one = turn(text)
    pieces(one)
    assert one.completion().finish_reason == reason


def test_raw_text_has_specials_by_name_but_not_the_stop_token():
    one = turn(ANSWER, raw=True)
    assert pieces(one) == [("raw", "<|channel|>final<|message|>Sky: é.")]
    assert one.completion().text == "<|channel|>final<|message|>Sky: é."
    assert one.completion().finish_reason == "stop"


def test_an_interrupt_ends_after_the_call_under_way():
    one = turn(THOUGHT + ANSWER)
    one.interrupt()
    pieces(one)
    assert one.completion().finish_reason == "interrupted"
    assert one.completion().usage["completion_tokens"] == 3  # of the first call


@pytest.mark.parametrize("show", [False, True])
def test_reasoning_goes_to_stderr_when_asked(capsys, show):
    _stream(turn(THOUGHT + ANSWER), argparse.Namespace(json=False, show_reasoning=show))
    out, err = capsys.readouterr()
    assert out == "Sky: é."
    assert err == ("[analysis] Hmm, é.\n" if show else "")


def test_json_streams_nothing(capsys):
    _stream(turn(THOUGHT + ANSWER), argparse.Namespace(json=True, show_reasoning=False))
    assert capsys.readouterr() == ("", "")
