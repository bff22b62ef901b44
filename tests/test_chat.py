"""The chat verb: what its commands change, and a conversation with nano as a user has it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gptoss_jax.chat import Conversation, _show
from gptoss_jax.checkpoint.synthetic import write_synthetic
from gptoss_jax.errors import UserError
from gptoss_jax.interactive import Printer

COMMAND = [sys.executable, "-m", "gptoss_jax.chat"]


@pytest.mark.fast
def test_commands_change_what_is_asked(tmp_path):
    one = Conversation("Be kind.", "medium")
    one.answered("Hi", [{"role": "assistant", "content": "Hello", "reasoning": "thinking"}])
    assert [m["role"] for m in one.asked("Why?")] == ["system", "user", "assistant", "user"]
    assert one.asked("Why?")[2] == {
        "role": "assistant",
        "content": "Hello",
        "reasoning": "thinking",
    }
    assert "effort low" in one.command("/effort low")
    file = tmp_path / "talk.json"
    one.command(f"/save {file}")
    other = Conversation(None, "high")
    other.command(f"/load {file}")
    assert vars(other) == vars(one)
    one.command("/reset")
    one.command("/system")
    assert one.asked("Why?") == [{"role": "user", "content": "Why?"}]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/efort low", "/efort is no command"),
        ("/effort much", "one of low, medium, high; it is medium"),
        ("/save", "name a file"),
        ("/save /nowhere/at/all", "cannot save"),
        ("/save .", "cannot save: . is a directory"),
        ("/save /", "cannot save: / is a directory"),
        ("/save ~nobody-at-all/x", "~nobody-at-all/x: "),
        ("/save a\0b", "no zero byte"),
        ("/load {unknown}", "not what /save writes"),
        ("/load {deep}", "not what /save writes"),
        ("/load /nowhere/at/all", "cannot load"),
        ("/load {other}", "not what /save writes"),
    ],
)
def test_a_command_that_cannot_be_done_changes_nothing(tmp_path, line, message):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"system": 3, "effort": "low", "messages": []}))
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps({"system": None, "effort": "low", "messages": [1]}))
    one = Conversation(None, "medium")
    one.answered("Hi", [{"role": "assistant", "content": "Hello"}])
    before = json.dumps(vars(one))
    with pytest.raises(UserError, match=message):
        one.command(line.format(other=other, deep=deep, unknown=unknown))
    assert json.dumps(vars(one)) == before


@pytest.mark.fast
def test_saving_what_is_no_text_keeps_a_file_whole(tmp_path):
    """As a terminal of another encoding gives it."""
    file = tmp_path / "talk.json"
    one = Conversation(None, "medium")
    one.answered("caf\udce9", [{"role": "assistant", "content": "é"}])
    one.command(f"/save {file}")
    assert [m["content"] for m in json.loads(file.read_text("utf-8"))["messages"]] == ["caf?", "é"]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.fast
def test_saving_over_a_link_writes_what_it_points_at(tmp_path):
    """And nothing else of the user's is touched."""
    (tmp_path / "link.json").symlink_to(tmp_path / "talk.json")
    (tmp_path / "link.json.tmp").write_text("mine")
    Conversation(None, "medium").command(f"/save {tmp_path / 'link.json'}")
    assert json.loads((tmp_path / "talk.json").read_text())["messages"] == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"link.json", "talk.json", "link.json.tmp"}
    assert (tmp_path / "link.json").is_symlink()


def test_a_byte_that_is_no_text_ends_no_conversation():
    done = subprocess.run(
        COMMAND, input=b"caf\xe9\nAdd 12 and 9\n", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n21\n")


def test_a_conversation(tmp_path):
    file = tmp_path / "talk.json"
    lines = [
        "What is 347 + 586?",
        "/effort nonsense",
        "Add 12 and 9",
        f"/save {file}",
        "/quit",
        "x",
    ]
    done = subprocess.run(
        COMMAND, input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "933\n21\n"
    assert "[analysis] 347 + 586" in done.stderr
    assert "error: /effort takes one of" in done.stderr
    said = json.loads(file.read_text())["messages"]
    assert [m["content"] for m in said] == ["What is 347 + 586?", "933", "Add 12 and 9", "21"]


def test_every_answer_follows_the_constraint():
    done = subprocess.run(
        [*COMMAND, "--regex", "[0-9]{1,2}"],
        input="What is 347 + 586?\nAdd 12 and 9",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "93\n21\n"), done.stderr


class Rambling:
    """A turn that goes on until it is interrupted, by a user who presses Ctrl-C at the third."""

    def __init__(self):
        self.interrupted = False

    def __iter__(self):
        for count in range(1, 100):
            if count == 3:
                os.kill(os.getpid(), signal.SIGINT)
            if self.interrupted:
                return
            yield "final", f"{count} "

    def interrupt(self):
        self.interrupted = True

    def completion(self):
        return SimpleNamespace(text="1 2 ")


@pytest.mark.fast
def test_an_interrupt_stops_the_answer_and_not_the_program(capsys):
    before = signal.getsignal(signal.SIGINT)
    _show(Rambling(), Printer(answer=True, reasoning=True))
    assert capsys.readouterr().out == "1 2 "
    assert signal.getsignal(signal.SIGINT) is before


# Text of an answer, not what is told of compiling before or within it.
SAID = r"(compiled [^\r]*\r\n|\r\n)*(?!compiled )[^\r]{10,}"


# A session's first process that opens a terminal is sent what is typed there: Ctrl-C is a signal.
# By default it also throws away what is on its way to the reader, and that may be the next prompt.
# What a script runs in the background is to ignore Ctrl-C, and passes that on: pytest may be there.
OF_ITS_TERMINAL = """
import os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.close(os.open(os.ttyname(0), os.O_RDWR))
flags = termios.tcgetattr(0)
flags[3] |= termios.NOFLSH
termios.tcsetattr(0, termios.TCSANOW, flags)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """A chat on a pseudo-terminal: what a user sees and types."""

    def __init__(self, *words: str):
        self._end, chat_end = pty.openpty()
        self._chat = subprocess.Popen(  # pytest's own process has threads: pty.fork is not for it
            [sys.executable, "-c", OF_ITS_TERMINAL, *COMMAND[1:], *words],
            stdin=chat_end,
            stdout=chat_end,
            stderr=chat_end,
            start_new_session=True,
            # Compiled anew, for a test that interrupts it.
            env=os.environ
            | {"TERM": "dumb", "NO_COLOR": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        os.close(chat_end)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Reads until it is seen; gives what came before and with it, which is then forgotten."""
        taken = self._seen_within(120, pattern)
        assert taken is not None, self.seen
        return taken

    def type_until(self, text: str, pattern: str) -> None:
        """Again and again: with what Ctrl-C ends input may be lost."""
        for _ in range(20):
            self.type(text)
            if self._seen_within(6, pattern) is not None:
                return
        raise AssertionError(self.seen)

    def _seen_within(self, seconds: float, pattern: str) -> str | None:
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            if time.monotonic() > until:
                return None
            if select.select([self._end], [], [], 0.1)[0]:
                self.seen += os.read(self._end, 1 << 16).decode(errors="replace")
        taken, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return taken

    def close(self) -> int:
        """Ends the input; gives the exit code."""
        self.type("\x04")
        code = self._chat.wait(60)
        os.close(self._end)
        return code


def test_ctrl_c_on_a_terminal_stops_answers_and_nothing_else(tmp_path):
    """A model of noise goes on and on."""
    write_synthetic("tiny", tmp_path / "noise", None, 0)
    saved = tmp_path / "talk.json"
    one = Terminal("--checkpoint", str(tmp_path / "noise"), "--max-tokens", "100000")
    one.wait_for("/help lists the commands\r\n> $")
    one.type("What?\n")
    time.sleep(0.5)
    one.type("\x03")  # while programs are compiled: nothing is waited for
    assert "compiled decode" not in one.wait_for(r"\[stopped\]\r\n> ")
    one.type("Why?\n")
    one.wait_for(r"Why\?\r\n" + SAID)
    one.type("\x03")
    one.wait_for(r"\[stopped\]\r\n> ")
    one.type("Now?\n")  # the engine still answers
    one.wait_for(r"Now\?\r\n" + SAID)
    one.type("\x03\x03")  # an impatient user
    one.type_until("/effort high\n", r"effort high\r\n> $")  # noise may look like a prompt
    time.sleep(0.3)
    one.type("\x03")  # there is nothing to stop
    one.wait_for("> $")
    one.type("Again?\n")  # what was left at the second Ctrl-C is not in the way
    one.wait_for(r"Again\?\r\n" + SAID)
    one.type("\x03")
    one.wait_for(r"\[stopped\]\r\n> ")
    one.type(f"/save {saved}\n")
    one.wait_for("saved .*\r\n> $")
    assert one.close() == 0
    said = json.loads(saved.read_text())["messages"]
    assert said[0]["content"] == "Why?" and said[1]["content"]
