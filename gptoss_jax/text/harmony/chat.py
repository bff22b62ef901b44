"""OpenAI-style chat dictionaries ↔ harmony messages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_jax.text.errors import HarmonyError
from gptoss_jax.text.harmony.messages import (
    ANALYSIS,
    CHANNELS,
    COMMENTARY,
    FINAL,
    FUNCTIONS,
    Compat,
    Effort,
    Message,
    ResponseFormat,
    ToolFunction,
    ToolNamespace,
)
from gptoss_jax.text.harmony.prompt import developer_message, system_message

_JSON_TYPE = "<|constrain|>json"
# OpenAI's servers' two and that of the published chat template.
_REASONING_FIELDS = ("reasoning", "reasoning_content", "thinking")
_NOT_WITH_A_CHANNEL = (*_REASONING_FIELDS, "tool_calls", "function_call")


@dataclasses.dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What an assistant turn says, sorted as the chat API wants it.

    Attributes:
      content: the answer; with tool calls and no answer, the preamble if there is one.
      reasoning: the chain of thought.
      tool_calls: messages to tools, in order; see `function_name`.
      flagged: some of the turn could not be parsed and stands in the texts as it came.
    """

    content: str
    reasoning: str
    tool_calls: tuple[Message, ...]
    flagged: bool


def from_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Iterable[ToolFunction] = (),
    response_formats: Iterable[ResponseFormat] = (),
    builtin_tools: Iterable[ToolNamespace] = (),
    effort: Effort = "medium",
    current_date: str | None = None,
    compat: Compat | None = None,
) -> list[Message]:
    """The conversation to render for a chat request.

    Leading `system` and `developer` messages become the instructions of one developer message;
    later ones become developer messages where they stand. An assistant's `reasoning` (or
    `reasoning_content`, or `thinking`) becomes an analysis message, its text beside tool calls a
    preamble on the commentary channel, its tool calls commentary messages to `functions.NAME`.
    Messages with a "channel" are harmony's own, as `Completion.messages` has them, and stay so.

    Args:
      messages: dictionaries with "role", "content", and what the chat API allows beside them.
      tools: functions the model may call.
      response_formats: schemas for the answer.
      builtin_tools: `BROWSER`, `PYTHON`.
      effort: low, medium or high.
      current_date: YYYY-MM-DD, None to leave it out.
      compat: as `render_conversation` takes it.

    Raises:
      HarmonyError: a message is not of this form; the text names its index.
    """
    _check_form(messages)
    tools = tuple(tools)
    lead = 0
    while lead < len(messages) and messages[lead].get("role") in ("system", "developer"):
        lead += 1
    instructions = "\n\n".join(_text(m, i) for i, m in enumerate(messages[:lead])) if lead else None
    system = system_message(
        effort,
        current_date,
        builtin_tools=builtin_tools,
        function_tools=bool(tools),
        compat=compat,
    )
    developer = developer_message(instructions, tools, response_formats, compat=compat)
    out = [system, developer] if developer.content else [system]
    names: dict[str, str] = {}
    for i, message in enumerate(messages[lead:], lead):
        out += _convert(message, i, names)
    return out


def to_turn(messages: Iterable[Message]) -> AssistantTurn:
    """Sorts the messages of one assistant turn, as `HarmonyParser.messages` has them."""
    messages = [m for m in messages if m.role == "assistant"]
    calls = tuple(m for m in messages if m.is_tool_call)
    answer = "".join(m.content for m in messages if m.is_answer)
    preamble = "".join(
        m.content for m in messages if m.channel == COMMENTARY and not m.is_tool_call
    )
    return AssistantTurn(
        content=answer or preamble,
        reasoning="\n".join(m.content for m in messages if m.is_reasoning and m.content),
        tool_calls=calls,
        flagged=any(m.flagged for m in messages),
    )


def function_name(recipient: str) -> str:
    """A function's own name from a recipient; models forget the `functions.` at times."""
    return recipient.removeprefix(f"{FUNCTIONS}.")


def tool_functions(tools: Iterable[Mapping[str, Any]]) -> list[ToolFunction]:
    """Functions from the `tools` of the chat API, or from the flat form of the Responses API.

    Raises:
      HarmonyError: an entry is not a function, has no name, or a field of another type.
    """
    out = []
    for i, tool in enumerate(tools):
        function = tool.get("function", tool)
        if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
            raise HarmonyError(
                f"tools[{i}]: type {tool.get('type')!r}; only functions can be given"
            )
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise HarmonyError(f"tools[{i}]: the function has no name; give one")
        description, parameters = function.get("description"), function.get("parameters")
        if not isinstance(description, str | None):
            raise HarmonyError(f"tools[{i}].description: give a string, not {_kind(description)}")
        if not isinstance(parameters, Mapping | None):
            raise HarmonyError(f"tools[{i}].parameters: give a schema, not {_kind(parameters)}")
        strict = function.get("strict") is True
        out.append(ToolFunction(name, description or "", parameters, strict))
    return out


def _check_form(messages: Any) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise HarmonyError(
            f"messages: give a list of dictionaries with role and content, not {_kind(messages)}"
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise HarmonyError(
                f"messages[{i}]: give a dictionary with role and content, not {_kind(message)}"
            )


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def _convert(message: Mapping[str, Any], i: int, names: dict[str, str]) -> list[Message]:
    role = message.get("role")
    if role in ("system", "developer"):
        return [developer_message(_text(message, i))]
    if role == "user":
        name = message.get("name")
        return [Message("user", _text(message, i), name=name if isinstance(name, str) else None)]
    if role == "assistant":
        return _assistant(message, i, names)
    if role in ("tool", "function"):
        return [_tool_answer(message, i, names)]
    raise HarmonyError(
        f"messages[{i}]: role {role!r} is unknown; use system, developer, user, assistant or tool"
    )


def _assistant(message: Mapping[str, Any], i: int, names: dict[str, str]) -> list[Message]:
    if message.get("channel") is not None:
        return [_of_a_channel(message, i)]
    out = []
    reasoning = _reasoning(message, i)
    if reasoning:
        out.append(Message("assistant", reasoning, channel=ANALYSIS))
    text, calls = _text(message, i), _tool_calls(message, i)
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    if text or not (calls or reasoning):
        channel = COMMENTARY if calls else FINAL
        out.append(Message("assistant", text, channel=channel))
    return out + [_call(c, f"messages[{i}].tool_calls[{n}]", names) for n, c in enumerate(calls)]


def _of_a_channel(message: Mapping[str, Any], i: int) -> Message:
    channel = message["channel"]
    if channel not in CHANNELS:
        raise HarmonyError(
            f"messages[{i}].channel: {channel!r} is unknown; use {', '.join(CHANNELS)}"
        )
    beside = [field for field in _NOT_WITH_A_CHANNEL if message.get(field)]
    if beside:
        raise HarmonyError(f"messages[{i}].{beside[0]}: a message with a channel has content alone")
    recipient, kind = message.get("recipient"), message.get("content_type")
    for field, value in (("recipient", recipient), ("content_type", kind)):
        if not isinstance(value, str | None):
            raise HarmonyError(f"messages[{i}].{field}: give a string, not {_kind(value)}")
    text = _text(message, i)
    return Message("assistant", text, recipient=recipient, channel=channel, content_type=kind)


def _reasoning(message: Mapping[str, Any], i: int) -> str:
    given = {field: message[field] for field in _REASONING_FIELDS if message.get(field) is not None}
    for field, text in given.items():
        if not isinstance(text, str):
            raise HarmonyError(f"messages[{i}].{field}: give a string, not {_kind(text)}")
    return next(filter(None, given.values()), "")


def _tool_calls(message: Mapping[str, Any], i: int) -> list[Any]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise HarmonyError(f"messages[{i}].tool_calls: give a list, not {_kind(calls)}")
    return list(calls)


def _call(call: Any, where: str, names: dict[str, str]) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise HarmonyError(f"{where}: no function name; give function.name")
    recipient = _full_name(name)
    if isinstance(call.get("id"), str):
        names[call["id"]] = recipient
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Message(
        "assistant",
        arguments,
        recipient=recipient,
        channel=COMMENTARY,
        content_type=_JSON_TYPE,
    )


def _tool_answer(message: Mapping[str, Any], i: int, names: dict[str, str]) -> Message:
    call_id, name = message.get("tool_call_id"), message.get("name")
    known = names.get(call_id) if isinstance(call_id, str) else None
    if known is None and not (isinstance(name, str) and name):
        raise HarmonyError(
            f"messages[{i}]: tool_call_id {call_id!r} matches no earlier tool call; "
            "send the assistant message with that call, or give name"
        )
    as_it_stands = message.get("channel") is not None
    return Message(
        "tool",
        _text(message, i),
        name=known or (str(name) if as_it_stands else _full_name(str(name))),
        recipient="assistant",
        channel=COMMENTARY,
    )


def _full_name(name: str) -> str:
    return name if name.startswith(f"{FUNCTIONS}.") else f"{FUNCTIONS}.{name}"


def _text(message: Mapping[str, Any], i: int) -> str:
    content = message.get("content")
    if content is None:
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise HarmonyError(f"messages[{i}].content: give a string or a list of text parts")
    return "".join(_part(part, f"messages[{i}].content[{n}]") for n, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise HarmonyError(f"{where}: a part of type {kind!r} has no text; gpt-oss reads text only")
    return text
