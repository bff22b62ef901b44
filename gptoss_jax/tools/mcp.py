"""Tools of servers that speak the Model Context Protocol over standard input and output."""

import asyncio
import concurrent.futures
import json
import re
import shlex
import tempfile
import threading
from typing import TYPE_CHECKING, Any, TextIO

from gptoss_jax.errors import UserError
from gptoss_jax.text.harmony import ToolFunction
from gptoss_jax.tools.loop import arguments_of
from gptoss_jax.tools.tool import Tool

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as Listed

_BEGIN_S = 30.0
_CALL_S = 120.0
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


class McpServer:
    """A server's process, from here on until `close`; an event loop of its own speaks to it.

    Attributes:
      tools: what it lists, as functions.
    """

    def __init__(self, command: str, *, call_s: float = _CALL_S, begin_s: float = _BEGIN_S):
        """Starts the process and asks for its tools.

        Args:
          command: of a shell's form, as "python server.py --flag"; no shell runs it.
          call_s: seconds a call may take.
          begin_s: seconds until it must have listed its tools.

        Raises:
          UserError: the package mcp is missing, or there is no such command, or it does not answer
            as such a server.
        """
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"--mcp {command!r}: {error}") from None
        if not words:
            raise UserError("--mcp: the command is empty; give one, as 'python server.py'")
        try:
            import mcp  # noqa: F401 - of an extra
        except ImportError:
            raise UserError("--mcp needs the package mcp: pip install 'mcp>=2.3,<3'") from None
        self._call_s = call_s
        self._loop = asyncio.new_event_loop()
        self._leave = asyncio.Event()
        self._listed: concurrent.futures.Future = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(words, begin_s), daemon=True)
        self._thread.start()
        try:
            self._client, listed = self._listed.result()
        except UserError as error:
            self._thread.join()
            raise UserError(f"--mcp {command!r} gives no tools: {error}") from None
        self.tools: list[Tool] = [McpTool(self, one) for one in listed]

    def close(self) -> None:
        """Ends the process."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._leave.set)
            self._thread.join()

    def __enter__(self) -> "McpServer":
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes."""
        self.close()

    def call(self, name: str, arguments: dict[str, Any]) -> "CallToolResult":
        """Calls a tool and waits.

        Raises:
          Exception: the server refuses, is gone, or takes too long.
        """
        if not self._thread.is_alive():
            raise ConnectionError("the server has ended")
        asked = asyncio.wait_for(self._client.call_tool(name, arguments), self._call_s)
        future = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return future.result()
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._call_s:g} s") from None
        finally:
            future.cancel()  # of an interrupted wait

    def _run(self, words: list[str], begin_s: float) -> None:
        # What it logs is for whoever wonders why it does not begin, not for the terminal.
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            try:
                self._loop.run_until_complete(self._serve(words, begin_s, log))
            except Exception as error:
                if not self._listed.done():
                    self._listed.set_exception(UserError(_reason(error) + _last_words(log)))
            finally:
                self._loop.close()

    async def _serve(self, words: list[str], begin_s: float, log: TextIO) -> None:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client

        parameters = StdioServerParameters(command=words[0], args=words[1:])
        server = stdio_client(parameters, errlog=log)
        async with asyncio.timeout(begin_s) as limit, Client(server) as client:
            listed = await _list(client)
            limit.reschedule(None)
            self._listed.set_result((client, listed))
            await self._leave.wait()


async def _list(client: "Client") -> "list[Listed]":
    page = await client.list_tools()
    listed = list(page.tools)
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        listed += page.tools
    return listed


class McpTool(Tool):
    """A tool of a server, as a function whose name harmony can hold."""

    def __init__(self, server: McpServer, listed: "Listed"):
        """Describes it as the server does."""
        self._server = server
        self._name = listed.name
        name = _NOT_IN_NAMES.sub("_", listed.name)
        self.description = ToolFunction(name, listed.description or "", listed.input_schema)

    def run(self, text: str) -> str:
        """What the server answers."""
        result = self._server.call(self._name, arguments_of(text))
        said = "\n".join(_text(part) for part in result.content)
        if not said and result.structured_content is not None:
            said = json.dumps(result.structured_content, ensure_ascii=False)
        return f"error: {said}" if result.is_error else said


def _text(part: Any) -> str:
    """A part of an answer; the model reads text only."""
    if part.type == "text":
        return part.text
    if part.type == "resource" and hasattr(part.resource, "text"):
        return part.resource.text
    if part.type == "resource_link":
        return str(part.uri)
    return f"[{part.type} left out]"


def _reason(error: BaseException) -> str:
    """In a line; of what several tasks raised together, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "it took too long"
    return (str(error) or type(error).__name__).splitlines()[0]


def _last_words(log: TextIO) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return f"; it said {lines[-1]!r}" if lines else ""
