"""The harmony format: messages, rendering to tokens, streaming parse of model output."""

from gptoss_jax.text.harmony.builtin_tools import BROWSER, PYTHON
from gptoss_jax.text.harmony.chat import (
    AssistantTurn,
    from_chat,
    function_name,
    to_turn,
    tool_functions,
)
from gptoss_jax.text.harmony.events import Delta, Event, MessageEnd, MessageStart
from gptoss_jax.text.harmony.messages import (
    Compat,
    Effort,
    Message,
    ResponseFormat,
    ToolFunction,
    ToolNamespace,
)
from gptoss_jax.text.harmony.parser import HarmonyParser
from gptoss_jax.text.harmony.prompt import developer_message, system_message
from gptoss_jax.text.harmony.render import (
    assistant_start,
    render_conversation,
    render_for_training,
)

__all__ = [
    "BROWSER",
    "PYTHON",
    "AssistantTurn",
    "Compat",
    "Delta",
    "Effort",
    "Event",
    "HarmonyParser",
    "Message",
    "MessageEnd",
    "MessageStart",
    "ResponseFormat",
    "ToolFunction",
    "ToolNamespace",
    "assistant_start",
    "developer_message",
    "from_chat",
    "function_name",
    "render_conversation",
    "render_for_training",
    "system_message",
    "to_turn",
    "tool_functions",
]
