"""What a tool is, and the ones at hand in a conversation."""

import abc
from collections.abc import Iterable

from gptoss_jax.errors import UserError
from gptoss_jax.text.harmony import Message, ToolFunction, ToolNamespace

_FUNCTIONS = "functions"
_CHANNELS = ("analysis", "commentary")


class Tool(abc.ABC):
    """A tool, as a prompt describes it and as it is run.

    Attributes:
      description: a function, whose argument is JSON; or a namespace without functions (python),
        whose argument is any text.
    """

    description: ToolFunction | ToolNamespace

    @abc.abstractmethod
    def run(self, text: str) -> str:
        """What the tool answers.

        Args:
          text: of the model's message to it, whatever that is.

        Raises:
          Exception: any; the model is told its text.
        """

    @property
    def recipient(self) -> str:
        """How the model addresses it."""
        name = self.description.name
        return f"{_FUNCTIONS}.{name}" if isinstance(self.description, ToolFunction) else name


class Toolbox:
    """Tools by their names. Whatever a model sends to whatever tool, it gets an answer.

    Attributes:
      functions: to be described in the developer message.
      namespaces: to be described in the system message.
      most_characters: of an answer; of a longer one the middle is left out.
    """

    def __init__(self, tools: Iterable[Tool] = ()):
        """Takes the tools.

        Args:
          tools: no two of one name.

        Raises:
          UserError: two tools have the same name.
        """
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.recipient in self._tools:
                raise UserError(f"two tools are called {tool.recipient}; leave one out")
            self._tools[tool.recipient] = tool
        self.most_characters = 16_000
        described = [tool.description for tool in self._tools.values()]
        self.functions = [d for d in described if isinstance(d, ToolFunction)]
        self.namespaces = [d for d in described if isinstance(d, ToolNamespace)]

    def fit(self, context: int) -> None:
        """Keeps an answer within half of so many tokens, whatever characters it has."""
        self.most_characters = min(self.most_characters, context // 2)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._tools)

    def full_name(self, recipient: str) -> str:
        """A recipient as harmony wants it; models forget the `functions.` at times."""
        full = f"{_FUNCTIONS}.{recipient}"
        return full if recipient not in self._tools and full in self._tools else recipient

    def answer(self, call: Message) -> Message:
        """Runs the tool that a message of the model's calls; a failure is an answer too."""
        name = self.full_name(call.recipient or "")
        tool = self._tools.get(name)
        if tool is None:
            there = ", ".join(self._tools) or "none"
            text = f"error: there is no tool {name}; these are: {there}"
        else:
            text = _run(tool, call.content)
        return self.message(call, text)

    def message(self, call: Message, text: str) -> Message:
        """A called tool's message: functions' as commentary, others' where they were called."""
        name = self.full_name(call.recipient or "")
        is_function = name.startswith(f"{_FUNCTIONS}.")
        channel = "commentary" if is_function else call.channel
        return Message(
            "tool",
            shortened(text, self.most_characters),
            name=name,
            recipient="assistant",
            channel=channel if channel in _CHANNELS else "analysis",
        )


def _run(tool: Tool, text: str) -> str:
    try:
        return tool.run(text)
    except (Exception, SystemExit) as error:
        said = str(error)
        return f"error: {type(error).__name__}" + (f": {said}" if said else "")


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and end with a note of how much is left out between."""
    if len(text) <= most:
        return text
    half = most // 2
    gap = f"\n[… {len(text) - 2 * half} characters left out …]\n"
    return text[:half] + gap + text[len(text) - half :]
