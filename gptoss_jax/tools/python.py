"""The python tool: gpt-oss was trained to send code to it while it thinks."""

from gptoss_jax.text.harmony import PYTHON, ToolNamespace
from gptoss_jax.tools.sandbox import Limits, run_code
from gptoss_jax.tools.tool import Tool

# What it is for, in the words of the training; then how it is here.
_PURPOSE = (PYTHON.description or "").split("\n\n")[0]


class Python(Tool):
    """Runs the code of each message in a new process, shut in."""

    def __init__(self, limits: Limits | None = None):
        """Describes itself with its limits."""
        self._limits = limits or Limits()
        self.description = ToolNamespace(
            PYTHON.name,
            description=f"{_PURPOSE}\n\nEvery message to python is a program of its own, in a new "
            "process: nothing of earlier ones is left, so send all the code each time, and print "
            f"what you want to see. It is ended after {self._limits.wall_s:g} seconds. There is no "
            "network, and files in the current directory are gone afterwards.",
        )

    def run(self, text: str) -> str:
        """What the code printed."""
        return run_code(text, self._limits)
