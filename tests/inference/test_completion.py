"""A turn from scripted tokens: channels, finish reasons, raw text, and what generate shows."""

import argparse
import io
import sys

import pytest

from gptoss_jax.checkpoint import load
from gptoss_jax.checkpoint.synthetic import write_synthetic
from gptoss_jax.errors import UserError
from gptoss_jax.generate import _prepare, _stream, build_parser
from gptoss_jax.inference.completion import Turn
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.runner import Timings
from gptoss_jax.text import o200k_harmony

pytestmark = pytest.mark.fast

THOUGHT = "<|channel|>analysis<|message|>Hmm, é.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>Sky: é.<|return|>"
CALL = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
# Models also call tools on the analysis channel: what they send there is no reasoning.
QUIET_CALL = " to=python<|channel|>analysis<|message|>1+1<|call|>"


class Script:
    """An engine that makes the tokens of a text, some a call."""

    def __init__(self, text: str, a_call: int = 3):
        self.timings = Timings()
        self._tokens = list(tokens_of(text))
        self._a_call = a_call

    def run(self, asked):
        for first in range(0, len(self._tokens), self._a_call):
            yield 0, self._tokens[first : first + self._a_call]


def tokens_of(text: str):
    tokenizer = o200k_harmony()
    while text:
        special = next((s for s in tokenizer.specials if text.startswith(s)), None)
        cut = len(special) if special else (text.find("<|", 1) % (len(text) + 1))
        piece, text = text[:cut], text[cut:]
        yield from [tokenizer.token_id(special)] if special else tokenizer.encode(piece)


def turn(text: str, **options) -> Turn:
    return Turn(Script(text), o200k_harmony(), Request([1, 2], 100), **options)


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


def test_what_is_not_the_assistants_is_not_shown():
    text = ANSWER.removesuffix("<|return|>") + "<|end|><|start|>user<|message|>B<|end|>"
    one = turn(text + "<|start|>assistant<|channel|>final<|message|>!<|return|>")
    assert "".join(piece for channel, piece in pieces(one) if channel == "final") == "Sky: é.!"
    assert one.completion().text == "Sky: é.!"


PREAMBLE = "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "reasoning", "out", "err"),
    [
        (THOUGHT + ANSWER, False, "Sky: é.\n", ""),
        (THOUGHT + ANSWER, True, "Sky: é.\n", "[analysis] Hmm, é.\n"),
        (PREAMBLE, True, "One moment.\n", "[commentary] One moment.\n"),
        (PREAMBLE + CALL, False, "One moment.\n", ""),
        (THOUGHT, False, "", ""),
    ],
)
def test_what_generate_prints(capsys, text, reasoning, out, err):
    _stream(turn(text), argparse.Namespace(json=False, show_reasoning=reasoning))
    assert capsys.readouterr() == (out, err)


def test_lines_of_a_terminal_are_not_mixed(monkeypatch):
    """Standard output and error are one there."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    again = ANSWER.replace("<|return|>", "<|end|><|start|>assistant")
    _stream(turn(again + THOUGHT + ANSWER), argparse.Namespace(json=False, show_reasoning=True))
    assert terminal.getvalue() == "Sky: é.\n[analysis] Hmm, é.\nSky: é.\n"


def test_json_streams_nothing(capsys):
    _stream(turn(THOUGHT + ANSWER), argparse.Namespace(json=True, show_reasoning=False))
    assert capsys.readouterr() == ("", "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("flags") / "model"
    write_synthetic("tiny", directory, None, 0)
    return directory


def prepare(*words: str) -> Turn:
    return _prepare(build_parser().parse_args([*words, "Hi"]))


def test_flags_reach_the_device(tiny):
    one = prepare(
        "--checkpoint",
        str(tiny),
        "--min-p",
        "0.25",
        "--top-k",
        "7",
        "--top-p",
        "0.5",
        "--temperature",
        "0.75",
        "--seed",
        "9",
        "--reasoning-effort",
        "high",
    )
    asked = one._request
    assert (asked.min_p, asked.top_k, asked.top_p) == (0.25, 7, 0.5)
    assert (asked.temperature, asked.seed) == (0.75, 9)
    assert "Reasoning: high" in o200k_harmony().decode(list(asked.prompt))


def test_mistakes_are_found_before_the_weights(tiny, monkeypatch):
    monkeypatch.setattr(load, "load_model", lambda *args, **options: pytest.fail("loads"))
    checkpoint = ("--checkpoint", str(tiny))
    with pytest.raises(UserError, match="--raw continues"):
        prepare(*checkpoint, "--raw", "--system", "Be kind.")
    with pytest.raises(UserError, match="context is"):
        prepare(*checkpoint, "--system", "a b c " * 60_000)


@pytest.mark.parametrize(("stdin", "message"), [(b"ab\xff", "not UTF-8 .byte 2"), (None, "closed")])
def test_standard_input_that_cannot_be_read(tiny, monkeypatch, stdin, message):
    file = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
    monkeypatch.setattr(sys, "stdin", file)
    with pytest.raises(UserError, match=message):
        _prepare(build_parser().parse_args(["--checkpoint", str(tiny), "-"]))
