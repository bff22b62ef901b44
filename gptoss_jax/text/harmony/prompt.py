"""Texts of the system and developer messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from gptoss_jax.text.errors import HarmonyError
from gptoss_jax.text.harmony.messages import (
    CHANNELS,
    FUNCTIONS,
    Compat,
    Effort,
    Message,
    ResponseFormat,
    ToolFunction,
    ToolNamespace,
)
from gptoss_jax.text.harmony.typescript import parameters_type

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
EFFORTS = ("low", "medium", "high")


def system_message(
    effort: Effort | None = "medium",
    current_date: str | None = None,
    *,
    builtin_tools: Iterable[ToolNamespace] = (),
    function_tools: bool = False,
    identity: str | None = IDENTITY,
    knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF,
    channels: Sequence[str] = CHANNELS,
    compat: Compat | None = None,
) -> Message:
    """The system message.

    Args:
      effort: low, medium or high; None leaves the line out.
      current_date: YYYY-MM-DD; None leaves the line out.
      builtin_tools: tools described here rather than by the developer (`BROWSER`, `PYTHON`).
      function_tools: whether a developer message of the conversation has functions.
      identity: who the model is; the format wants it unchanged.
      knowledge_cutoff: YYYY-MM.
      channels: the valid channels; empty leaves the section out.
      compat: as `render_conversation` takes it.

    Raises:
      HarmonyError: the effort is not one of the three.
    """
    if effort is not None and effort not in EFFORTS:
        raise HarmonyError(f"reasoning effort {effort!r} is unknown; use low, medium or high")
    top = [identity or "", f"Knowledge cutoff: {knowledge_cutoff}" if knowledge_cutoff else ""]
    top.append(f"Current date: {current_date}" if current_date else "")
    channel_lines = _channels_section(channels, function_tools)
    sections = [
        "\n".join(filter(None, top)),
        f"Reasoning: {effort}" if effort else "",
        tools_section(builtin_tools, compat=compat),
        channel_lines,
    ]
    return Message("system", "\n\n".join(filter(None, sections)))


def developer_message(
    instructions: str | None = None,
    tools: Iterable[ToolFunction] = (),
    response_formats: Iterable[ResponseFormat] = (),
    *,
    compat: Compat | None = None,
) -> Message:
    """The developer message: instructions, function tools, response formats.

    Args:
      instructions: what other chat formats call the system prompt; None leaves the section out.
      tools: functions, rendered under the namespace `functions`.
      response_formats: schemas for the answer, always last in the message.
      compat: as `render_conversation` takes it.
    """
    tools = tuple(tools)
    # openai-harmony keeps an empty instructions section, and so does the format by its silence.
    sections = [] if instructions is None else ["# Instructions", instructions]
    if tools:
        sections.append(tools_section([ToolNamespace(FUNCTIONS, tools)], compat=compat))
    formats = [_response_format(f) for f in response_formats]
    if formats:
        sections += ["# Response Formats", *formats]
    return Message("developer", "\n\n".join(sections))


def tools_section(namespaces: Iterable[ToolNamespace], *, compat: Compat | None = None) -> str:
    """The `# Tools` section, empty without namespaces."""
    # openai-harmony sorts by name and keeps the last of equal names; the order carries no meaning.
    by_name = {n.name: n for n in namespaces}
    parts = [_namespace(by_name[name], compat is not None) for name in sorted(by_name)]
    return "\n\n".join(["# Tools", *parts]) if parts else ""


def _channels_section(channels: Sequence[str], function_tools: bool) -> str:
    if not channels:
        return ""
    text = f"# Valid channels: {', '.join(channels)}. Channel must be included for every message."
    if function_tools:
        text += f"\nCalls to these tools must go to the commentary channel: '{FUNCTIONS}'."
    return text


def _namespace(namespace: ToolNamespace, compat: bool) -> str:
    lines = [f"## {namespace.name}\n"]
    comment = "// " if namespace.functions else ""
    lines += [comment + line for line in _lines(namespace.description or "")]
    if namespace.functions:
        lines.append(f"namespace {namespace.name} {{\n")
        for function in namespace.functions:
            lines += _function(function, compat)
        lines.append(f"}} // namespace {namespace.name}")
    return "\n".join(lines)


def _function(function: ToolFunction, compat: bool) -> list[str]:
    argument = None
    if function.parameters is not None:
        argument = parameters_type(function.parameters, compat)
    signature = "()" if argument is None else f"(_: {argument})"
    comments = [f"// {line}" for line in _lines(function.description)]
    return [*comments, f"type {function.name} = {signature} => any;\n"]


def _response_format(response_format: ResponseFormat) -> str:
    comments = [f"// {line}" for line in _lines(response_format.description)]
    schema = json.dumps(response_format.schema, ensure_ascii=False, separators=(",", ":"))
    return f"## {response_format.name}\n\n" + "\n".join([*comments, schema])


def _lines(text: str) -> list[str]:
    """Lines as Rust counts them: ended by LF or CR LF and nothing else."""
    lines = text.split("\n")
    ended, last = [line.removesuffix("\r") for line in lines[:-1]], lines[-1]
    return [*ended, last] if last else ended
