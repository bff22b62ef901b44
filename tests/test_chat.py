"""The chat verb: what its commands change, and a conversation with nano as a user has it."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gptoss_jax.chat import Conversation, _show
from gptoss_jax.errors import UserError

COMMAND = [sys.executable, "-m", "gptoss_jax.chat"]


@pytest.mark.fast
def test_commands_change_what_is_asked(tmp_path):
    one = Conversation("Be kind.", "medium")
    one.answered("Hi", "thinking", "Hello")
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
        ("/load /nowhere/at/all", "cannot load"),
        ("/load {other}", "not what /save writes"),
    ],
)
def test_a_command_that_cannot_be_done_changes_nothing(tmp_path, line, message):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"system": 3, "effort": "low", "messages": []}))
    one = Conversation(None, "medium")
    one.answered("Hi", "", "Hello")
    before = json.dumps(vars(one))
    with pytest.raises(UserError, match=message):
        one.command(line.format(other=other))
    assert json.dumps(vars(one)) == before


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
    _show(Rambling(), reasoning=True)
    assert capsys.readouterr().out == "1 2 \n"
    assert signal.getsignal(signal.SIGINT) is before
