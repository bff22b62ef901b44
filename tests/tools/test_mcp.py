"""MCP servers: one of the mcp package's, and one by hand that shows what goes over the wire."""

import json
import os
import shlex
import sys
import threading
import time

import pytest

from gptoss_jax.errors import UserError
from gptoss_jax.text.harmony import Message
from gptoss_jax.tools.mcp import McpServer
from gptoss_jax.tools.tool import Toolbox

pytest.importorskip("mcp", reason="needs the tools extra")

WITH_PACKAGE = '''
import os
from mcp.server import MCPServer

server = MCPServer("test")

@server.tool()
def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b

@server.tool()
def fail() -> str:
    raise ValueError("on purpose")

@server.tool()
def end() -> str:
    os._exit(3)

@server.tool(name="odd.name/x")
def odd() -> list[str]:
    return ["a", "b"]

server.run()
'''

# Of nothing but JSON lines. It writes down what it is sent.
BY_HAND = """
import json, sys, time
log = open(sys.argv[1], "a")
TOOLS = [{"name": n, "description": "By hand.", "inputSchema": {"type": "object",
          "properties": {"q": {"type": "string"}}, "required": ["q"]}} for n in ("ask", "hang")]
for line in sys.stdin:
    log.write(line); log.flush()
    got = json.loads(line)
    method, params = got.get("method"), got.get("params") or {}
    if "id" not in got:
        continue
    answer = {"jsonrpc": "2.0", "id": got["id"]}
    if method == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"],
                            "capabilities": {"tools": {}},
                            "serverInfo": {"name": "hand", "version": "1"}}
    elif method == "tools/list":
        first = "cursor" not in params
        answer["result"] = {"tools": TOOLS[:1] if first else TOOLS[1:]}
        if first:
            answer["result"]["nextCursor"] = "more"
    elif method == "tools/call" and params["name"] == "hang":
        continue
    elif method == "tools/call":
        said = {"type": "text", "text": "you said " + params["arguments"]["q"]}
        picture = {"type": "image", "data": "AA==", "mimeType": "image/png"}
        answer["result"] = {"content": [said, picture]}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"""


def command(tmp_path, text: str, *words: str) -> str:
    file = tmp_path / "server.py"
    file.write_text(text)
    return shlex.join([sys.executable, str(file), *words])


def ask(server: McpServer, name: str, arguments: str = "") -> str:
    call = Message("assistant", arguments, recipient=f"functions.{name}")
    return Toolbox(server.tools).answer(call).content


def test_tools_of_the_package_s_server(tmp_path):
    with McpServer(command(tmp_path, WITH_PACKAGE)) as server:
        described = {tool.description.name: tool.description for tool in server.tools}
        assert list(described) == ["add", "fail", "end", "odd_name_x"]
        assert described["add"].description == "Adds."
        properties = described["add"].parameters["properties"]
        assert properties["a"]["type"] == "integer" and properties["b"]["default"] == 1
        assert ask(server, "add", '{"a": 20, "b": 22}') == "42"
        assert ask(server, "odd_name_x") == "a\nb"
        assert ask(server, "fail") == "error: Error executing tool fail"
        assert ask(server, "add", '{"a": "x"}').startswith("error")
        assert ask(server, "add", "{").startswith("error: JSONDecodeError")
        # It ends in the middle of a call, and stays ended.
        assert ask(server, "end").startswith("error")
        assert ask(server, "add", '{"a": 1}').startswith("error")


def test_what_goes_over_the_wire(tmp_path):
    log = tmp_path / "log"
    with McpServer(command(tmp_path, BY_HAND, str(log)), call_s=1.0) as server:
        assert [tool.description.name for tool in server.tools] == ["ask", "hang"]  # two pages
        assert ask(server, "ask", '{"q": "é"}') == "you said é\n[image left out]"
        began = time.monotonic()
        assert ask(server, "hang", '{"q": ""}') == "error: TimeoutError: no answer within 1 s"
        assert time.monotonic() - began < 10
        assert ask(server, "ask", '{"q": "on"}').startswith("you said on")
    sent = [json.loads(line) for line in log.read_text().splitlines()]
    methods = [message["method"] for message in sent]
    begun = methods.index("initialize")
    assert methods[begun : begun + 2] == ["initialize", "notifications/initialized"]
    calls = [m["params"] for m in sent if m["method"] == "tools/call"]
    assert [(c["name"], c["arguments"]) for c in calls] == [
        ("ask", {"q": "é"}),
        ("hang", {"q": ""}),
        ("ask", {"q": "on"}),
    ]


def test_closing_ends_the_process(tmp_path):
    text = f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n" + BY_HAND
    before = threading.active_count()
    with McpServer(command(tmp_path, text, str(tmp_path / "log"))):
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("/no/such/server --x", "gives no tools: .*/no/such/server"),
        ("{python} -c 'import no_such_module'", "No module named"),
        ("{python} -c 'import time; time.sleep(60)'", "gives no tools: it took too long"),
        ("", "the command is empty"),
        ("'unclosed", "No closing quotation"),
    ],
)
def test_what_is_no_server_is_refused_in_a_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        McpServer(words.format(python=shlex.quote(sys.executable)), begin_s=3.0)
    assert "\n" not in str(error.value)
