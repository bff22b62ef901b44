"""Turns of a model with tools between them, until it has answered."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from gptoss_jax.text.harmony import Message, function_name
from gptoss_jax.tools.tool import Toolbox

DEFAULT_ROUNDS = 16


class ToolLoop:
    """One answer of a model, which may take several turns.

    Whoever runs the model asks:

        loop = ToolLoop(toolbox, conversation, max_rounds=16)
        while True:
            messages, finish_reason = …  # a turn after loop.conversation
            if not loop.take(messages, finish_reason):
                break

    Nothing that a model emits raises.

    Attributes:
      added: what was said since the beginning, by model and tools, to be rendered with harmony.
      rounds: of tools, so far.
    """

    def __init__(self, toolbox: Toolbox, conversation: Sequence[Message], *, max_rounds: int):
        """Begins.

        Args:
          toolbox: what may be called.
          conversation: up to the user's message.
          max_rounds: so often tools are run. The next call is answered by saying so, and the one
            after that ends the loop.
        """
        self.added: list[Message] = []
        self.rounds = 0
        self._toolbox = toolbox
        self._before = list(conversation)
        self._max_rounds = max_rounds

    @property
    def conversation(self) -> list[Message]:
        """All that the next turn is to follow."""
        return self._before + self.added

    def take(self, said: Iterable[Message], finish_reason: str) -> list[Message]:
        """Takes a turn and runs the tools that it calls.

        Args:
          said: its messages, as `HarmonyParser` has them.
          finish_reason: "tool_calls" if it ended with a call; without that nothing is run.

        Returns:
          The tools' messages; none: the model has had its say.
        """
        # A model may speak as somebody else, which nobody is to believe.
        own = [self._addressed(m) for m in said if m.role == "assistant"]
        self.added += own
        calls = [m for m in own if m.is_tool_call]
        if finish_reason != "tool_calls" or not calls or self.rounds > self._max_rounds:
            return []
        spent = self.rounds == self._max_rounds
        self.rounds += 1
        answers = [self._refused(call) if spent else self._toolbox.answer(call) for call in calls]
        self.added += answers
        return answers

    def _addressed(self, message: Message) -> Message:
        if not message.is_tool_call:
            return message
        return dataclasses.replace(
            message, recipient=self._toolbox.full_name(message.recipient or "")
        )

    def _refused(self, call: Message) -> Message:
        text = "error: no more tools can be called for this answer; give it with what is known"
        return self._toolbox.message(call, text)


def to_chat(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """What a model and its tools said, in the form of the chat API.

    That has no place for tools that are no functions; what is said to and by them is left out, as
    harmony does with all reasoning of turns before. So are calls without an answer.
    """
    out: list[dict[str, Any]] = []
    thoughts: list[str] = []
    preamble: list[str] = []
    waiting: list[tuple[str, dict[str, Any]]] = []  # whom a message calls, and that message

    def say(**said: Any) -> dict[str, Any]:
        reasoning = {"reasoning": "\n".join(thoughts)} if thoughts else {}
        thoughts.clear()
        preamble.clear()
        out.append({"role": "assistant", **said, **reasoning})
        return out[-1]

    for message in messages:
        if message.role == "tool":
            called = next((pair for pair in waiting if pair[0] == message.name), None)
            if called:
                waiting.remove(called)
                (call,) = called[1]["tool_calls"]
                out.append({"role": "tool", "tool_call_id": call["id"], "content": message.content})
        elif message.is_tool_call:
            name = function_name(message.recipient or "")
            if name and name != message.recipient:
                function = {"name": name, "arguments": message.content}
                call = {"id": f"call_{len(out)}", "type": "function", "function": function}
                said = say(content="".join(preamble), tool_calls=[call])
                waiting.append((message.recipient or "", said))
        elif message.is_reasoning:
            thoughts += [message.content] if message.content else []
        elif message.channel == "commentary":
            preamble.append(message.content)
        else:
            say(content=message.content)
    if preamble:
        say(content="".join(preamble))
    unanswered = [id(said) for _, said in waiting]
    return [said for said in out if id(said) not in unanswered]


def arguments_of(text: str) -> dict[str, Any]:
    """A function's arguments from the text of a call; nothing said is no arguments.

    Raises:
      ValueError: the text is not JSON of an object.
    """
    value = json.loads(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise ValueError("the arguments must be a JSON object")
    return value
