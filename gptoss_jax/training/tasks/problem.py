"""What a problem is: a prompt, the turn that answers it, and the check of an answer."""

import dataclasses
import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from gptoss_jax.text.harmony import (
    Effort,
    Message,
    ResponseFormat,
    ToolFunction,
    from_chat,
    function_name,
)
from gptoss_jax.training.tasks.expression import evaluate_expression

SPLITS = ("train", "validation", "test")
_BUCKETS = 20
Chat = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A function call of the model: the function's name and its arguments as JSON text."""

    name: str
    arguments: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of one skill.

    Attributes:
      skill: its name in the registry.
      key: what is asked, however it is phrased; decides the split. "": in training alone.
      messages: the prompt, chat dictionaries.
      reference: the assistant's turn as it should be, chat dictionaries; with `call` these are the
        call, the tool's result, and the answer.
      answer: what the final text must give.
      check: takes (text, answer); whether the text gives it.
      effort: low, medium or high.
      current_date: YYYY-MM-DD for the system message, None for none.
      tools: functions the prompt offers.
      response_formats: schemas the prompt asks for.
      call: the expression the model should have calculated before it answers, if any.
    """

    skill: str
    key: str
    messages: tuple[Chat, ...]
    reference: tuple[Chat, ...]
    answer: str
    check: Callable[[str, str], bool]
    effort: Effort
    current_date: str | None = None
    tools: tuple[ToolFunction, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()
    call: str | None = None

    def prompt(self) -> list[Message]:
        """The conversation up to the assistant's turn."""
        return self._harmony(self.messages)

    def conversation(self) -> list[Message]:
        """The prompt and the reference turn."""
        return self._harmony(self.messages + self.reference)

    def grade(self, text: str, tool_call: ToolCall | None = None) -> bool:
        """Whether a turn is right: the call if one is due, else the text of the final channel."""
        if self.call is None:
            return tool_call is None and self.check(text, self.answer)
        return tool_call is not None and _calculates(tool_call, self.call)

    def after_call(self, made: Chat) -> "Problem":
        """The problem that is left once the model's call (a chat dictionary) has its result."""
        messages = (*self.messages, made, self.reference[1])
        return dataclasses.replace(self, messages=messages, reference=self.reference[2:], call=None)

    def _harmony(self, messages: tuple[Chat, ...]) -> list[Message]:
        return from_chat(
            messages,
            tools=self.tools,
            response_formats=self.response_formats,
            effort=self.effort,
            current_date=self.current_date,
        )


def belongs(key: str, split: str) -> bool:
    """Whether a problem with this key may be in a split; all but train have a twentieth each.

    Args:
      key: a problem's.
      split: one of `SPLITS`.
    """
    bucket = zlib.crc32(key.encode()) % _BUCKETS if key else _BUCKETS
    held_out = SPLITS[1:]
    return split == (held_out[bucket] if bucket < len(held_out) else "train")


def user(text: str) -> Chat:
    """A user's message."""
    return {"role": "user", "content": text}


def answered(reasoning: str, text: str) -> tuple[Chat, ...]:
    """An assistant's turn of analysis and final."""
    return ({"role": "assistant", "reasoning": reasoning, "content": text},)


def gives_number(text: str, answer: str) -> bool:
    """Whether the last whole number of the text is the answer; "347 + 586 = 933" gives 933."""
    # A minus right behind a digit subtracts: "5-71" ends in 71.
    numbers = re.findall(r"(?:(?<!\d)-)?\d+", text.replace(",", ""))
    return bool(numbers) and numbers[-1] == answer


def gives_text(text: str, answer: str) -> bool:
    """Whether the text is the answer, up to case, quotes and a full stop."""
    return text.strip().strip("\"'.").lower() == answer.lower()


def gives_json(text: str, answer: str) -> bool:
    """Whether the text is the answer's JSON value; whitespace and order of keys are free."""
    try:
        return _canonical(text) == _canonical(answer)
    except ValueError:
        return False


def _canonical(text: str) -> str:
    # As text again, because to Python True is 1.
    return json.dumps(json.loads(text), sort_keys=True)


def _calculates(call: ToolCall, expression: str) -> bool:
    try:
        arguments = json.loads(call.arguments)
        value = evaluate_expression(arguments["expression"])
    except (ValueError, KeyError, TypeError):
        return False
    return function_name(call.name) == "calculator" and value == evaluate_expression(expression)
