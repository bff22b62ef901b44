"""Rendering, token for token against openai-harmony 0.0.8, live and by committed golden ids."""

import json
from pathlib import Path

import pytest

from gptoss_jax.text import HarmonyError
from gptoss_jax.text.harmony import (
    BROWSER,
    PYTHON,
    Message,
    ResponseFormat,
    ToolFunction,
    developer_message,
    render_conversation,
    render_for_training,
    system_message,
)

COMPAT = "openai-harmony-0.0.8"
CASES = json.loads((Path(__file__).parent / "goldens" / "harmony.json").read_text())

U = Message("user", "hi")
A = Message("assistant", "thinking", channel="analysis")
F = Message("assistant", "answer", channel="final")
CALL = Message(
    "assistant",
    '{"a":1}',
    recipient="functions.f",
    channel="commentary",
    content_type="<|constrain|>json",
)
TOOL = Message("tool", "42", name="functions.f", recipient="assistant", channel="commentary")


@pytest.mark.parametrize("name", CASES)
def test_compat_matches_golden_ids(name, o200k, from_oracle_json):
    case = CASES[name]
    _check(o200k, from_oracle_json(case["messages"]), case["ids"], name)


def test_compat_matches_the_library(o200k, oracle, make_goldens, from_oracle_json):
    cases = make_goldens.conversations() | make_goldens.builtin_conversations()
    assert cases.keys() == CASES.keys()
    for name, messages in cases.items():
        _check(o200k, from_oracle_json(messages), make_goldens.render(oracle, messages), name)


def test_goldens_are_current(oracle, make_goldens):
    for name, case in CASES.items():
        assert make_goldens.render(oracle, case["messages"]) == case["ids"], name


def _check(o200k, messages, want, name):
    def render(completion, keep):
        return render_conversation(
            o200k, messages, for_completion=completion, keep_analysis=keep, compat=COMPAT
        )

    assert render(True, False) == want["completion"], name
    assert render(True, True) == want["completion_keep"], name
    assert render(False, False) == want["history"], name
    if not (messages and messages[-1].recipient):  # its training mode ends a call with <|return|>
        assert render_for_training(o200k, messages, keep_analysis=True)[0] == want["training_keep"]


@pytest.mark.parametrize("name", CASES)
def test_default_mode_differs_only_where_it_says(name, o200k, from_oracle_json):
    """The spec's rules and openai-harmony's part in these conversations and no other."""
    messages = from_oracle_json(CASES[name]["messages"], compat=None)
    same = render_conversation(o200k, messages) == CASES[name]["ids"]["completion"]
    assert same == (name not in {"second_loop", "third_turn", "recipient_all"})


def test_texts_of_the_specification(o200k):
    """The specification's own example of a conversation with functions."""
    city = {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
    unit = {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}
    cities = {
        "type": "array",
        "items": {"type": "string"},
        "description": 'List of city and state, e.g. ["San Francisco, CA", "New York, NY"]',
    }
    tools = [
        ToolFunction("get_location", "Gets the location of the user."),
        ToolFunction(
            "get_current_weather",
            "Gets the current weather in the provided location.",
            {
                "type": "object",
                "properties": {"location": city, "format": unit},
                "required": ["location"],
            },
        ),
        ToolFunction(
            "get_multiple_weathers",
            "Gets the current weather in the provided list of locations.",
            {
                "type": "object",
                "properties": {"locations": cities, "format": unit},
                "required": ["locations"],
            },
        ),
    ]
    messages = [
        system_message("high", "2025-06-28", function_tools=True),
        developer_message("Use a friendly tone.", tools),
        Message("user", "What is the weather like in SF?"),
    ]
    assert o200k.decode(render_conversation(o200k, messages)) == SPEC_EXAMPLE


SPEC_EXAMPLE = """<|start|>system<|message|>\
You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2025-06-28

Reasoning: high

# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'.<|end|><|start|>developer\
<|message|># Instructions

Use a friendly tone.

# Tools

## functions

namespace functions {

// Gets the location of the user.
type get_location = () => any;

// Gets the current weather in the provided location.
type get_current_weather = (_: {
// The city and state, e.g. San Francisco, CA
location: string,
format?: "celsius" | "fahrenheit", // default: celsius
}) => any;

// Gets the current weather in the provided list of locations.
type get_multiple_weathers = (_: {
// List of city and state, e.g. ["San Francisco, CA", "New York, NY"]
locations: string[],
format?: "celsius" | "fahrenheit", // default: celsius
}) => any;

} // namespace functions<|end|><|start|>user<|message|>What is the weather like in SF?<|end|>\
<|start|>assistant"""


def test_response_formats_come_last(o200k):
    schema = {"type": "object", "properties": {"größe": {"type": "number"}}}
    formats = [ResponseFormat("shape", schema, "What was\nmeasured."), ResponseFormat("b", {})]
    text = developer_message("Be exact.", [ToolFunction("f")], formats).content
    assert text == (
        "# Instructions\n\nBe exact.\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n"
        "type f = () => any;\n\n} // namespace functions\n\n# Response Formats\n\n## shape\n\n"
        "// What was\n// measured.\n"
        '{"type":"object","properties":{"größe":{"type":"number"}}}\n\n## b\n\n{}'
    )


def test_response_formats_as_openai_harmony_users_write_them(o200k, oracle, make_goldens):
    """The library has no response formats: its users put the section into the instructions."""
    message = developer_message("Be exact.", (), [ResponseFormat("shape", {"type": "object"})])
    instructions = 'Be exact.\n\n# Response Formats\n\n## shape\n\n{"type":"object"}'
    want = make_goldens.render(oracle, [make_goldens.developer(instructions)])["completion"]
    assert render_conversation(o200k, [message]) == want


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ([U, A, F, U], [U, F, U]),
        ([U, A, CALL, TOOL], [U, A, CALL, TOOL]),
        ([U, A, CALL, TOOL, A, F, U], [U, CALL, TOOL, F, U]),
        # openai-harmony shows the first turn's analysis here, and the second's in the next line.
        ([U, A, F, U, A, CALL, TOOL], [U, F, U, A, CALL, TOOL]),
        ([U, A, F, U, A, F, U], [U, F, U, F, U]),
        ([U, A], [U, A]),
        ([], []),
    ],
)
def test_analysis_of_finished_turns_is_dropped(messages, shown, o200k):
    want = render_conversation(o200k, shown, keep_analysis=True)
    assert render_conversation(o200k, messages) == want


def test_builtin_calls_go_with_their_answers(o200k):
    call = Message("assistant", "1+1", recipient="python", channel="analysis", content_type="code")
    answer = Message("tool", "2", name="python", recipient="assistant")
    later = Message("assistant", "x", recipient="python", channel="commentary")
    messages = [U, A, call, answer, later, answer, F, U]
    shown = [U, later, answer, F, U]
    want = render_conversation(o200k, shown, keep_analysis=True)
    assert render_conversation(o200k, messages) == want


def test_training_keeps_the_last_turn_and_marks_what_was_sampled(o200k):
    messages = [U, A, F, U, A, F]
    ids, learn = render_for_training(o200k, messages)
    start = "<|start|>assistant"
    assert o200k.decode(ids) == (
        "<|start|>user<|message|>hi<|end|>"
        f"{start}<|channel|>final<|message|>answer<|end|>"
        "<|start|>user<|message|>hi<|end|>"
        f"{start}<|channel|>analysis<|message|>thinking<|end|>"
        f"{start}<|channel|>final<|message|>answer<|return|>"
    )
    assert o200k.decode(i for i, kept in zip(ids, learn, strict=True) if kept) == (
        "<|channel|>final<|message|>answer"
        "<|channel|>analysis<|message|>thinking<|end|>"
        "<|channel|>final<|message|>answer<|return|>"
    )


def test_recipient_all_ends_with_end(o200k):
    message = Message("assistant", "x", recipient="all", channel="final")
    default = o200k.decode(render_conversation(o200k, [message], for_completion=False))
    compat = render_conversation(o200k, [message], for_completion=False, compat=COMPAT)
    assert default == "<|start|>assistant<|channel|>final<|message|>x<|end|>"
    assert o200k.decode(compat) == "<|start|>assistant<|channel|>final<|message|>x<|call|>"


def test_content_never_becomes_structure(tokenizer):
    nasty = "".join(tokenizer.specials)
    messages = [system_message(), developer_message(nasty), Message("user", nasty)]
    rendered = render_conversation(tokenizer, messages)
    specials = [tokenizer.decode([i]) for i in rendered if tokenizer.is_special(i)]
    assert specials == ["<|start|>", "<|message|>", "<|end|>"] * 3 + ["<|start|>"]


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda t: render_conversation(t, [Message("bot", "x")]), "role 'bot' is unknown; use one"),
        (lambda t: render_conversation(t, [Message("tool", "x")]), "a tool message has no name"),
        (lambda t: system_message("max"), "reasoning effort 'max' is unknown; use low, medium"),
    ],
)
def test_mistakes_are_one_line_errors(build, error, o200k):
    with pytest.raises(HarmonyError, match=error) as caught:
        build(o200k)
    assert "\n" not in str(caught.value)


def test_builtin_tools_stand_in_the_system_message():
    text = system_message("low", builtin_tools=[PYTHON, BROWSER]).content
    assert text.index("## browser") < text.index("## python") < text.index("# Valid channels")
    assert "namespace python" not in text
