"""Lines of a data file as examples: one conversation each, or two to choose between."""

import difflib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from gptoss_jax import strict_json
from gptoss_jax.errors import UserError
from gptoss_jax.text import TextError, Tokenizer
from gptoss_jax.text.harmony import Message, from_chat, tool_functions
from gptoss_jax.text.harmony.prompt import EFFORTS
from gptoss_jax.training.examples import Example, Pair, Unit, example, paired
from gptoss_jax.training.settings import Settings

# What of a message says something.
_SAYING = (
    *("content", "reasoning", "reasoning_content", "thinking", "refusal"),
    *("tool_calls", "function_call"),
)
# What else a message may have that is looked at; a near miss of any is a slip.
_FIELDS = (*_SAYING, "role", "name", "channel", "recipient", "content_type", "tool_call_id")
Parse = Callable[[bytes, Settings, Tokenizer], Unit]


def conversation(line: bytes, config: Settings, tokenizer: Tokenizer) -> Example:
    """Of `{"messages": […]}`.

    Raises:
      UserError: the line is no such object, or the conversation longer than a row.
      TextError: it cannot be rendered.
    """
    raw = _object(line, {"messages"}, 'give an object {"messages": […]}')
    one = example_of(_messages(raw, raw["messages"]), config, tokenizer)
    _check_length(one, config)
    return one


def pair(line: bytes, config: Settings, tokenizer: Tokenizer) -> Pair:
    """Of `{"prompt": […], "chosen": […], "rejected": […]}`; without a prompt both are whole.

    Raises:
      UserError: the line is no such object, or the two together are longer than a row.
      TextError: one cannot be rendered, or they do not differ.
    """
    form = 'give an object {"prompt": […], "chosen": […], "rejected": […]}'
    raw = {"prompt": []} | _object(line, {"chosen", "rejected"}, form)
    if not isinstance(raw["prompt"], list):
        raise UserError(form)
    sides = []
    for side in ("chosen", "rejected"):
        try:
            messages = _messages(raw, raw["prompt"] + raw[side])
            sides.append(example_of(messages, config, tokenizer))
        except (UserError, TextError) as error:
            raise UserError(f"{side}: {error}") from None
    both = paired(*sides)
    _check_length(both, config)
    return both


def example_of(messages: Sequence[Message], config: Settings, tokenizer: Tokenizer) -> Example:
    """The example of a conversation of any length.

    Raises:
      TextError: it cannot be rendered.
    """
    data = config.data
    return example(tokenizer, messages, data.train_on, keep_analysis=data.keep_analysis)


def _object(line: bytes, lists: set[str], form: str) -> dict[str, Any]:
    """The line's object, which has these lists."""
    try:
        raw = strict_json.loads(line)
        if rb"\ud" in line.lower():  # half a character can be written only so
            json.dumps(raw, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:  # whose text counts lines, too
        raise UserError(f"not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from None
    if not isinstance(raw, dict) or not all(isinstance(raw.get(name), list) for name in lists):
        raise UserError(form)
    return raw


def _messages(raw: dict[str, Any], chat: list[Any]) -> list[Message]:
    tools = [] if raw.get("tools") is None else raw["tools"]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError("tools: give a list of objects")
    effort, date = raw.get("reasoning_effort", "medium"), raw.get("current_date")
    if effort not in EFFORTS:
        raise UserError(f"reasoning_effort: {effort!r} is none of {', '.join(EFFORTS)}")
    if not isinstance(date, str | None):
        raise UserError(f"current_date: {date!r} is no string")
    for i, message in enumerate(chat):
        if isinstance(message, dict):
            _check_message(message, f"messages[{i}]")
    messages = from_chat(chat, tools=tool_functions(tools), effort=effort, current_date=date)
    _check_answered(messages)
    return messages


def _check_message(message: dict[str, Any], where: str) -> None:
    """Refuses what would be left out without a word, or teach what no program could read."""
    missing = [field for field in _FIELDS if field not in message]
    for field in sorted(map(str, message.keys() - set(_FIELDS))):
        for meant in difflib.get_close_matches(field, missing, n=1, cutoff=0.8):
            raise UserError(f"{where}: unknown field {field!r}; did you mean {meant!r}?")
    if _says_nothing(message):
        raise UserError(f"{where}: says nothing; give content")
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    functions = {f"tool_calls[{n}]": c.get("function") for n, c in enumerate(calls) if _is_map(c)}
    for name, function in (functions | {"function_call": message.get("function_call")}).items():
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if arguments not in (None, "") and not _is_object(arguments):
            raise UserError(f"{where}.{name}: arguments are no JSON object: {arguments!r}")


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_object(arguments: Any) -> bool:
    """Whether it is one, or JSON text of one."""
    if not isinstance(arguments, str):
        return isinstance(arguments, dict)
    try:
        return isinstance(strict_json.loads(arguments.encode()), dict)
    except (ValueError, RecursionError):
        return False


def _check_answered(messages: Sequence[Message]) -> None:
    """Refuses a turn of analysis alone: it would teach to end without an answer."""
    for one, after in itertools.zip_longest(messages, messages[1:]):
        thinks = one.role == "assistant" and one.channel == "analysis" and one.recipient is None
        if thinks and (after is None or after.role != "assistant"):
            shown = one.content[:40]
            raise UserError(f"analysis {shown!r} without an answer; give content or tool_calls")


def _says_nothing(message: dict[str, Any]) -> bool:
    """Whether it would teach silence; a chat API takes null for "", and an assistant's "".

    A call of harmony's own may have no arguments.
    """
    said = [message.get(name) for name in _SAYING]
    if message.get("role") == "assistant" and message.get("recipient") is None:
        return not any(said)
    return all(one is None for one in said)


def _check_length(one: Unit, config: Settings) -> None:
    longest = config.data.sequence_length
    if one.length > longest:
        raise UserError(
            f"{one.length} tokens are more than the context, config.data.sequence_length {longest}"
        )
