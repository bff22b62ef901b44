"""The values a conversation is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Effort = Literal["low", "medium", "high"]
Compat = Literal["openai-harmony-0.0.8"]

ANALYSIS, COMMENTARY, FINAL = CHANNELS = ("analysis", "commentary", "final")
ROLES = ("system", "developer", "user", "assistant", "tool")
FUNCTIONS = "functions"

# Recipients that name no tool; the last two turn up in malformed output only.
_NOT_TOOLS = (None, "all", "assistant", "user")


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One harmony message.

    Attributes:
      role: system, developer, user, assistant or tool.
      content: its text; system and developer texts come from `prompt.py`.
      name: of a tool as the header shows it (`functions.get_weather`), or of a user.
      recipient: what it is addressed to, None for everyone.
      channel: analysis, commentary, final, None, or what a model made up.
      content_type: as the header shows it, `<|constrain|>json` or a bare word such as `code`.
      flagged: the parser could not read all of it; `content` is what the model wrote.
    """

    role: str
    content: str
    name: str | None = None
    recipient: str | None = None
    channel: str | None = None
    content_type: str | None = None
    flagged: bool = False

    @property
    def is_tool_call(self) -> bool:
        """Whether the assistant addresses a tool with it."""
        return self.role == "assistant" and self.recipient not in _NOT_TOOLS

    @property
    def is_reasoning(self) -> bool:
        """Whether it is chain of thought."""
        return self.role == "assistant" and self.channel == ANALYSIS and not self.is_tool_call

    @property
    def is_answer(self) -> bool:
        """Whether it is for the user: final, or in no channel the format knows."""
        hidden = (ANALYSIS, COMMENTARY)
        return self.role == "assistant" and self.channel not in hidden and not self.is_tool_call


@dataclasses.dataclass(frozen=True, slots=True)
class ToolFunction:
    """A function the model may call.

    Attributes:
      name: without a namespace.
      description: shown to the model.
      parameters: a JSON schema, None for no arguments.
      strict: whether arguments are to be held to that schema (`text.constraints`).
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ToolNamespace:
    """Tools under one name; without functions it is described in prose alone (python)."""

    name: str
    functions: tuple[ToolFunction, ...] = ()
    description: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A JSON schema the answer must follow."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""
