"""Answers that run out of tokens are brought to an end that is legal."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from walk import allowed

import gptoss_jax
from gptoss_jax.text import constraints, load_tokenizer, o200k_harmony
from gptoss_jax.text.constraints import Constraint
from gptoss_jax.text.harmony import HarmonyParser

pytestmark = pytest.mark.fast

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "size": {"type": "number"},
        "kind": {"enum": ["large", "small"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "inner": {"$ref": "#"},
    },
    "required": ["name", "born", "size", "kind", "tags"],
}
ORDER = (Path(__file__).parent / "order.xsd").read_text()


@pytest.fixture(scope="module", params=["nano", "o200k"])
def tokenizer(request):
    directory = Path(gptoss_jax.__file__).parent / "nano"
    return load_tokenizer(directory) if request.param == "nano" else o200k_harmony()


def hurried_turn(tokenizer, answer: str, seed: int, most: int) -> list[int]:
    """A walk that may have `most` tokens and is told how many are left."""
    rng = Random(seed)
    matcher = Constraint(tokenizer, answer).matcher()
    ids: list[int] = []
    while len(ids) < most:
        ids.append(int(rng.choice(list(np.flatnonzero(allowed(matcher, tokenizer))))))
        if ids[-1] in tokenizer.stop_ids:
            return ids
        matcher.accept(ids[-1])
        matcher.hurry(most - len(ids))
    return ids


@pytest.mark.parametrize("seed", range(6))
def test_json_ends_in_time(tokenizer, seed):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the oracle extra")
    ids = hurried_turn(tokenizer, constraints.json_schema(SCHEMA), seed, 180)
    assert ids[-1] == tokenizer.token_id("<|return|>")
    message = HarmonyParser(tokenizer).parse(ids)[-1]
    assert message.channel == "final"
    jsonschema.validate(json.loads(message.content), SCHEMA)


@pytest.mark.parametrize("seed", range(6))
def test_xml_ends_in_time(tokenizer, seed):
    xmlschema = pytest.importorskip("xmlschema", reason="needs the oracle extra")
    ids = hurried_turn(tokenizer, constraints.xml(ORDER), seed, 420)
    assert ids[-1] == tokenizer.token_id("<|return|>")
    xmlschema.XMLSchema(ORDER).validate(HarmonyParser(tokenizer).parse(ids)[-1].content)


_REPEATED = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="r">
<xs:complexType><xs:sequence><xs:element name="a" type="xs:string" maxOccurs="unbounded"/>
<xs:element name="d" type="xs:date"/></xs:sequence></xs:complexType></xs:element></xs:schema>"""


@pytest.mark.parametrize(
    "answer",
    [
        constraints.xml(_REPEATED),
        constraints.regex("[a-z]{5,}!"),
        constraints.lark('start: "(" start ")" | "x"'),
    ],
    ids=["xml", "regex", "lark"],
)
def test_what_may_go_on_and_on_ends_in_time(tokenizer, answer):
    """What closes nothing, or opens one more, may come again and again."""
    for seed in range(4):
        assert hurried_turn(tokenizer, answer, seed, 300)[-1] in tokenizer.stop_ids


def test_nothing_changes_while_there_is_time(tokenizer):
    constraint = Constraint(tokenizer, constraints.json_schema(SCHEMA))
    told, untold = constraint.matcher(), constraint.matcher()
    for matcher in (told, untold):
        matcher.accept(tokenizer.token_id("<|channel|>"))
    told.hurry(400)
    assert not told.hurried
    assert (allowed(told, tokenizer) == allowed(untold, tokenizer)).all()


def test_an_ending_that_does_not_fit_is_not_begun(tokenizer):
    matcher = Constraint(tokenizer, constraints.json_schema(SCHEMA)).matcher()
    matcher.hurry(12)
    assert not matcher.hurried and not matcher.problem
    assert allowed(matcher, tokenizer).any()
