"""`python -m gptoss_jax.chat`: a conversation on the terminal."""

import argparse
import contextlib
import dataclasses
import io
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_jax import cli, distributed, interactive
from gptoss_jax.answer import answer
from gptoss_jax.constraint_flags import add_constraints, constraint_of
from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.text.errors import TextError
from gptoss_jax.text.harmony import from_chat
from gptoss_jax.tools.loop import ToolLoop, to_chat
from gptoss_jax.tools.tool import Toolbox

if TYPE_CHECKING:
    from gptoss_jax.inference.completion import Turn
    from gptoss_jax.inference.engine import Engine
    from gptoss_jax.inference.service import Service
    from gptoss_jax.model.config import Config
    from gptoss_jax.text import Tokenizer
    from gptoss_jax.text.constraints import Constraint
    from gptoss_jax.text.harmony import ResponseFormat

_EXAMPLES = ["", "--checkpoint ~/gpt-oss-20b --system 'Answer briefly.' --hide-reasoning"]
_EFFORTS = ("low", "medium", "high")
_HELP = """/reset          begin anew; the system message stays
/effort LEVEL   low, medium or high
/system TEXT    the system message; without TEXT none
/save FILE      the conversation as JSON
/load FILE      one that was saved
/quit           or Ctrl-D; Ctrl-C stops an answer"""


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = cli.parser("chat", "A conversation with gpt-oss on the terminal.", _EXAMPLES)
    interactive.add_model(parser)
    cli.add_parallelism(parser)
    prompt = parser.add_argument_group("Prompt")
    prompt.add_argument("--system", metavar="TEXT", help="a system message of the chat API's kind")
    prompt.add_argument(
        "--context",
        type=cli.number(int, 2),
        default=16_384,
        metavar="N",
        help="tokens there is room for, all turns together (%(default)s, or what the model has)",
    )
    interactive.add_sampling(parser)
    add_constraints(parser)
    interactive.add_tools(parser)
    reasoning = interactive.add_reasoning(parser)
    reasoning.add_argument("--hide-reasoning", action="store_true", help="show answers alone")
    return parser


class Conversation:
    """What was said, and what the commands change.

    Attributes:
      messages: chat dictionaries, without the system message.
      system: its text, None for none.
      effort: low, medium or high.
    """

    def __init__(self, system: str | None, effort: str):
        """Begins with nothing said."""
        self.messages: list[dict[str, Any]] = []
        self.system = system
        self.effort = effort

    def asked(self, text: str) -> list[dict[str, Any]]:
        """All that is to be rendered for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages, {"role": "user", "content": text}]

    def answered(self, text: str, said: list[dict[str, Any]]) -> None:
        """Adds what the user said, and then the model and its tools."""
        self.messages += [{"role": "user", "content": text}, *said]

    def command(self, line: str) -> str:
        """Does what a line that begins with "/" says; gives what to show.

        Raises:
          UserError: there is no such command, or it cannot be done; nothing has changed.
        """
        name, _, rest = line[1:].partition(" ")
        commands: dict[str, Callable[[str], str]] = {
            "help": lambda _: _HELP,
            "reset": self._reset,
            "effort": self._set_effort,
            "system": self._set_system,
            "save": self._save,
            "load": self._load,
        }
        if name not in commands:
            raise UserError(f"/{name} is no command; /help lists them")
        return commands[name](rest.strip())

    @property
    def state(self) -> dict[str, Any]:
        """All of it, by the names of its attributes."""
        return {"system": self.system, "effort": self.effort, "messages": self.messages}

    def _reset(self, _: str) -> str:
        self.messages = []
        return "a new conversation"

    def _set_effort(self, level: str) -> str:
        if level not in _EFFORTS:
            raise UserError(f"/effort takes one of {', '.join(_EFFORTS)}; it is {self.effort}")
        self.effort = level
        return f"effort {level}"

    def _set_system(self, text: str) -> str:
        self.system = text or None
        return "system message set" if text else "no system message"

    def _save(self, name: str) -> str:
        # What the terminal gave that is no text becomes "?".
        text = json.dumps(self.state, ensure_ascii=False, indent=1).encode(errors="replace")
        file = _file(name)
        try:  # what was saved before stays until this is whole
            if file.is_dir():
                raise IsADirectoryError(f"{name} is a directory")
            with tempfile.TemporaryDirectory(prefix=".chat-", dir=file.parent) as unfinished:
                written = Path(unfinished, "whole")
                written.write_bytes(text + b"\n")
                written.replace(file.resolve())
        except OSError as error:
            raise UserError(f"cannot save: {error}") from None
        return f"saved {len(self.messages)} messages"

    def _load(self, name: str) -> str:
        file = _file(name)
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            system, effort, messages = held["system"], held["effort"], held["messages"]
        except OSError as error:
            raise UserError(f"cannot load: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{file}: is not what /save writes") from None
        kinds = isinstance(system, str | None) and effort in _EFFORTS
        if not kinds or not isinstance(messages, list) or not _can_be_rendered(messages):
            raise UserError(f"{file}: is not what /save writes")
        self.system, self.effort, self.messages = system, effort, messages
        return f"loaded {len(messages)} messages"


def _can_be_rendered(messages: list[Any]) -> bool:
    try:
        from_chat(messages)
    except TextError:
        return False
    return True


def _file(name: str) -> Path:
    if not name:
        raise UserError("name a file")
    if "\0" in name:
        raise UserError("a file's name has no zero byte")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # a user that is not known
        raise UserError(f"{name}: {error}") from None


def main(arguments: argparse.Namespace) -> None:
    """Loads, then asks and answers until the input ends."""
    distributed.join(arguments)
    if distributed.joined():
        # Ctrl-C that one alone heard would leave the others in a step of their own.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if distributed.joined() and interactive.wants_tools(arguments):
        raise UsageError("tools are run by one process, and there are several; leave them out")
    tokenizer, config = interactive.find(arguments)
    with interactive.toolbox(arguments) as toolbox:
        room = min(arguments.context, config.max_context)
        toolbox.fit(room)
        constraint, formats = constraint_of(arguments, tokenizer, toolbox)
        model = interactive.load(arguments, config)
        draft = interactive.draft(arguments, model)
        from gptoss_jax.inference.engine import engine_for
        from gptoss_jax.inference.service import Service

        report = interactive.compile_report(wanted=False)
        # Kept prefixes: a turn computes what is new.
        options = {"speculate": arguments.speculate, "draft": draft, "cache": arguments.cache}
        engine = engine_for(model, tokenizer, 1, max_tokens=room, report=report, **options)
        conversation = Conversation(arguments.system, arguments.reasoning_effort)
        with contextlib.ExitStack() as stack:
            # On a thread of its own, where no Ctrl-C breaks into a device call.
            alone = not distributed.joined()
            runs = stack.enter_context(Service(engine)) if alone else engine
            session = _Session(
                runs, tokenizer, config, room, toolbox, constraint, formats, arguments
            )

            def respond(line: str) -> None:
                if line.startswith("/"):
                    _command(line, conversation)
                else:
                    _answer(line, conversation, session)

            _talk(respond)


def _command(line: str, conversation: Conversation) -> None:
    """Does it, in process 0 of several; the others take up what came of it."""
    failed = None
    if distributed.prints():
        try:
            print(conversation.command(line), file=sys.stderr)
        except UserError as error:
            failed = error
    vars(conversation).update(json.loads(distributed.of_first(json.dumps(conversation.state))))
    if failed is not None:
        raise failed


def _line(prompt: str) -> str:
    """What the user typed, to process 0 of several.

    Raises:
      EOFError: the input has ended.
    """
    typed = None
    if distributed.prints():
        with contextlib.suppress(EOFError), _interruptible():
            typed = input(prompt)
    with _ignoring_interrupts():  # meant for process 0's line
        typed = json.loads(distributed.of_first(json.dumps(typed)))
    if typed is None:
        raise EOFError
    return typed


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interruptible() -> contextlib.AbstractContextManager[None]:
    """At a prompt Ctrl-C is of the line, whatever it is elsewhere."""
    return _handling(signal.default_int_handler)


def _ignoring_interrupts() -> contextlib.AbstractContextManager[None]:
    """Of several processes those that wait for a line: what is typed is not theirs."""
    wait = distributed.joined() and not distributed.prints()
    return _handling(signal.SIG_IGN) if wait else contextlib.nullcontext()


def _talk(respond: Callable[[str], None]) -> None:
    """Passes on what the user types, until the end of the input or /quit."""
    terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):  # a byte that is no text ends no conversation
        sys.stdin.reconfigure(errors="replace")
    if terminal:
        import readline  # noqa: F401 - input() edits its line and remembers earlier ones

        print("/help lists the commands", file=sys.stderr)
    while True:
        try:
            line = _line("> " if terminal else "").strip()
            if line in ("/quit", "/exit"):
                return
            if line:
                respond(line)
        except EOFError:
            if terminal:
                print(file=sys.stderr)
            return
        except (UserError, TextError) as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:  # of a line, of a tool, or for the second time of an answer
            print(file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _Session:
    """What all turns have in common."""

    runs: "Service | Engine"
    tokenizer: "Tokenizer"
    config: "Config"
    room: int  # tokens
    toolbox: Toolbox
    constraint: "Constraint | None"
    formats: "list[ResponseFormat]"
    arguments: argparse.Namespace


def _answer(text: str, conversation: Conversation, session: _Session) -> None:
    """Asks, shows what comes, and adds both to the conversation."""
    from gptoss_jax.inference.completion import Turn, chat_conversation, today
    from gptoss_jax.text.harmony import render_conversation

    asked = chat_conversation(
        conversation.asked(text),
        conversation.effort,
        session.formats,
        functions=session.toolbox.functions,
        namespaces=session.toolbox.namespaces,
        # Hosts' clocks differ, and what follows a call is rendered by each.
        current_date=distributed.of_first(today()),
    )
    arguments, tokenizer = session.arguments, session.tokenizer
    prompt = distributed.of_first(render_conversation(tokenizer, asked))
    if len(prompt) >= session.room:
        raise UserError(
            f"the conversation has {len(prompt)} tokens and there is room for {session.room}; "
            "/reset, or start with a larger --context"
        )
    printer = interactive.Printer(answer=True, reasoning=not arguments.hide_reasoning)
    loop = ToolLoop(session.toolbox, asked, max_rounds=arguments.max_tool_rounds)
    request = interactive.request(arguments, session.config, prompt, session.constraint)
    said = answer(
        Turn(session.runs, tokenizer, request),
        loop,
        max_tokens=arguments.max_tokens,
        stream=lambda turn: _show(turn, printer),
        show=printer.show_tool,
    )
    printer.finish(said.text)
    if said.finish_reason != "interrupted" or said.text:
        conversation.answered(text, to_chat(loop.added))
    if said.finish_reason == "interrupted":
        print(cli.dimmed("[stopped]", sys.stderr), file=sys.stderr)
    if said.finish_reason == "length":
        print("note: cut off; see --max-tokens and --context", file=sys.stderr)


def _show(turn: "Turn", printer: interactive.Printer) -> None:
    """Prints a turn as it comes; Ctrl-C ends it, a second one at once.

    Of several processes it ends them all: the others do not hear it.
    """

    def interrupt(signum, frame):
        turn.interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, signal.SIG_DFL if distributed.joined() else interrupt)
    try:
        for channel, text in turn:
            printer.show(channel, text)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser().parse_args()))
