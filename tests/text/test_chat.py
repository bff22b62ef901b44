"""Chat dictionaries to harmony and back."""

import pytest

from gptoss_jax.text import HarmonyError
from gptoss_jax.text.harmony import (
    HarmonyParser,
    Message,
    ResponseFormat,
    ToolFunction,
    from_chat,
    function_name,
    render_conversation,
    to_turn,
    tool_functions,
)

JSON = "<|constrain|>json"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
HARMONY_CALL = Message("assistant", '{"a": 1}', None, "functions.f", "commentary", JSON)
ANSWER = Message("tool", "42", "functions.f", "assistant", "commentary")


def history(*messages):
    """The messages after the system message."""
    return from_chat(messages)[1:]


def test_system_maps_to_developer_and_comes_once():
    out = from_chat(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": "hi"},
        ],
        effort="high",
        current_date="2026-03-01",
    )
    assert [m.role for m in out] == ["system", "developer", "user"]
    assert "Reasoning: high" in out[0].content and "Current date: 2026-03-01" in out[0].content
    assert out[1].content == "# Instructions\n\nBe brief.\n\nBe kind."


def test_no_developer_message_without_need():
    assert [m.role for m in from_chat([{"role": "user", "content": "hi"}])] == ["system", "user"]
    with_format = from_chat([], response_formats=[ResponseFormat("r", {})])
    assert with_format[1].content == "# Response Formats\n\n## r\n\n{}"
    system, developer = from_chat([], tools=[ToolFunction("f")])
    assert "commentary channel: 'functions'." in system.content
    assert developer.content.startswith("# Tools")


def test_a_later_system_message_stays_in_place():
    out = history({"role": "user", "content": "a"}, {"role": "system", "content": "b"})
    assert out == [Message("user", "a"), Message("developer", "# Instructions\n\nb")]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_taken_back_between_tool_calls(field):
    out = history(
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, field: "why", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    )
    why = Message("assistant", "why", channel="analysis")
    assert out == [Message("user", "q"), why, HARMONY_CALL, ANSWER]


def test_text_beside_tool_calls_is_a_preamble():
    [preamble, _] = history({"role": "assistant", "content": "Plan.", "tool_calls": [CALL]})
    assert preamble == Message("assistant", "Plan.", channel="commentary")


@pytest.mark.parametrize(
    ("message", "want"),
    [
        ({"role": "assistant", "content": "x"}, Message("assistant", "x", channel="final")),
        ({"role": "assistant", "content": ""}, Message("assistant", "", channel="final")),
        (
            {"role": "assistant", "content": None, "refusal": "no"},
            Message("assistant", "no", channel="final"),
        ),
        (
            {"role": "assistant", "function_call": {"name": "functions.f", "arguments": {"a": 1}}},
            HARMONY_CALL,
        ),
        ({"role": "tool", "name": "f", "content": "42"}, ANSWER),
        ({"role": "function", "name": "functions.f", "content": ["4", {"text": "2"}]}, ANSWER),
        ({"role": "user", "name": "ada", "content": "x"}, Message("user", "x", name="ada")),
        (
            {"role": "assistant", "content": "why", "channel": "analysis", "reasoning": None},
            Message("assistant", "why", channel="analysis"),
        ),
        (
            {"role": "assistant", "content": "1", "channel": "analysis", "recipient": "python"},
            Message("assistant", "1", channel="analysis", recipient="python"),
        ),
        (
            {"role": "tool", "name": "python", "content": "1", "channel": "commentary"},
            Message("tool", "1", name="python", recipient="assistant", channel="commentary"),
        ),
    ],
)
def test_single_messages(message, want):
    assert history(message) == [want]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "bot", "content": "x"}, r"messages\[0\]: role 'bot' is unknown; use system"),
        ({"content": "x"}, r"messages\[0\]: role None is unknown"),
        ({"role": "user", "content": 3}, r"messages\[0\].content: give a string or a list"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            r"messages\[0\].content\[0\]: a part of type 'image_url' has no text",
        ),
        ({"role": "tool", "tool_call_id": "c9"}, "tool_call_id 'c9' matches no earlier tool call"),
        (
            {"role": "assistant", "tool_calls": [{"id": "x"}]},
            r"messages\[0\].tool_calls\[0\]: no f",
        ),
        ({"role": "assistant", "tool_calls": ["x"]}, r"messages\[0\].tool_calls\[0\]: no function"),
        ({"role": "assistant", "tool_calls": 5}, r"messages\[0\].tool_calls: give a list, not"),
        (
            {"role": "assistant", "content": "x", "reasoning": {"text": "why"}},
            r"messages\[0\].reasoning: give a string, not a value of type dict",
        ),
        (
            {"role": "assistant", "reasoning": "why", "reasoning_content": ["why"]},
            r"messages\[0\].reasoning_content: give a string",
        ),
        (
            {"role": "assistant", "content": "x", "channel": "finale"},
            r"messages\[0\].channel: 'finale' is unknown; use analysis, commentary, final",
        ),
        (
            {"role": "assistant", "content": "x", "channel": "final", "reasoning": "why"},
            r"messages\[0\].reasoning: a message with a channel has content alone",
        ),
        (
            {"role": "assistant", "content": "x", "channel": "commentary", "recipient": 5},
            r"messages\[0\].recipient: give a string, not a value of type int",
        ),
        ("hi", r"messages\[0\]: give a dictionary with role and content, not a value of type str"),
        (None, r"messages\[0\]: give a dictionary"),
    ],
)
def test_mistakes_name_the_message(message, error):
    with pytest.raises(HarmonyError, match=error) as caught:
        from_chat([message])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", ["hi", b"hi", None, {"role": "user", "content": "hi"}, 5])
def test_what_is_no_list_of_messages_is_refused(messages):
    with pytest.raises(HarmonyError, match="messages: give a list of dictionaries") as caught:
        from_chat(messages)
    assert "\n" not in str(caught.value)


def test_tool_functions_in_both_forms():
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    nested = {"type": "function", "function": function}
    want = ToolFunction("f", "d", {"type": "object"})
    assert tool_functions([nested, {"type": "function", **function}]) == [want, want]
    assert tool_functions([{"function": {"name": "g"}}]) == [ToolFunction("g")]
    with pytest.raises(HarmonyError, match=r"tools\[0\]: type 'web_search'; only functions"):
        tool_functions([{"type": "web_search"}])
    with pytest.raises(HarmonyError, match=r"tools\[0\]: the function has no name"):
        tool_functions([{"type": "function", "function": {}}])
    for field, value in (("description", ["d"]), ("parameters", "{}")):
        with pytest.raises(HarmonyError, match=rf"tools\[1\]\.{field}: give .*, not a value of"):
            tool_functions([nested, {"name": "f", field: value}])


def test_a_turn_survives_the_chat_api(o200k):
    """What is parsed, sent out as a dictionary, and sent back renders to the same tokens."""
    turn = [
        Message("assistant", "why", channel="analysis"),
        Message("assistant", "Plan.", channel="commentary"),
        HARMONY_CALL,
    ]
    rendered = render_conversation(o200k, turn, for_completion=False, keep_analysis=True)
    parsed = to_turn(HarmonyParser(o200k, role=None).parse(rendered))
    assert (parsed.content, parsed.reasoning, parsed.flagged) == ("Plan.", "why", False)
    calls = [
        {"function": {"name": function_name(c.recipient), "arguments": c.content}}
        for c in parsed.tool_calls
    ]
    message = {"role": "assistant", "content": parsed.content, "reasoning": parsed.reasoning}
    assert history({**message, "tool_calls": calls}) == turn


def test_to_turn_takes_only_what_the_assistant_says():
    messages = [
        Message("assistant", "one", channel="analysis"),
        Message("assistant", "", channel="analysis"),
        Message("assistant", "two", channel="analysis"),
        Message("assistant", "hi", channel="final"),
        Message("user", "not this", flagged=True),
    ]
    turn = to_turn(messages)
    assert (turn.content, turn.reasoning, turn.tool_calls) == ("hi", "one\ntwo", ())
    assert not turn.flagged
