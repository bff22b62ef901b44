"""Schemas and expressions made to take for ever: each is refused, or followed, in bounded time."""

import argparse
import threading
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from walk import allowed

import gptoss_jax
from gptoss_jax import constraint_flags
from gptoss_jax.text import constraints, load_tokenizer
from gptoss_jax.text.constraints import Constraint, GrammarError, Matcher

pytestmark = pytest.mark.fast

# Seconds, of a machine with other things to do; each takes less than one.
_COMPILE, _MASK = 6.0, 2.0


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(gptoss_jax.__file__).parent / "nano")


def test_no_other_thread_gets_the_large_stack():
    """As two that compile at once would leave it to each other, or to nobody."""
    before = threading.stack_size()

    def later() -> int:
        time.sleep(0.1)
        return threading.stack_size()

    assert constraints._on_a_large_stack(later) == before


def deep(levels: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def forks(count: int) -> dict:
    """2^count objects, one in another."""
    defs: dict = {
        f"n{i}": {
            "anyOf": [
                {"type": "object", "properties": {name: {"$ref": f"#/$defs/n{i + 1}"}}}
                for name in "ab"
            ]
        }
        for i in range(count)
    }
    return {"$defs": defs | {f"n{count}": {"type": "null"}}, "$ref": "#/$defs/n0"}


def product(count: int) -> dict:
    """2^count ways to satisfy all."""
    ways = [[{"properties": {f"p{i}": {"const": c}}} for c in (1, 2)] for i in range(count)]
    return {"type": "object", "allOf": [{"anyOf": way} for way in ways]}


def chain(count: int) -> dict:
    """Each leads to the next."""
    defs: dict = {f"n{i}": {"$ref": f"#/$defs/n{i + 1}"} for i in range(count)}
    return {"$defs": defs | {f"n{count}": {"type": "null"}}, "$ref": "#/$defs/n0"}


_NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (deep(5000), "nested too deep"),
        (deep(100), "recursion limit"),
        (product(24), "too large"),
        ({"enum": [f"value {i * 7919:x}" for i in range(100_000)]}, "at most 400000"),
        ({"enum": [f"value {i}" for i in range(1_000_000)]}, "at most 400000 are compiled"),
        ({"properties": {f"p{i}": {} for i in range(5000)}}, "too big"),
        ({"type": "integer", "multipleOf": 999_999_937}, "fuel exhausted"),
        ({"$ref": "#"}, "no answer can follow it"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no answer can follow it"),
    ],
)
def test_what_is_too_much_is_refused_in_a_line(tokenizer, schema, message):
    began = time.perf_counter()
    with pytest.raises(GrammarError, match=message) as error:
        Constraint(tokenizer, constraints.json_schema(schema))
    assert time.perf_counter() - began < _COMPILE
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["x{1000000}", "(?:a{1000}){1000}", "(a?){500}a{500}"])
def test_what_would_be_too_much_once_it_is_begun_is_refused(tokenizer, pattern):
    with pytest.raises(GrammarError, match="too many expressions"):
        Constraint(tokenizer, constraints.regex(pattern))


def slowest_mask(tokenizer, matcher: Matcher, steps: int) -> float:
    """Of a random walk, until nothing may come or the matcher gives up."""
    rng, slowest = Random(0), 0.0
    for _ in range(steps):
        began = time.perf_counter()
        ids = np.flatnonzero(allowed(matcher, tokenizer))
        if matcher.problem or not len(ids):
            return slowest
        matcher.accept(int(rng.choice(list(ids))))
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


@pytest.mark.parametrize(
    "answer",
    [
        constraints.json_schema(forks(60)),
        constraints.json_schema({"$defs": {"n": _NODE}, "$ref": "#/$defs/n"}),
        constraints.json_schema(chain(4000)),
        constraints.lark(
            "start: a0\n" + "\n".join(f'a{i}: "x" a{i + 1}' for i in range(3000)) + '\na3000: "y"'
        ),
        constraints.json_schema({"type": "string", "pattern": "^(a+)+$"}),
        constraints.json_schema({"type": "string", "pattern": "^(a|aa)+b$"}),
        constraints.json_schema({"type": "string", "pattern": "^(.*a){25}.*$"}),
        constraints.json_schema({"type": "string", "minLength": 5, "maxLength": 10**8}),
        constraints.json_schema({"type": "array", "minItems": 10**5, "maxItems": 10**7}),
        constraints.json_schema({"type": "integer", "minimum": 0, "maximum": 10**300}),
        constraints.regex("[bc]{9}(a?){500}a{500}"),
        constraints.regex("((((a{1,99}){1,99}){1,99}){1,99}){1,99}"),
        constraints.regex("(.*[ab]){20}c.{200}"),
        constraints.regex("(a|b)*a(a|b){30}"),
        constraints.lark('start: s\ns: s s | s s s | "a" | '),
    ],
)
def test_what_is_compiled_has_masks_in_time(tokenizer, answer):
    began = time.perf_counter()
    matcher = Constraint(tokenizer, answer, raw=True).matcher()
    assert time.perf_counter() - began < _COMPILE
    assert slowest_mask(tokenizer, matcher, 60) < _MASK
    began = time.perf_counter()
    matcher.hurry(500)
    assert time.perf_counter() - began < _MASK


def test_a_matcher_that_gives_up_says_why(tokenizer):
    matcher = Constraint(tokenizer, constraints.regex("[bc]{9}(a?){500}a{500}"), raw=True).matcher()
    slowest_mask(tokenizer, matcher, 15)
    assert "too many expressions" in matcher.problem and "\n" not in matcher.problem


_XS = '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">{}</xs:schema>'
_CHAIN = '<xs:complexType name="t{0}"><xs:sequence>{2}<xs:element name="e" type="t{1}"/>'
_CHAIN += "</xs:sequence></xs:complexType>"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # Each type holds the next one: more levels than Python has frames.
        (
            '<xs:element name="r" type="t0"/><xs:complexType name="t2000"/>'
            + "".join(_CHAIN.format(i, i + 1, "") for i in range(2000)),
            None,
        ),
        # 2^60 leaves.
        (
            '<xs:element name="r" type="t0"/><xs:complexType name="t60"/>'
            + "".join(
                _CHAIN.format(i, i + 1, f'<xs:element name="f" type="t{i + 1}"/>')
                for i in range(60)
            ),
            None,
        ),
        (
            '<xs:element name="r"><xs:simpleType><xs:restriction base="xs:string">'
            + "".join(f'<xs:enumeration value="v{i}"/>' for i in range(100_000))
            + "</xs:restriction></xs:simpleType></xs:element>",
            "at most 1000000 are compiled",
        ),
        (
            '<xs:element name="r"><xs:complexType><xs:sequence><xs:element name="e" type="xs:int" '
            'minOccurs="1000000" maxOccurs="9999999"/></xs:sequence></xs:complexType></xs:element>',
            None,
        ),
    ],
)
def test_large_xml_schemas_are_bounded_too(tokenizer, body, message):
    began = time.perf_counter()
    if message is None:
        matcher = Constraint(tokenizer, constraints.xml(_XS.format(body)), raw=True).matcher()
        assert slowest_mask(tokenizer, matcher, 30) < _MASK
    else:
        with pytest.raises(GrammarError, match=message):
            Constraint(tokenizer, constraints.xml(_XS.format(body)))
    assert time.perf_counter() - began < 2 * _COMPILE


def test_a_file_that_is_nested_too_deeply_is_said_to_be(tmp_path):
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    asked = argparse.Namespace(regex=None, json_schema=tmp_path / "deep.json")
    with pytest.raises(ValueError, match="nested too deeply"):
        constraint_flags._answer(asked)
