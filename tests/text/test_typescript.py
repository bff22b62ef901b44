"""Schema → type text, character for character against openai-harmony 0.0.8."""

import json
from pathlib import Path

import pytest

from gptoss_jax.text.harmony.json_text import to_json
from gptoss_jax.text.harmony.typescript import parameters_type

CASES = json.loads((Path(__file__).parent / "goldens" / "types.json").read_text())
COMPAT = "openai-harmony-0.0.8"


def prop(schema, **extra):
    text = parameters_type({"type": "object", "properties": {"p": schema}, **extra})
    return text.removeprefix("{\n").removesuffix("\n}")


@pytest.mark.parametrize("case", CASES, ids=lambda c: to_json(c["schema"])[:60])
def test_compat_matches_golden_text(case):
    assert parameters_type(case["schema"], compat=True) == case["type"]


def test_compat_matches_the_library(oracle, make_goldens):
    schemas = make_goldens.schemas()
    assert len(schemas) > 150
    for schema in schemas:
        want = make_goldens.type_text(oracle, schema)
        assert parameters_type(schema, compat=True) == want, schema


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "p?: string | null,"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, "p?: number,"),
        ({"const": "a"}, 'p?: "a",'),
        ({"const": 3, "default": 3}, "p?: 3, // default: 3"),
        ({"enum": ["a", 1, None]}, 'p?: "a" | 1 | null,'),
        ({"enum": ["a", "b"]}, 'p?: "a" | "b",'),
        ({"type": "integer", "enum": [1, 2]}, "p?: 1 | 2,"),
        ({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}, 'p?: ("a" | "b")[],'),
        ({"type": "array", "items": {"type": ["string", "integer"]}}, "p?: (string | number)[],"),
        ({"description": "a\nb", "type": "string"}, "// a\n// b\np?: string,"),
    ],
)
def test_default_mode_spells_what_the_library_leaves_out(schema, text):
    assert prop(schema) == text


def test_references_are_inlined_and_cycles_end():
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    text = prop({"$ref": "#/$defs/node", "description": "list"}, **{"$defs": {"node": node}})
    assert text.startswith("// list\np?:     // list\n{\n    next?: {")
    assert text.count("next?:") == 8 and "next?: any" in text
    assert prop({"$ref": "#/$defs/none"}) == "p?: any,"
    assert prop({"$ref": "elsewhere.json"}) == "p?: any,"


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_function_without_arguments_has_no_type(schema):
    assert parameters_type(schema) is None


@pytest.mark.parametrize("case", CASES, ids=lambda c: to_json(c["schema"])[:60])
def test_default_mode_takes_every_schema(case):
    text = parameters_type(case["schema"])
    assert text is None or text


def test_an_integer_that_no_double_holds_is_null():
    assert to_json([10**400, -(10**400), 2**64]) == "[null,null,1.8446744073709552e19]"
