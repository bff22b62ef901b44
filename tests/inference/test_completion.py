"""A turn from scripted tokens: channels, finish reasons, raw text, and what generate shows."""

import dataclasses
import io
import sys

import pytest

from gptoss_jax.checkpoint import load
from gptoss_jax.checkpoint.synthetic import write_synthetic
from gptoss_jax.errors import UserError
from gptoss_jax.generate import _check_together, _prepare, _stream, build_parser
from gptoss_jax.inference.completion import Turn
from gptoss_jax.inference.requests import Request, Sequence
from gptoss_jax.inference.runner import Timings
from gptoss_jax.interactive import Printer
from gptoss_jax.text import o200k_harmony
from gptoss_jax.tools.tool import Toolbox

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

    def submit(self, request):
        return Sequence(request, 0, 1000, list(request.prompt))

    def cancel(self, sequence):
        sequence.cancelled = True

    def follow(self, sequence):
        for first in range(0, len(self._tokens), self._a_call):
            yield self._tokens[first : first + self._a_call]


def tokens_of(text: str):
    tokenizer = o200k_harmony()
    while text:
        special = next((s for s in tokenizer.specials if text.startswith(s)), None)
        cut = len(special) if special else (text.find("<|", 1) % (len(text) + 1))
        piece, text = text[:cut], text[cut:]
        yield from [tokenizer.token_id(special)] if special else tokenizer.encode(piece)


def turn(text: str, *, a_call: int = 3, stop: tuple[str, ...] = (), **options) -> Turn:
    request = Request([1, 2], 100, stop=stop)
    return Turn(Script(text, a_call), o200k_harmony(), request, **options)


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
        (THOUGHT + CALL, [("analysis", "Hmm, é."), ("to functions.f", "{}")]),
        (QUIET_CALL, [("to python", "1+1")]),
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


@pytest.mark.parametrize("a_call", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "said", "reason"),
    [
        ("One. Two. Three.", ". Th", "One. Two", "stop"),
        ("One. Two. Three.", "O", "", "stop"),
        ("One. Two. Three.", "Three. Four", "One. Two. Three.", "stop"),  # by the model
        ("naïve é 日本", "本", "naïve é 日", "stop"),
        ("a<b<c", "<c<", "a<b<c", "stop"),
    ],
)
def test_a_stop_string_ends_the_answer_before_it(a_call, text, stop, said, reason):
    """Wherever it lies across tokens; no part of it is shown, and what was held back is."""
    script = THOUGHT + f"<|channel|>final<|message|>{text}<|return|>"
    one = turn(script, a_call=a_call, stop=(stop, "never in it"))
    shown = pieces(one)
    assert "".join(piece for channel, piece in shown if channel == "final") == said
    done = one.completion()
    assert (done.text, done.reasoning, done.finish_reason) == (said, "Hmm, é.", reason)
    assert done.messages[-1]["content"] == said
    assert done.messages[-1]["channel"] == "final"


def test_stop_strings_are_of_the_final_channel_alone():
    one = turn(THOUGHT + CALL, stop=("Hmm", "{", "json"))
    assert pieces(one) == [("analysis", "Hmm, é."), ("to functions.f", "{}")]
    assert one.completion().finish_reason == "tool_calls"
    again = turn(THOUGHT + ANSWER, stop=("Hmm", "é"))
    assert pieces(again)[-1] == ("final", "Sky: ")


def test_a_stop_string_lies_within_one_message():
    other = "<|channel|>final<|message|>B!<|return|>"
    two = "<|channel|>final<|message|>A<|end|><|start|>assistant" + other
    one = turn(two, stop=("AB", "!"))
    assert pieces(one) == [("final", "AB")]
    assert [m["content"] for m in one.completion().messages] == ["A", "B"]


def test_a_stop_string_ends_raw_text():
    one = turn("One. Two. Three.", raw=True, stop=("wo. T",))
    assert pieces(one) == [("raw", "One. T")]
    assert one.completion().text == "One. T"
    assert one.completion().finish_reason == "stop"


def test_tokens_after_a_stop_string_do_not_count():
    one = turn(ANSWER, a_call=100, stop=("Sky",))
    pieces(one)
    assert one.completion().usage["completion_tokens"] == 4  # the header's three and "Sky"


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


def stream(one: Turn, *, reasoning: bool, answer: bool = True) -> None:
    printer = Printer(answer=answer, reasoning=reasoning)
    _stream(one, printer)
    printer.finish(one.completion().text)


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
    stream(turn(text), reasoning=reasoning)
    assert capsys.readouterr() == (out, err)


def test_lines_of_a_terminal_are_not_mixed(monkeypatch):
    """Standard output and error are one there."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    again = ANSWER.replace("<|return|>", "<|end|><|start|>assistant")
    stream(turn(again + THOUGHT + ANSWER), reasoning=True)
    assert terminal.getvalue() == "Sky: é.\n[analysis] Hmm, é.\nSky: é.\n"


def test_json_streams_nothing(capsys):
    stream(turn(THOUGHT + ANSWER), reasoning=False, answer=False)
    assert capsys.readouterr() == ("", "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("flags") / "model"
    write_synthetic("tiny", directory, None, 0)
    return directory


def prepare(*words: str) -> list[Turn]:
    arguments = build_parser().parse_args([*words, "Hi"])
    _check_together(arguments)
    return [turn for turn, _ in _prepare(arguments, Toolbox())]


def test_flags_reach_the_device(tiny):
    one, other = prepare(
        "-n",
        "2",
        "--json",
        "--logprobs",
        "3",
        "--repetition-penalty",
        "1.25",
        "--presence-penalty",
        "-0.5",
        "--frequency-penalty",
        "0.75",
        "--logit-bias",
        "17=-3.5",
        "--logit-bias",
        "4=2",
        "--stop",
        "END",
        "--stop",
        "\n\n",
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
    asked = one._sequence.request
    assert (asked.min_p, asked.top_k, asked.top_p) == (0.25, 7, 0.5)
    assert (asked.temperature, asked.seed) == (0.75, 9)
    assert (asked.repetition_penalty, asked.presence_penalty) == (1.25, -0.5)
    assert (asked.frequency_penalty, asked.logit_bias) == (0.75, {17: -3.5, 4: 2.0})
    assert (list(asked.stop), asked.logprobs) == (["END", "\n\n"], 3)
    assert other._sequence.request == dataclasses.replace(asked, seed=10)
    assert "Reasoning: high" in o200k_harmony().decode(list(asked.prompt))


def test_mistakes_are_found_before_the_weights(tiny, monkeypatch):
    monkeypatch.setattr(load, "load_model", lambda *args, **options: pytest.fail("loads"))
    checkpoint = ("--checkpoint", str(tiny))
    with pytest.raises(UserError, match="--raw continues"):
        prepare(*checkpoint, "--raw", "--system", "Be kind.")
    with pytest.raises(UserError, match="context is"):
        prepare(*checkpoint, "--system", "a b c " * 60_000)
    with pytest.raises(UserError, match="id 201088 is outside"):
        prepare(*checkpoint, "--logit-bias", "201088=1")
    with pytest.raises(UserError, match="none of them empty"):
        prepare(*checkpoint, "--stop", "")
    with pytest.raises(UserError, match="--logprobs is shown by --json"):
        prepare(*checkpoint, "--logprobs", "2")


@pytest.mark.parametrize(("stdin", "message"), [(b"ab\xff", "not UTF-8 .byte 2"), (None, "closed")])
def test_standard_input_that_cannot_be_read(tiny, monkeypatch, stdin, message):
    file = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
    monkeypatch.setattr(sys, "stdin", file)
    with pytest.raises(UserError, match=message):
        _prepare(build_parser().parse_args(["--checkpoint", str(tiny), "-"]), Toolbox())
