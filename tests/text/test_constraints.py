"""Masks of whole turns, with both kinds of tokenizers; what is no grammar is said in a line."""

import json
from pathlib import Path

import numpy as np
import pytest
from walk import allowed, first_refused, ids_of

import gptoss_jax
from gptoss_jax.text import constraints, load_tokenizer, o200k_harmony
from gptoss_jax.text.constraints import Constraint, GrammarError

pytestmark = pytest.mark.fast

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["nano", "o200k"])
def tokenizer(request):
    directory = Path(gptoss_jax.__file__).parent / "nano"
    return load_tokenizer(directory) if request.param == "nano" else o200k_harmony()


THOUGHT = "<|channel|>analysis<|message|>Hm {<x>}\nand so on.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    "turn",
    [
        THOUGHT + FINAL + '{"name":"Kim","age":7}<|return|>',
        FINAL + '{"name": "é\\n", "age": -70}<|return|>',
        THOUGHT + '<|channel|>final <|constrain|>json<|message|>{"name":"","age":0}<|return|>',
    ],
)
def test_turns_that_follow_the_schema(tokenizer, turn):
    assert (
        first_refused(tokenizer, Constraint(tokenizer, constraints.json_schema(SCHEMA)), turn)
        is None
    )


@pytest.mark.parametrize(
    ("turn", "refused"),
    [
        (FINAL + '{"name":"Kim"}<|return|>', '"}'),
        (FINAL + '{"name":"Kim","age":7}', None),
        (FINAL + '{"name":"Kim","age":7<|return|>', "<|return|>"),
        (THOUGHT + THOUGHT, "analysis"),
        ("<|channel|>commentary<|message|>", "commentary"),
        ("<|channel|>analysis<|message|>Hm<|return|>", "<|return|>"),
        (FINAL + "<|end|>", "<|end|>"),
    ],
)
def test_turns_that_do_not(tokenizer, turn, refused):
    constraint = Constraint(tokenizer, constraints.json_schema(SCHEMA))
    found = first_refused(tokenizer, constraint, turn)
    # A tokenizer may cut words smaller, and then refuses a part of one.
    assert found == refused or (refused and found and found in refused)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        {"type": "object", "patternProperties": {"^a$": {"type": "integer"}}},
    ],
)
def test_a_name_is_not_spelled_otherwise_to_escape_its_schema(tokenizer, schema):
    constraint = Constraint(tokenizer, constraints.json_schema(schema), raw=True)
    assert first_refused(tokenizer, constraint, '{"a": 1, "b": "\\n"}') is None
    assert first_refused(tokenizer, constraint, '{"\\u0061": "x"}') is not None


def test_after_the_answer_only_the_end_may_come(tokenizer):
    matcher = Constraint(tokenizer, constraints.regex("[0-9]{2}")).matcher()
    for token in ids_of(tokenizer, FINAL + "42"):
        matcher.accept(token)
    (left,) = np.flatnonzero(allowed(matcher, tokenizer))
    assert left == tokenizer.token_id("<|return|>")


def test_an_id_without_a_string_never_comes(tokenizer):
    matcher = Constraint(tokenizer, constraints.regex("(.|\n)*"), raw=True).matcher()
    may_come = allowed(matcher, tokenizer)
    assert may_come.any()
    assert not may_come[tokenizer.unsampleable_ids(tokenizer.vocab_size)].any()


@pytest.mark.parametrize(
    ("answer", "text", "follows"),
    [
        (constraints.regex("a/b"), "a/b", True),
        (constraints.regex(r"a\/b\\/c"), "a/b\\/c", True),
        (constraints.regex("a/b"), "ab", False),
        (constraints.regex("a\nb"), "a\nb", True),
        (constraints.lark('start: "x" n\nn: /[0-9]+/'), "x42", True),
        (constraints.lark('start: "x" n\nn: /[0-9]+/'), "y42", False),
    ],
)
def test_expressions_and_grammars(tokenizer, answer, text, follows):
    constraint = Constraint(tokenizer, answer, raw=True)
    assert (first_refused(tokenizer, constraint, text) is None) == follows


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (constraints.json_schema({"type": "nope"}), "Invalid type: nope"),
        (constraints.json_schema({"$ref": "http://x/y"}), "http://x/y"),
        (constraints.regex("(a"), "invalid regex"),
        (constraints.lark('start: "a" foo'), "foo"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_a_line(tokenizer, answer, message):
    with pytest.raises(GrammarError, match=message) as error:
        Constraint(tokenizer, answer)
    assert "\n" not in str(error.value)


def test_a_schema_is_not_lost_in_escapes(tokenizer):
    schema = {"type": "string", "enum": ['a"b', "c\\d", "é / ☃", "}"]}
    constraint = Constraint(tokenizer, constraints.json_schema(schema), raw=True)
    for value in schema["enum"]:
        assert first_refused(tokenizer, constraint, json.dumps(value, ensure_ascii=False)) is None


def test_masks_of_many_rows_are_those_of_each_alone(tokenizer, monkeypatch):
    """On threads or not; rows without a matcher are left as they are."""
    rules = [constraints.regex("[0-9]+"), constraints.json_schema(SCHEMA), constraints.regex("x|y")]
    matchers = [Constraint(tokenizer, rule, raw=True).matcher() for rule in rules]
    alone = [allowed(matcher, tokenizer) for matcher in matchers]
    assert len({mask.tobytes() for mask in alone}) == 3
    width = -(-tokenizer.vocab_size // 32) + 1  # a model may have rows beyond the tokenizer
    for seconds in (0.0, 60.0):
        monkeypatch.setattr(constraints, "_ALONE_SECONDS", seconds)
        words = np.full((4, width), -1, np.int32)
        constraints.fill_masks([matchers[0], None, *matchers[1:]], words)
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)
        for row, mask in zip((0, 2, 3), alone, strict=True):
            assert (bits[row, : tokenizer.vocab_size] == mask).all()
        assert (words[1] == -1).all() and (words[[0, 2, 3], -1] == 0).all()


@pytest.mark.parametrize(
    ("schema", "follows", "does_not"),
    [
        ({"type": "string", "format": "chickenbutt"}, '"x"', "1"),
        ({"properties": {"format": {"const": "chickenbutt"}}}, '{"format":"chickenbutt"}', "[}"),
        (
            {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"},
            '{"a": 1}',
            '{"a":1,"b":1}',
        ),
        (
            {"type": "object", "propertyNames": {"pattern": "^[a-c]$"}},
            '{"a":[]}',
            '{"d":1}',
        ),
        ({"type": "array"}, "[\n  1,\n  2\n]", "[  1]"),
    ],
)
def test_schemas_are_rewritten_where_nothing_wrong_comes_of_it(
    tokenizer, schema, follows, does_not
):
    constraint = Constraint(tokenizer, constraints.json_schema(schema), raw=True)
    assert first_refused(tokenizer, constraint, follows + "<|return|>") is None
    assert first_refused(tokenizer, constraint, does_not + "<|return|>") is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "propertyNames": {"pattern": []}},
        {"type": "object", "propertyNames": {"pattern": "^a$", "type": "integer"}},
        {"oneOf": [{"required": [[1]]}, {"required": ["b"]}]},
    ],
)
def test_what_a_rewriting_does_not_understand_is_left_to_the_compiler(tokenizer, schema):
    with pytest.raises(GrammarError):
        Constraint(tokenizer, constraints.json_schema(schema))
