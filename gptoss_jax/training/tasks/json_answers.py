"""Facts in a sentence as JSON to a given schema."""

import dataclasses
import json
from collections.abc import Mapping
from random import Random
from typing import Any

from gptoss_jax.text.harmony import Effort, ResponseFormat
from gptoss_jax.training.tasks.problem import Problem, answered, gives_json, user
from gptoss_jax.training.tasks.vocabulary import CITIES, NAMES, NOUNS, OTHERS, pronounceable

ANALYSIS = "Fill in the JSON."
Facts = dict[str, tuple[str, Any]]

_STRINGS = (
    *("name", "city", "color", "title", "kind", "owner", "brand", "size", "shape", "team"),
    *("first_name", "last_name", "street", "address", "country", "language", "status"),
)
_INTEGERS = (
    *("age", "price", "count", "year", "weight", "floor", "score", "pages", "seats", "id"),
    *("zip_code", "room_number", "height", "quantity"),
)
_NUMBERS = ("price", "weight", "height", "rate", "total", "length", "size", "temperature")
_BOOLEANS = (
    *("active", "open", "new", "member", "paid", "ready", "sold", "public", "married", "ok"),
    *("in_stock", "on_sale", "has_car"),
)
_STATED = ("{} is {}", "{} is {}", "the {} is {}", "{}: {}", "{} = {}")
_ENDS = (".", "")
_BEFORE = (
    *("", "", "", "Facts: ", "Here is the data: ", "Write this as JSON: ", "Extract: "),
    *("Give me JSON: ", "As JSON: ", "Fill in: "),
)
_TRUTHS, _YES_OR_NO = ("false", "true"), ("no", "yes")
_KINDS = (*(("integer", "string", "string", "boolean") * 3), "number")
_SCHEMA_NAMES = ("answer", "person", "item", "record", "response", "output")


def json_answer(rng: Random, effort: Effort) -> Problem:
    """Two to four facts, said in an order of their own, for an object of integers and so on."""
    facts, said = _person(rng) if rng.random() < 0.35 else _record(rng)
    return _problem(rng, effort, facts, said)


def _problem(rng: Random, effort: Effort, facts: Facts, said: str) -> Problem:
    schema = _schema(rng, facts)
    value = {name: fact for name, (_, fact) in facts.items()}
    answer = json.dumps(value, separators=(",", ":"))
    name = rng.choice(_SCHEMA_NAMES)
    return Problem(
        skill="json",
        key=f"json {sorted(value.items())}",
        messages=(user(rng.choice(_BEFORE) + said),),
        reference=answered(_analysis(effort, value), answer),
        answer=answer,
        check=gives_json,
        effort=effort,
        response_formats=(ResponseFormat(name, schema),),
    )


def _analysis(effort: Effort, value: Mapping[str, object]) -> str:
    """Low effort names the task, high the members as well."""
    said = {"low": "JSON.", "medium": ANALYSIS}
    return said.get(effort, f"{ANALYSIS}\nCheck: {', '.join(value)}")


def members(rng: Random, effort: Effort) -> Problem:
    """Someone who is or is not a member, and little else. For training alone."""
    while True:
        drawn = json_answer(rng, effort)
        if "member" in json.loads(drawn.answer) and "name" in json.loads(drawn.answer):
            return dataclasses.replace(drawn, skill="members")


def truths(rng: Random, effort: Effort) -> Problem:
    """Several truth values, which are told apart by their names alone. For training alone."""
    facts, said = _record(rng, ("boolean",), 5)
    return dataclasses.replace(_problem(rng, effort, facts, said), skill="truths")


def _record(rng: Random, kinds: tuple[str, ...] = _KINDS, most: int = 4) -> tuple[Facts, str]:
    """Any names with any values, plainly stated."""
    names: set[str] = set()
    facts: Facts = {}
    for _ in range(rng.randint(2, most)):
        kind = rng.choice(kinds)
        name = _name(rng, kind)
        if name not in names:
            names.add(name)
            facts[name] = (kind, _value(rng, kind))
    if len(facts) < 2:
        return _record(rng, kinds, most)
    form, spaced = rng.choice(_STATED), rng.random() < 0.5
    said = {name: name.replace("_", " ") if spaced else name for name in facts}
    truths = rng.choice((_TRUTHS, _TRUTHS, _TRUTHS, _YES_OR_NO))
    spoken = {
        name: truths[fact] if isinstance(fact, bool) else fact for name, (_, fact) in facts.items()
    }
    stated = [form.format(said[name], spoken[name]) for name in facts]
    rng.shuffle(stated)
    return facts, _sentence(rng, stated)


def _person(rng: Random) -> tuple[Facts, str]:
    """Someone in a sentence."""
    name, age, city = rng.choice(NAMES), rng.randint(1, 99), rng.choice(CITIES)
    pets, member = rng.randint(0, 9), rng.random() < 0.5
    clauses = {
        "age": ("integer", age, f"is {age}{rng.choice((' years old', ' years old', ''))}"),
        "city": ("string", city, f"{rng.choice(('lives in', 'lives in', 'is from'))} {city}"),
        "pets": ("integer", pets, f"has {pets} pets"),
        "member": ("boolean", member, "is a member" if member else "is not a member"),
    }
    chosen = rng.sample(list(clauses), rng.randint(1, 3))
    said = _sentence(rng, [clauses[key][2] for key in chosen])
    facts: Facts = {"name": ("string", name)}
    facts |= {key: clauses[key][:2] for key in chosen}
    order = rng.sample(list(facts), len(facts))
    return {key: facts[key] for key in order}, f"{name} {said}"


def _schema(rng: Random, facts: Facts) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {"type": kind} for name, (kind, _) in facts.items()},
    }
    if rng.random() < 0.8:
        schema["required"] = list(facts)
    if rng.random() < 0.4:
        schema["additionalProperties"] = False
    return schema


def _name(rng: Random, kind: str) -> str:
    known = {
        "string": _STRINGS,
        "integer": _INTEGERS,
        "number": _NUMBERS,
        "boolean": _BOOLEANS,
    }[kind]
    draw = rng.random()
    if draw < 0.08:
        return f"{rng.choice(NOUNS)}_{rng.choice(NOUNS)}"
    return rng.choice(known) if draw < 0.7 else rng.choice(NOUNS)


def _value(rng: Random, kind: str) -> Any:
    if kind == "integer":
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "number":
        return round(rng.randrange(10 ** rng.randint(2, 4)) / rng.choice((10, 100)) + 0.01, 2)
    words = (rng.choice(NOUNS), rng.choice(OTHERS), pronounceable(rng, rng.randint(3, 7)))
    draw = rng.random()
    if draw < 0.1:
        return f"{rng.choice(OTHERS)} {rng.choice(NOUNS)}"
    if draw < 0.15:
        return f"{rng.choice(NAMES)} {pronounceable(rng, rng.randint(3, 7)).capitalize()}"
    if draw < 0.2:
        return f"{rng.randint(1, 99)} {rng.choice(NOUNS).capitalize()} Street"
    return rng.choice((rng.choice(words), rng.choice(NAMES), rng.choice(CITIES)))


def _sentence(rng: Random, stated: list[str]) -> str:
    if len(stated) == 1:
        return stated[0] + rng.choice(_ENDS)
    joint = rng.choice((" and ", ", "))
    return f"{', '.join(stated[:-1])}{joint}{stated[-1]}{rng.choice(_ENDS)}"
