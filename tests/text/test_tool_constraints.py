"""Turns with tools: what may be called and how, read by our parser and by openai-harmony."""

import json
from pathlib import Path

import pytest
from walk import first_refused, random_answer, random_turn

import gptoss_jax
from gptoss_jax.text import constraints, load_tokenizer, o200k_harmony
from gptoss_jax.text.constraints import Constraint, GrammarError
from gptoss_jax.text.harmony import HarmonyParser, ToolFunction, tool_functions

pytestmark = pytest.mark.fast

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = tool_functions(
    [
        {"type": "function", "function": {"name": "get", "parameters": WEATHER, "strict": True}},
        {"type": "function", "name": "get_time", "strict": True},
        {"type": "function", "name": "note-down", "parameters": WEATHER},
    ]
)


@pytest.fixture(scope="module", params=["nano", "o200k"])
def tokenizer(request):
    directory = Path(gptoss_jax.__file__).parent / "nano"
    return load_tokenizer(directory) if request.param == "nano" else o200k_harmony()


THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
JSON = " <|constrain|>json<|message|>"
IN_CHANNEL = "<|channel|>commentary to=functions.{}" + JSON
IN_ROLE = " to=functions.{}<|channel|>commentary" + JSON
CITY = '{"city": "Ulm","unit":"celsius"}<|call|>'


@pytest.mark.parametrize(
    "turn",
    [
        IN_CHANNEL.format("get") + CITY,
        THOUGHT + IN_ROLE.format("get") + CITY,
        THOUGHT + PREAMBLE + IN_CHANNEL.format("get") + CITY,
        PREAMBLE + THOUGHT + "<|channel|>commentary to=functions.get<|message|>" + CITY,
        IN_CHANNEL.format("get_time") + "{}<|call|>",
        IN_ROLE.format("get_time") + "{}<|call|>",
        IN_CHANNEL.format("note-down") + '{"what":[1,{"x":null}]}<|call|>',
        THOUGHT + "<|channel|>final<|message|>It is {warm}.\nVery.<|return|>",
    ],
)
def test_what_may_come(tokenizer, turn):
    assert first_refused(tokenizer, Constraint(tokenizer, None, tools=TOOLS), turn) is None


@pytest.mark.parametrize(
    "turn",
    [
        IN_CHANNEL.format("other") + CITY,
        IN_CHANNEL.format("get_tim") + CITY,
        IN_CHANNEL.format("get") + '{"unit":"celsius"}<|call|>',
        IN_CHANNEL.format("get") + '{"city":"Ulm"}<|return|>',
        IN_CHANNEL.format("get") + '{"city":"Ulm"}<|end|>',
        IN_CHANNEL.format("get_time") + '{"x":1}<|call|>',
        IN_CHANNEL.format("note-down") + "[1]<|call|>",
        THOUGHT + "<|channel|>analysis to=functions.get" + JSON + CITY,
        "<|channel|>final<|message|>It is.<|call|>",
        PREAMBLE + "<|return|>",
    ],
)
def test_what_may_not(tokenizer, turn):
    assert first_refused(tokenizer, Constraint(tokenizer, None, tools=TOOLS), turn) is not None


def test_an_answer_is_constrained_beside_tools(tokenizer):
    answer = constraints.json_schema({"type": "array", "items": {"type": "integer"}})
    constraint = Constraint(tokenizer, answer, tools=TOOLS)
    final = THOUGHT + "<|channel|>final<|message|>"
    assert first_refused(tokenizer, constraint, final + "[1, 2]<|return|>") is None
    assert first_refused(tokenizer, constraint, final + "[1, x]<|return|>") is not None
    assert first_refused(tokenizer, constraint, IN_ROLE.format("get") + CITY) is None


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (ToolFunction("f", parameters={"type": "nope"}, strict=True), "tool f: .*nope"),
        (ToolFunction('f" | "x'), "its name may have letters"),
    ],
)
def test_a_tool_that_cannot_be_compiled_is_named_in_a_line(tokenizer, tool, message):
    with pytest.raises(GrammarError, match=message) as error:
        Constraint(tokenizer, None, tools=[tool])
    assert "\n" not in str(error.value)


def test_calls_of_random_walks_are_read_back(oracle):
    """Whatever a call's header was, both parsers find the function and arguments that are valid."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs the oracle extra")
    from openai_harmony import Role  # noqa: PLC0415 - of the oracle extra

    tokenizer = o200k_harmony()
    constraint = Constraint(tokenizer, None, tools=TOOLS[:2])
    seen = set()
    for seed in range(12):
        begin = IN_CHANNEL if seed % 2 else IN_ROLE
        name = TOOLS[seed // 2 % 2].name
        ids = random_turn(tokenizer, constraint, seed, begin.format(name))
        assert ids is not None
        (ours,) = HarmonyParser(tokenizer).parse(ids)
        (theirs,) = oracle.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
        assert ours.is_tool_call and ours.recipient == theirs.recipient == f"functions.{name}"
        assert ours.content == theirs.content[0].text and not ours.flagged
        assert ours.channel == theirs.channel == "commentary"
        schema = WEATHER if name == "get" else {"type": "object", "maxProperties": 0}
        jsonschema.validate(json.loads(ours.content), schema)
        seen.add(name)
    assert seen == {"get", "get_time"}


def test_walks_of_a_schema_are_valid(tokenizer):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the oracle extra")
    ended = [random_answer(tokenizer, constraints.json_schema(WEATHER), seed) for seed in range(8)]
    for text in filter(None, ended):
        jsonschema.validate(json.loads(text), WEATHER)
    assert sum(text is not None for text in ended) >= 6
