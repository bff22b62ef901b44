"""JSON Schemas as llguidance takes them, rewritten where that changes no answer for the worse.

What follows the rewritten schema follows the schema as it was: a rewriting may leave answers out,
and lets in none that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Others say nothing, as the standard has it: a format that is not known is an annotation.
_FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
# Blanks have an end: a model that is free to write them may never come to one.
_BLANKS = r"\n[ \t]{0,32}| "
# Written as \u0061 the name "a" would be one that no property has. What is escaped otherwise stays.
_ESCAPES = 'nrbtf\\"'
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = (
    *("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else"),
    *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)


def prepared(schema: Any, *, separate: bool = False) -> Any:
    """A schema without formats nobody knows, with blanks bounded.

    Args:
      schema: of JSON.
      separate: keep the branches of each `oneOf` apart by the properties they require, for a schema
        where llguidance sees no difference between them.
    """

    def change(node: dict[str, Any]) -> dict[str, Any]:
        if isinstance(node.get("format"), str) and node["format"] not in _FORMATS:
            node = {key: value for key, value in node.items() if key != "format"}
        node = _names_as_patterns(node)
        return _separated(node) if separate else node

    changed = _walk(schema, change)
    if isinstance(changed, dict):
        given = changed.get("x-guidance")
        own = given if isinstance(given, dict) else {}
        ours = {"whitespace_pattern": _BLANKS, "json_allowed_escapes": _ESCAPES}
        changed = {**changed, "x-guidance": {**ours, **own}}
    return changed


def _walk(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy with every schema in it changed, the inner ones first; values are left alone."""
    if not isinstance(schema, Mapping):
        return schema
    node = dict(schema)
    for key in _MAPS:
        if isinstance(node.get(key), Mapping):
            node[key] = {name: _walk(inner, change) for name, inner in node[key].items()}
    for key in _LISTS:
        if isinstance(node.get(key), list):
            node[key] = [_walk(inner, change) for inner in node[key]]
    for key in _SINGLE:
        if isinstance(node.get(key), Mapping):
            node[key] = _walk(node[key], change)
    return change(node)


def _names_as_patterns(node: dict[str, Any]) -> dict[str, Any]:
    """`propertyNames` with nothing but a pattern, where no property is named."""
    names = node.get("propertyNames")
    if not isinstance(names, dict) or set(names) - {"pattern", "type"}:
        return node
    if not isinstance(names.get("pattern"), str) or names.get("type", "string") != "string":
        return node
    if node.get("properties") or node.get("patternProperties"):
        return node
    value = node.get("additionalProperties", True)
    node = {key: inner for key, inner in node.items() if key != "propertyNames"}
    return node | {"patternProperties": {names["pattern"]: value}, "additionalProperties": False}


def _separated(node: dict[str, Any]) -> dict[str, Any]:
    """`oneOf` as `anyOf` whose branches forbid what tells the others apart."""
    branches = node.get("oneOf")
    if not isinstance(branches, list) or "anyOf" in node or not all(map(_requires, branches)):
        return node
    apart = []
    for index, branch in enumerate(branches):
        absent = {}
        for other in branches[:index] + branches[index + 1 :]:
            telling = [name for name in other["required"] if name not in branch["required"]]
            if not telling:
                return node
            absent[telling[0]] = False
        properties = {**branch.get("properties", {}), **absent}
        apart.append({**branch, "type": "object", "properties": properties})
    rest = {key: value for key, value in node.items() if key != "oneOf"}
    return {**rest, "anyOf": apart}


def _requires(branch: Any) -> bool:
    """Whether a branch is of objects that must have some property."""
    return (
        isinstance(branch, dict)
        and branch.get("type", "object") == "object"
        and isinstance(branch.get("required"), list)
        and all(isinstance(name, str) for name in branch["required"])
        and isinstance(branch.get("properties", {}), dict)
    )
