"""What nano says under constraints, read by others."""

import itertools
import json
from pathlib import Path
from random import Random

import pytest

import gptoss_jax
from gptoss_jax.inference.completion import render_chat
from gptoss_jax.inference.engine import engine_for
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.turns import turns
from gptoss_jax.text import constraints
from gptoss_jax.text.constraints import Constraint
from gptoss_jax.text.harmony import ToolFunction, from_chat, render_conversation
from gptoss_jax.training.tasks.calculator import calculator


@pytest.fixture(scope="module")
def nano():
    return gptoss_jax.load("nano", dtype="float32")


def test_xml_of_nano_is_valid(nano):
    xmlschema = pytest.importorskip("xmlschema", reason="needs the oracle extra")
    model, tokenizer = nano
    schema = (Path(__file__).parents[1] / "text" / "order.xsd").read_text()
    engine = engine_for(model, tokenizer, 8, max_tokens=640)
    constraint = Constraint(tokenizer, constraints.xml(schema))
    prompt = render_chat(tokenizer, [{"role": "user", "content": "Order a bolt for Kim."}])
    asked = [
        Request(prompt, 512, temperature=1.0, seed=seed, constraint=constraint) for seed in range(8)
    ]
    validator = xmlschema.XMLSchema(schema)
    for turn in turns(engine, tokenizer, asked):
        assert len(turn.tokens) <= 512 and turn.tokens[-1] in tokenizer.stop_ids
        validator.validate(turn.text)
        # It never ends by itself where items may go on, and nobody is told that it did.
        assert turn.finish_reason in ("stop", "length")


def test_a_constraint_that_gives_up_ends_its_request_alone(nano):
    model, tokenizer = nano
    engine = engine_for(model, tokenizer, 2, max_tokens=256)
    hostile = Constraint(tokenizer, constraints.regex("[bc]{9}(a?){500}a{500}"), raw=True)
    friendly = Constraint(tokenizer, constraints.regex("[ab]{30}"), raw=True)
    asked = [Request([5], 60, constraint=constraint) for constraint in (hostile, friendly)]
    given_up, other = turns(engine, tokenizer, asked)
    assert given_up.finish_reason == "error" and len(given_up.tokens) < 60
    assert set(tokenizer.decode(given_up.tokens)) <= set("abc")
    assert other.finish_reason == "stop" and len(tokenizer.decode(other.tokens[:-1])) == 30


CALCULATOR = {
    "type": "object",
    "properties": {"expression": {"type": "string", "maxLength": 24}},
    "required": ["expression"],
    "additionalProperties": False,
}


def test_nano_calls_its_tool_and_no_other(nano):
    """Free, it calls `calculator`; the constraint has it call what is declared, as is declared."""
    model, tokenizer = nano
    engine = engine_for(model, tokenizer, 8, max_tokens=640)
    wanted = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}}
    wanted |= {"required": ["n"], "additionalProperties": False}
    tools = {
        "calculator": ToolFunction("calculator", "Calculates.", CALCULATOR, strict=True),
        "lookup": ToolFunction("lookup", "Looks up.", wanted, strict=True),
    }
    rng = Random(3)
    problems = [calculator(rng, "medium") for _ in range(4)]
    asked = []
    # The other function is none it knows: drawn, it calls that now and then.
    for tool, temperature, seeds in ((tools["calculator"], 0.0, 1), (tools["lookup"], 1.0, 8)):
        # The prompt shows the calculator whatever may be called.
        constraint = Constraint(tokenizer, None, tools=[tool])
        for problem, seed in itertools.product(problems, range(seeds)):
            messages = from_chat(problem.messages, tools=[tools["calculator"]])
            prompt = render_conversation(tokenizer, messages)
            request = Request(
                prompt, 200, temperature=temperature, seed=seed, constraint=constraint
            )
            asked.append(request)
    made = list(turns(engine, tokenizer, asked))
    for problem, turn in zip(problems, made[: len(problems)], strict=True):
        assert turn.finish_reason == "tool_calls", turn
        assert called(turn) == ("functions.calculator", {"expression": problem.call})
    # An answer without a call is allowed, too.
    others = [called(turn) for turn in made[len(problems) :] if turn.finish_reason == "tool_calls"]
    assert others
    for name, arguments in others:
        assert name == "functions.lookup" and list(arguments) == ["n"] and arguments["n"] <= 99


def called(turn) -> tuple[str, dict]:
    call = turn.messages[-1]
    assert call["channel"] == "commentary"
    return call["recipient"], json.loads(call["content"])


@pytest.mark.fast
def test_masks_are_made_while_the_device_works(nano, monkeypatch):
    """Each is begun behind the program that needs it not, and ahead of the one that does."""
    model, tokenizer = nano
    engine = engine_for(model, tokenizer, 2, max_tokens=128)
    runner, told = engine._runner, []
    start, fill = runner._start, constraints.fill_masks

    def started(name, arguments):
        told.append(name)
        return start(name, arguments)

    def filled(*arguments):
        told.append("masks")
        fill(*arguments)

    monkeypatch.setattr(runner, "_start", started)
    monkeypatch.setattr(constraints, "fill_masks", filled)
    constraint = Constraint(tokenizer, constraints.regex("[ab]{5}"), raw=True)
    list(turns(engine, tokenizer, [Request([5], 60, constraint=constraint)]))
    assert told == ["forward", "masks", "choose"] * 6  # and the end of the turn
    assert engine.timings.calls == 6
