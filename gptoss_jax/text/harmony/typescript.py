"""JSON schema → the TypeScript-like type text of a developer message.

The layout (indents, where comments stand) is openai-harmony's: gpt-oss saw its like in training,
and the format says no more than "TypeScript-like". On top of it the default mode spells what that
library prints as `any`: anyOf, allOf, const, enums of other than strings, local $ref, null; it
brackets an array of a union, and keeps every line of a description a comment. `compat=True` leaves
all that out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptoss_jax.text.harmony.json_text import to_json

_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
_MAX_REF_DEPTH = 8


def parameters_type(schema: Mapping[str, Any], compat: bool = False) -> str | None:
    """Type of a function's one argument.

    Args:
      schema: the JSON schema of its parameters.
      compat: as openai-harmony 0.0.8 prints it.

    Returns:
      The type's text, None if the function takes no argument (never so with `compat`).
    """
    if compat:
        return schema_type(schema, "", compat=True)
    schema = _inline_refs(schema, schema, 0)
    takes_nothing = schema.get("type") == "object" and not schema.get("properties")
    return None if takes_nothing or not schema else schema_type(schema, "")


def schema_type(schema: Any, indent: str, compat: bool = False) -> str:
    """Type text of a schema whose local references are inlined already."""
    if not isinstance(schema, Mapping):
        return "any"
    one_of = schema.get("oneOf")
    if isinstance(one_of, list) and (one_of or compat):
        return "".join(_variant_lines(one_of, indent, compat))
    if not compat and (spelled := _spelled(schema, indent)) is not None:
        return spelled
    kind = schema.get("type")
    if isinstance(kind, list):
        return (
            " | ".join("number" if k == "integer" else k for k in kind if isinstance(k, str))
            or "any"
        )
    if kind == "object":
        return _object(schema, indent, compat)
    if kind == "array":
        return _array(schema, indent, compat)
    if kind == "string":
        enum = schema.get("enum")
        quoted = [f'"{v}"' for v in enum if isinstance(v, str)] if isinstance(enum, list) else []
        return " | ".join(quoted) or "string"
    return _SCALARS.get(kind, "any") if isinstance(kind, str) else "any"


def _spelled(schema: Mapping[str, Any], indent: str) -> str | None:
    """What openai-harmony leaves as `any` (or drops), None where it does not."""
    if schema.get("type") == "null":
        return "null"
    if "const" in schema:
        return to_json(schema["const"])
    enum = schema.get("enum")
    if isinstance(enum, list) and enum and not all(isinstance(v, str) for v in enum):
        return " | ".join(to_json(v) for v in enum)
    if isinstance(enum, list) and enum and schema.get("type") != "string":
        return " | ".join(f'"{v}"' for v in enum)
    for keyword, joint in (("anyOf", " | "), ("allOf", " & ")):
        variants = schema.get(keyword)
        if isinstance(variants, list) and variants:
            types = dict.fromkeys(schema_type(v, indent) for v in variants)
            return joint.join(types)
    return None


def _array(schema: Mapping[str, Any], indent: str, compat: bool) -> str:
    if "items" not in schema:
        return "Array<any>"
    inner = schema_type(schema["items"], indent, compat)
    is_union = (
        not compat and not inner.startswith(("{", "(")) and (" | " in inner or " & " in inner)
    )
    return f"({inner})[]" if is_union else f"{inner}[]"


def _object(schema: Mapping[str, Any], indent: str, compat: bool) -> str:
    out = ""
    if isinstance(schema.get("description"), str):
        out += _description(schema["description"], indent, compat)
    out += "{\n"
    properties = schema.get("properties")
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    if isinstance(properties, Mapping):
        for key, value in properties.items():
            name = key if key in required else f"{key}?"
            out += _property(name, value if isinstance(value, Mapping) else {}, indent, compat)
    return f"{out}{indent}}}"


def _property(name: str, schema: Mapping[str, Any], indent: str, compat: bool) -> str:
    out = ""
    if isinstance(schema.get("title"), str):
        out += f"{indent}// {schema['title']}\n{indent}//\n"
    if "oneOf" not in schema and isinstance(schema.get("description"), str):
        out += _description(schema["description"], indent, compat)
    examples = schema.get("examples")
    if isinstance(examples, list) and examples:
        out += f"{indent}// Examples:\n"
        out += "".join(f'{indent}// - "{e}"\n' for e in examples if isinstance(e, str))
    if isinstance(schema.get("oneOf"), list):
        return out + _one_of_property(name, schema, indent, compat)
    out += f"{indent}{name}: {_nullable(schema, schema_type(schema, indent + '    ', compat))},"
    if "oneOf" not in schema and "default" in schema:
        out += f" // {_default(schema)}"
    return out + "\n"


def _one_of_property(name: str, schema: Mapping[str, Any], indent: str, compat: bool) -> str:
    variants = schema["oneOf"]
    description = schema.get("description")
    description = description if isinstance(description, str) else None
    # A description repeated by the first variant is shown by neither.
    above = (
        description is not None
        and _get(variants[0] if variants else None, "description") != description
    )
    out = _description(description, indent, compat) if above else ""
    if "default" in schema:
        out += f"{indent}// {_default(schema)}\n"
    out += f"{indent}{name}:\n"
    for n, variant in enumerate(variants):
        comments = []
        own = _get(variant, "description")
        if isinstance(own, str) and own != description and not (n == 0 and above):
            comments.append(own)
        if _has(variant, "default"):
            comments.append(_default(variant))
        out += f"{indent} | {_variant(variant, indent, compat)}{_comment(comments)}\n"
    return f"{out}{indent},\n"


def _variant_lines(variants: list[Any], indent: str, compat: bool) -> Iterator[str]:
    for variant in variants:
        own = _get(variant, "description")
        comments = [own] if isinstance(own, str) else []
        if _has(variant, "default"):
            default = variant["default"]
            # Here, unlike at a property, an enum's default keeps its quotes.
            plain = isinstance(default, str) and not _is_enum(variant)
            comments.append(f'default: "{default}"' if plain else f"default: {to_json(default)}")
        yield f"\n{indent} | {_variant(variant, indent, compat)}{_comment(comments)}"


def _variant(variant: Any, indent: str, compat: bool) -> str:
    return _nullable(variant, schema_type(variant, indent + "   ", compat))


def _nullable(schema: Any, text: str) -> str:
    return f"{text} | null" if _get(schema, "nullable") is True and "null" not in text else text


def _default(schema: Mapping[str, Any]) -> str:
    default = schema["default"]
    if isinstance(default, str):
        return f"default: {default}" if _is_enum(schema) else f'default: "{default}"'
    return f"default: {to_json(default)}"


def _description(text: str | None, indent: str, compat: bool) -> str:
    lines = [text or ""] if compat else (text or "").splitlines()
    return "".join(f"{indent}// {line}\n" for line in lines)


def _comment(parts: list[str]) -> str:
    return f" // {' '.join(parts)}" if parts else ""


def _is_enum(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("enum"), list) and bool(schema["enum"])


def _get(schema: Any, key: str) -> Any:
    return schema.get(key) if isinstance(schema, Mapping) else None


def _has(schema: Any, key: str) -> bool:
    return isinstance(schema, Mapping) and key in schema


def _inline_refs(value: Any, root: Mapping[str, Any], depth: int) -> Any:
    if isinstance(value, list):
        return [_inline_refs(v, root, depth) for v in value]
    if not isinstance(value, Mapping):
        return value
    ref = value.get("$ref")
    if isinstance(ref, str):
        beside = {k: v for k, v in value.items() if k != "$ref"}
        # A schema that contains itself ends in `any` somewhere below.
        target = _resolve(ref, root) if depth < _MAX_REF_DEPTH else {}
        return _inline_refs({**target, **beside}, root, depth + 1)
    return {
        k: _inline_refs(v, root, depth)
        for k, v in value.items()
        if k not in ("$defs", "definitions")
    }


def _resolve(ref: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    node: Any = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        node = _get(node, part.replace("~1", "/").replace("~0", "~"))
    return node if isinstance(node, Mapping) and ref.startswith("#") else {}
