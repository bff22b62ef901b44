"""Writes harmony.json and types.json beside this file from openai-harmony 0.0.8.

    python tests/text/goldens/make_harmony.py

harmony.json: conversations in openai-harmony's own JSON and the ids it renders for them.
types.json: parameter schemas and the type text it prints for them.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from openai_harmony import (
    Conversation,
    DeveloperContent,
    Message,
    RenderConversationConfig,
    Role,
    ToolDescription,
    ToolNamespaceConfig,
    load_harmony_encoding,
)

HERE = Path(__file__).parent
RANKS = HERE.parents[2] / "gptoss_jax" / "text" / "data" / "o200k_base.tiktoken.gz"

OBJECT: dict[str, Any] = {"type": "object"}
WEATHER = {
    "type": "object",
    "properties": {
        "location": {"type": "string", "description": "City and country, e.g. Lagos, Nigeria"},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
        "days": {"type": "integer", "default": 3},
    },
    "required": ["location"],
}


def properties(*schemas: Any, required: tuple[str, ...] = ("p0",), **extra: Any) -> dict[str, Any]:
    """An object schema with the given schemas as p0, p1, …"""
    named = {f"p{i}": s for i, s in enumerate(schemas)}
    return {"type": "object", "properties": named, "required": list(required), **extra}


def schemas() -> list[Any]:
    """Parameter schemas that reach every branch of the type printer."""
    nested = properties({"type": "string", "description": "deep"}, {"type": "integer"})
    leaves: list[Any] = [
        {"type": "string"},
        {"type": "number", "description": "a number"},
        {"type": "integer", "default": 7},
        {"type": "boolean", "default": False, "title": "Flag"},
        {"type": "string", "default": 'say "hi"', "description": "two\nlines"},
        {"type": "string", "enum": ["a", "b c"], "default": "a"},
        {"type": "string", "enum": []},
        {"type": "string", "enum": [1, "x", 2]},
        {"type": "integer", "enum": [1, 2]},
        {"enum": ["a", "b"]},
        {"const": "a"},
        {"type": "string", "nullable": True},
        {"type": ["string", "null"]},
        {"type": ["integer", "string"], "default": -1},
        {"type": ["string", "null"], "nullable": True},
        {"type": [], "description": "no type in the list"},
        {"type": "null"},
        {"type": "array"},
        {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        {"type": "array", "items": nested, "description": "objects"},
        {"type": "array", "items": {"type": ["string", "integer"]}, "default": [1, "é", None]},
        {**nested, "description": "an object"},
        {**nested, "default": {"p0": "é", "p1": 1.5}},
        properties(properties(nested, {"type": "boolean"}, description="level 2")),
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"anyOf": [{"type": "string"}, {"type": "null"}], "default": "x"},
        {"allOf": [nested]},
        {"$ref": "#/$defs/node"},
        {"type": "string", "examples": ["one", 2, "three"]},
        {"type": "string", "examples": []},
        {"title": "Only a title"},
        {"description": "nothing else"},
        {},
        {"type": "number", "default": 1.0},
        {"type": "number", "default": 1e15},
        {"type": "number", "default": 1e16},
        {"type": "number", "default": 1e20},
        {"type": "number", "default": 0.00001},
        {"type": "number", "default": 1.5e-7},
        {"type": "number", "default": 123456789012345680.0},
        {"type": "number", "default": -0.25},
        {"type": "string", "default": None},
        {"type": "string", "description": 7, "title": None},
        {"type": "array", "items": {"default": None, "type": "string"}, "default": [None]},
    ]
    unions: list[Any] = [
        {"oneOf": []},
        {"oneOf": "no list", "type": "string", "description": "hidden", "default": 1},
        {
            "oneOf": [
                {"type": "string", "description": "as text"},
                {"type": "integer", "default": 3},
            ]
        },
        {"oneOf": [{"type": "string", "description": "same"}, nested], "description": "same"},
        {"oneOf": [{"type": "string", "description": "own"}, nested], "description": "outer"},
        {
            "oneOf": [
                {"type": "string", "enum": ["a"], "default": "a", "description": "first"},
                {"type": "string", "default": "b", "nullable": True, "description": "outer"},
                {"oneOf": [{"type": "boolean"}, {"type": "string", "default": "c"}]},
            ],
            "description": "outer",
            "default": "a",
        },
        {"oneOf": [{"type": "string"}], "enum": ["q"], "default": "q", "title": "T"},
        {"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "number"}]}},
    ]
    whole = [
        {},
        OBJECT,
        {"type": "object", "properties": {}},
        {"type": "object", "properties": "wrong", "required": "wrong"},
        {"type": "object", "properties": {"a": True, "b": 3}, "required": ["a", 1]},
        {**WEATHER, "description": "the whole"},
        {"type": "string", "enum": ["a", "b"]},
        {"type": "array", "items": {"type": "string"}},
        {"properties": {"a": {"type": "string"}}},
    ]
    singles = [properties(s) for s in leaves + unions] + [
        properties(s, required=()) for s in leaves
    ]
    return whole + WEATHERS + leaves + unions + singles + [properties(*leaves, *unions)]


WEATHERS = [WEATHER, properties(WEATHER, WEATHER, required=("p0", "p1"), title="unused")]


def message(role: str, content: Any, **extra: Any) -> dict[str, Any]:
    """One message in openai-harmony's JSON."""
    content = {"type": "text", "text": content} if isinstance(content, str) else content
    return {"role": role, "name": None, "content": [content], **extra}


def system(**fields: Any) -> dict[str, Any]:
    """A system message."""
    return message("system", {"type": "system_content", **fields})


def developer(
    instructions: str | None, tools: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A developer message with function tools."""
    namespaces = None if tools is None else {"functions": {"name": "functions", "tools": tools}}
    fields = {"instructions": instructions, "tools": namespaces}
    return message("developer", {"type": "developer_content", **fields})


def call(
    name: str, arguments: str, content_type: str | None = "<|constrain|>json"
) -> dict[str, Any]:
    """A tool call of the assistant."""
    extra = {"channel": "commentary", "recipient": name, "content_type": content_type}
    return message("assistant", arguments, **extra)


def answer(name: str, content: str, channel: str = "commentary") -> dict[str, Any]:
    """A tool's answer."""
    return message("tool", content, recipient="assistant", channel=channel) | {"name": name}


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Conversations by name."""
    user = message("user", "What is the weather in Lagos?")
    think = message("assistant", "Need the tool.", channel="analysis")
    final = message("assistant", "Warm, 31 °C. 🌤️", channel="final")
    tools = [
        {"name": "get_weather", "description": "Weather now.\n\nIn °C.\r\n", "parameters": WEATHER},
        {"name": "get_location", "description": ""},
        {"name": "noop", "description": "Takes nothing.", "parameters": None},
    ]
    loop = [think, call("functions.get_weather", '{"location":"Lagos"}')]
    loop.append(answer("functions.get_weather", '{"t": 31}'))
    python = call("python", "print(1)", "code") | {"channel": "analysis"}
    date = {"conversation_start_date": "2026-03-01"}
    full = [system(**date), developer("Be brief.", tools)]
    nasty = "a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|> <|reserved_200000|>"
    out = {
        "plain": [system(), user],
        "date": [system(**date), developer("Answer in verse."), user],
        "no_instructions": [system(), developer(None, tools), user],
        "empty_developer": [system(), developer(None), user],
        "empty_instructions": [system(), developer(""), user],
        "tool_loop": [*full, user, *loop],
        "tool_loop_done": [*full, user, *loop, think, final],
        "second_turn": [*full, user, *loop, think, final, user],
        "second_loop": [*full, user, think, final, user, *loop],
        "third_turn": [*full, user, think, final, user, think, final, user],
        "preamble": [*full, user, message("assistant", "Plan.", channel="commentary"), *loop],
        "python": [system(), user, think, python, answer("python", "1", "analysis")],
        "python_done": [
            system(),
            user,
            think,
            python,
            answer("python", "1", "analysis"),
            final,
            user,
        ],
        "content_types": [user, call("functions.f", "{}", "json"), call("functions.f", "{}", None)],
        "constrain_space": [user, call("functions.f", "{}", "<|constrain|> json")],
        "recipient_all": [user, message("assistant", "hi", channel="final", recipient="all")],
        "names": [
            message("user", "hi") | {"name": "ada.l"},
            final,
            message("user", "", recipient="x"),
        ],
        "specials_in_content": [system(), developer(nasty), message("user", nasty), final, user],
        "unicode": [message("user", "naïve ­ 日本語 👩‍👩‍👧 \x00\r\n\t \u3000 ∑")],
        "no_messages": [],
        "identity_off": [system(model_identity=None, knowledge_cutoff=None), user],
        "channels_off": [
            system(channel_config={"valid_channels": [], "channel_required": False}),
            *full[1:],
            user,
        ],
        "two_channels": [
            system(
                channel_config={"valid_channels": ["analysis", "final"], "channel_required": True}
            ),
            user,
        ],
        "effort_off": [system(reasoning_effort=None, **date), user],
    }
    for effort, tool in itertools.product(("Low", "Medium", "High"), (True, False)):
        head = [system(reasoning_effort=effort, **date), developer("Hi.", tools if tool else None)]
        out[f"effort_{effort.lower()}{'_tools' * tool}"] = [*head, user]
    return out


def builtin_conversations() -> dict[str, list[dict[str, Any]]]:
    """Conversations with the built-in tools, whose texts come from openai-harmony."""
    browser = ToolNamespaceConfig.browser().model_dump()
    python = ToolNamespaceConfig.python().model_dump()
    user = message("user", "Look it up.")
    sets = {"python": [python], "browser": [browser], "both": [python, browser]}
    return {
        f"builtin_{name}": [system(tools={t["name"]: t for t in tools}), user]
        for name, tools in sets.items()
    }


def encoding() -> Any:
    """openai-harmony's encoding, from the packaged ranks."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "o200k_base.tiktoken").write_bytes(gzip.decompress(RANKS.read_bytes()))
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        return load_harmony_encoding("HarmonyGptOss")


def render(oracle: Any, messages: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Ids in the four ways openai-harmony renders a conversation."""
    conversation = Conversation.from_json(json.dumps({"messages": messages}))
    keep = RenderConversationConfig(auto_drop_analysis=False)
    return {
        "completion": oracle.render_conversation_for_completion(conversation, Role.ASSISTANT),
        "completion_keep": oracle.render_conversation_for_completion(
            conversation, Role.ASSISTANT, keep
        ),
        "history": oracle.render_conversation(conversation),
        "training_keep": oracle.render_conversation_for_training(conversation, keep),
    }


def type_text(oracle: Any, schema: Any) -> str:
    """The type openai-harmony prints for a parameter schema."""
    tool = ToolDescription.new("f", "", parameters=schema)
    content = DeveloperContent.new().with_function_tools([tool])
    ids = oracle.render(Message.from_role_and_content(Role.DEVELOPER, content))
    text = oracle.decode(ids)
    start, end = "type f = (_: ", ") => any;\n\n} // namespace"
    return text[text.index(start) + len(start) : text.rindex(end)]


def main() -> None:
    """Writes both files."""
    oracle = encoding()
    cases = {
        name: {"messages": messages, "ids": render(oracle, messages)}
        for name, messages in (conversations() | builtin_conversations()).items()
    }
    types = [{"schema": s, "type": type_text(oracle, s)} for s in schemas()]
    for file, data in (("harmony.json", cases), ("types.json", types)):
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        (HERE / file).write_text(text + "\n")


if __name__ == "__main__":
    main()
