"""`generate` and `chat` with tools, as a user runs them with nano."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss_jax.constraint_flags import constraint_of
from gptoss_jax.errors import UsageError
from gptoss_jax.text.harmony import ToolNamespace
from gptoss_jax.tools.functions import Function
from gptoss_jax.tools.tool import Toolbox

README = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")


def run(verb: str, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"gptoss_jax.{verb}", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def calculator(tmp_path_factory) -> Path:
    """The one that the README shows."""
    (code,) = re.findall(r"```python\n(# calculator\.py\n.*?)```", README, re.DOTALL)
    file = tmp_path_factory.mktemp("functions") / "calculator.py"
    file.write_text(code)
    return file


def test_nano_calculates(calculator):
    words = ["--functions", str(calculator), "--show-reasoning", "4821 * 37"]
    shown = run("generate", *words)
    assert (shown.returncode, shown.stdout) == (0, f"{4821 * 37}\n"), shown.stderr
    lines = shown.stderr.splitlines()
    assert '[to functions.calculator] {"expression":"4821*37"}' in lines
    assert "[functions.calculator] 178377" in lines
    quiet = run("generate", *words[:2], words[3])
    assert quiet.stdout == shown.stdout and "calculator" not in quiet.stderr


def test_json_has_what_everybody_said(calculator):
    done = run("generate", "--functions", str(calculator), "--json", "4821 * 37")
    shown = json.loads(done.stdout)
    assert shown["text"] == "178377" and shown["finish_reason"] == "stop"
    roles = [(m["role"], m.get("name") or m.get("recipient")) for m in shown["messages"]]
    assert ("tool", "functions.calculator") in roles
    assert ("assistant", "functions.calculator") in roles


def test_without_rounds_the_tool_is_not_run(calculator, tmp_path):
    file = tmp_path / "calculator.py"
    ran = tmp_path / "ran"
    file.write_text(
        "def calculator(expression: str) -> str:\n"
        '    """Evaluates an arithmetic expression."""\n'
        f"    open({str(ran)!r}, 'w').close()\n"
        "    return '1'\n"
    )
    words = ["--functions", str(file), "--max-tool-rounds", "0", "--show-reasoning", "4821 * 37"]
    done = run("generate", *words)
    assert done.returncode == 0 and not ran.exists()
    assert "no more tools" in done.stderr


# As nano has seen the calculator; the mcp package's own servers add titles to the schema.
SERVER = """
import json, sys
schema = {"type": "object", "properties": {"expression": {"type": "string"}}}
tool = {"name": "calculator", "description": "Evaluates an arithmetic expression.",
        "inputSchema": schema | {"required": ["expression"]}}
for line in sys.stdin:
    got = json.loads(line)
    params, answer = got.get("params") or {}, {"jsonrpc": "2.0", "id": got.get("id")}
    if got["method"] == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"],
                            "capabilities": {"tools": {}},
                            "serverInfo": {"name": "numbers", "version": "1"}}
    elif got["method"] == "tools/list":
        answer["result"] = {"tools": [tool]}
    elif got["method"] == "tools/call":
        a, b = params["arguments"]["expression"].split("*")
        answer["result"] = {"content": [{"type": "text", "text": str(int(a) * int(b))}]}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    if "id" in got:
        print(json.dumps(answer), flush=True)
"""


def test_an_mcp_server_s_calculator(tmp_path):
    pytest.importorskip("mcp", reason="needs the tools extra")
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    command = shlex.join([sys.executable, str(server)])
    done = run("generate", "--mcp", command, "--show-reasoning", "4821 * 37")
    assert (done.returncode, done.stdout) == (0, "178377\n"), done.stderr
    assert "[functions.calculator] 178377" in done.stderr


def test_chat_remembers_what_a_tool_said(calculator, tmp_path):
    saved = tmp_path / "talk.json"
    another = "Multiply 8123 by 4417"
    lines = ["4821 * 37", f"/save {saved}", another]
    done = run("chat", "--functions", str(calculator), stdin="\n".join(lines))
    assert (done.returncode, done.stdout) == (0, "178377\n35879291\n"), done.stderr
    assert "[functions.calculator] 178377" in done.stderr
    said = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in said] == ["user", "assistant", "tool", "assistant"]
    again = run("chat", "--functions", str(calculator), stdin=f"/load {saved}\n{another}\n")
    assert again.stdout == "35879291\n"


def test_a_call_instead_of_a_constrained_answer_and_the_answer_after_it(calculator):
    words = ["--functions", str(calculator), "--regex", "[0-9]{5}", "--show-reasoning"]
    done = run("generate", *words, "4821 * 37")
    assert (done.returncode, done.stdout) == (0, "17837\n"), done.stderr
    assert "[functions.calculator] 178377" in done.stderr


def test_arguments_of_functions_follow_their_annotations(tmp_path):
    file = tmp_path / "calculator.py"
    file.write_text(
        "from typing import Literal\n"
        "def calculator(expression: Literal['1+1', '2*3']) -> str:\n"
        '    """Evaluates an arithmetic expression."""\n'
        "    return {'1+1': '2', '2*3': '6'}[expression]\n"
    )
    done = run("generate", "--functions", str(file), "--json", "4821 * 37")
    said = json.loads(done.stdout)["messages"]
    (call,) = (m for m in said if m["role"] == "assistant" and m.get("recipient"))
    assert json.loads(call["content"])["expression"] in ("1+1", "2*3")


@pytest.mark.fast
def test_python_takes_no_constraint_and_functions_beside_it_none():
    def nothing() -> str:
        return ""

    python = SimpleNamespace(description=ToolNamespace("python"), recipient="python")
    box = Toolbox([python, Function(nothing)])  # pyright: ignore[reportArgumentType]
    flags = argparse.Namespace(json_schema=None, grammar=None, xml_schema=None, regex=None)
    assert constraint_of(flags, None, box) == (None, [])  # pyright: ignore[reportArgumentType]
    flags.regex = "a"
    with pytest.raises(UsageError, match="a constraint leaves no way to call python"):
        constraint_of(flags, None, box)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--functions", "/no/such.py"], 1, "/no/such.py: no such file"),
        (["--mcp", "/no/such/server"], 1, "/no/such/server"),
        (["--tool", "browser"], 2, "browser"),
        (["--tool", "python", "--raw"], 2, "--raw continues the prompt as it is, without tools"),
        (["--max-tool-rounds", "-1"], 2, "--max-tool-rounds"),
    ],
)
def test_mistakes_are_one_line(words, code, message):
    done = run("generate", "--checkpoint", "/nowhere", *words, "Hi")
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_the_help_says_what_tools_may_do(verb):
    shown = " ".join(run(verb, "--help").stdout.split())
    assert "no network" in shown and "all your rights" in shown and "--max-tool-rounds" in shown
