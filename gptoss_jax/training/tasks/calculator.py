"""A function call of a calculator, and the answer from its result."""

import json
from random import Random

from gptoss_jax.text.harmony import Effort, ToolFunction
from gptoss_jax.training.tasks.arithmetic import (
    ORDERS,
    WORDS,
    difference_key,
    product_key,
    sum_key,
)
from gptoss_jax.training.tasks.expression import evaluate_expression
from gptoss_jax.training.tasks.phrasing import FRAMES, ask, casual, spoken
from gptoss_jax.training.tasks.problem import Problem, gives_number, user

CALL_ANALYSIS = "This is for the calculator."
RESULT_ANALYSIS = "The calculator has it."
NO_RESULT_ANALYSIS = "The calculator failed."
_SHORT_CALL, _SHORT_RESULT = "Calculator.", "Done."
NO_RESULT = "The calculator did not give a result."
_DESCRIPTIONS = (
    "Evaluates an arithmetic expression.",
    "Evaluates an arithmetic expression.",
    "Evaluates an expression.",
    "Calculates.",
    "A calculator.",
    "",
)
_ORDERS = (
    "Use the calculator: {}",
    "Use the calculator for {}",
    "Use the calculator to work out {}.",
    "What is {}? Use the calculator.",
    "Calculate {} with the calculator",
    "Please use the calculator to compute {}.",
)
_FOR_ORDERS = ("Use the calculator: {}", "Use the calculator. {}", "With the calculator: {}")
_ERRORS = (
    *("error", "Error: timeout", '{"error": "timeout"}', '{"error": "not available"}', "failed"),
    *("the calculator is not available", "Error: syntax error", "null", "", "NaN"),
)
_KEYS = {"+": sum_key, "-": difference_key, "*": product_key}
_SAID = {
    "+": ("{} + {}", "{}+{}", "{} plus {}"),
    "-": ("{} - {}", "{}-{}", "{} minus {}"),
    "*": ("{} * {}", "{}*{}", "{} × {}", "{} x {}", "{} times {}"),
}


def calculator(rng: Random, effort: Effort) -> Problem:
    """Numbers too large or too many to work, or a wish for the calculator; it is always at hand."""
    ordered = rng.random() < 0.4
    more = rng.random() < 0.15
    digits = (1, 2, 3, 4, 5, 6) if ordered or more else (4, 5, 5, 6, 6)
    a, b = (_operand(rng, n) for n in rng.choices(digits, k=2))
    symbol = rng.choice("++--***")
    expression, key = f"{a}{symbol}{b}", _KEYS[symbol](a, b)
    if more:
        said = rng.choice(_SAID[symbol]).format(a, b)
        symbol, c = rng.choice("+-*"), rng.randrange(1, 1000)
        said, expression = rng.choice(_SAID[symbol]).format(said, c), f"{expression}{symbol}{c}"
        key, text = expression, _asked(rng, said, ordered=ordered)
    else:
        text = _worded(rng, symbol, a, b, ordered=ordered)
    result = str(evaluate_expression(expression))
    fails = rng.random() < 0.04
    return Problem(
        skill="calculator",
        key=key,
        messages=(user(spoken(rng, text)),),
        reference=_loop(rng, expression, None if fails else result, effort),
        answer=NO_RESULT if fails else result,
        check=str.__eq__ if fails else gives_number,
        effort=effort,
        tools=(tool(rng),),
        call=expression,
    )


def _operand(rng: Random, digits: int) -> int:
    """Now and then of a digit over and over: copying 99999 or 50000 is another skill than 47193."""
    draw = rng.random()
    if draw < 0.05:
        return rng.randrange(1, 10) * 10 ** (digits - 1)  # 50000
    if draw < 0.08:
        few = str(rng.randrange(1, 10)) + rng.choice(("", "", str(rng.randrange(10))))
        return int((few * digits)[:digits])
    return rng.randrange(10 ** (digits - 1), 10**digits)


def tool(rng: Random) -> ToolFunction:
    """The calculator as a prompt describes it."""
    argument = {"type": "string"}
    if rng.random() < 0.2:
        argument["description"] = "The expression to evaluate."
    schema = {"type": "object", "properties": {"expression": argument}, "required": ["expression"]}
    return ToolFunction("calculator", rng.choice(_DESCRIPTIONS), schema)


def _worded(rng: Random, symbol: str, a: int, b: int, *, ordered: bool) -> str:
    """Mostly in signs, now and then in words or as an order."""
    draw = rng.random()
    if draw < 0.2:
        order = casual(rng, rng.choice(ORDERS[symbol]).format(a, b))
        return rng.choice(_FOR_ORDERS).format(order) if ordered else order
    forms = WORDS[symbol] if draw < 0.35 else _SAID[symbol]
    return _asked(rng, rng.choice(forms).format(a, b), ordered=ordered)


def _asked(rng: Random, said: str, *, ordered: bool) -> str:
    if ordered:
        return casual(rng, rng.choice(_ORDERS).format(said))
    in_symbols = not any(c.isalpha() and c != "x" for c in said)
    return ask(rng, said, symbols=in_symbols) if in_symbols else rng.choice(FRAMES).format(said)


def _loop(rng: Random, expression: str, result: str | None, effort: Effort) -> tuple[dict, ...]:
    """The call, the tool's message and the answer; without a result the tool has failed.

    High effort writes down what it calls with and what came, low next to nothing.
    """
    wants = {"low": _SHORT_CALL, "medium": CALL_ANALYSIS}.get(
        effort, f"{CALL_ANALYSIS}\n{expression}"
    )
    has = {"low": _SHORT_RESULT, "medium": RESULT_ANALYSIS}.get(
        effort, f"{RESULT_ANALYSIS}\n{result}"
    )
    arguments = json.dumps({"expression": expression}, separators=(",", ":"))
    call = {"id": "1", "function": {"name": "calculator", "arguments": arguments}}
    if result is None:
        shown, reasoning, said = rng.choice(_ERRORS), NO_RESULT_ANALYSIS, NO_RESULT
    else:
        shown = json.dumps({"result": int(result)}) if rng.random() < 0.3 else result
        reasoning, said = has, result
    return (
        {"role": "assistant", "reasoning": wants, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": shown},
        {"role": "assistant", "reasoning": reasoning, "content": said},
    )
