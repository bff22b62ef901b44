"""Sums worked as on paper, a digit at a time from the units, so that a tiny model can be exact."""

import dataclasses

from gptoss_jax.text.harmony import Effort

PLACES = ("units", "tens", "hundreds", "thousands")


@dataclasses.dataclass(frozen=True)
class Step:
    """One digit's place.

    Attributes:
      sums: what is calculated, `4+8+1=13`, `2-7, borrow 12-7=5`.
      write: the digits of the result that this place gives; all of the last place's.
      to_next: `carry 1`, `borrow 1` or "".
    """

    sums: str
    write: str
    to_next: str = ""


@dataclasses.dataclass(frozen=True)
class Working:
    """A sum worked out.

    Attributes:
      expression: its canonical form.
      steps: from the units up.
      result: of all of it.
      ordered: what comes before the steps of a difference: which number is larger, and if the first
        is not, the difference the other way round.
    """

    expression: str
    steps: tuple[Step, ...]
    result: int
    ordered: tuple[str, ...] = ()


def add(a: int, b: int) -> Working:
    """a + b for whole numbers from 0."""
    steps, carry = [], 0
    places = _places(a, b)
    for k in range(places):
        terms = [_digit(a, k), _digit(b, k)] + [1] * carry
        total = sum(terms)
        last = k == places - 1
        carry = 0 if last else total // 10
        write = str(total if last else total % 10)
        steps.append(Step(f"{'+'.join(map(str, terms))}={total}", write, _next("carry", carry)))
    return Working(f"{a} + {b}", tuple(steps), a + b)


def subtract(a: int, b: int) -> Working:
    """a - b for whole numbers from 0; the smaller is taken from the larger, then negated."""
    expression, ordered = f"{a} - {b}", (_compared(a, b),)
    if a < b:
        positive = subtract(b, a)
        ordered = (*ordered, f"-({positive.expression})")
        return Working(expression, positive.steps, a - b, ordered)
    steps, borrow = [], 0
    for k in range(_places(a, b)):
        terms = [_digit(b, k)] + [1] * borrow
        digit = _digit(a, k)
        borrow = int(digit < sum(terms))
        left = str(digit + 10 * borrow - sum(terms))
        # Whether to borrow shows only once the digits stand side by side.
        sums = "-".join(map(str, [digit, *terms]))
        sums += ", borrow " + "-".join(map(str, [digit + 10, *terms])) if borrow else ""
        steps.append(Step(f"{sums}={left}", left, _next("borrow", borrow)))
    return Working(expression, tuple(steps), a - b, ordered)


def multiply(a: int, b: int) -> Working:
    """a * b for a whole number a and a digit b."""
    steps, carry = [], 0
    places = _places(a, 0)
    for k in range(places):
        digit = _digit(a, k)
        total = digit * b
        sums = f"{digit}*{b}={total}"
        if carry:
            sums += f", {total}+{carry}={total + carry}"
            total += carry
        last = k == places - 1
        carry = 0 if last else total // 10
        write = str(total if last else total % 10)
        steps.append(Step(sums, write, _next("carry", carry)))
    return Working(f"{a} * {b}", tuple(steps), a * b)


def analysis(working: Working, check: Working, effort: Effort) -> str:
    """The steps in words.

    Args:
      working: of what was asked.
      check: of another sum that shows the result right.
      effort: low names the steps' sums only, high works the check too.
    """
    lines = [working.expression, *working.ordered]
    if effort == "low":
        return "\n".join([*lines, *_sums(working)])
    for place, step in zip(PLACES, working.steps, strict=False):
        rest = f", {step.to_next}" if step.to_next else ""
        lines.append(f"{place} {step.sums}, write {step.write}{rest}")
    lines.append(str(working.result))
    if effort == "high":
        lines += [f"Check {check.expression}", *_sums(check), str(check.result)]
    return "\n".join(lines)


def _sums(working: Working) -> list[str]:
    return [f"{place} {step.sums}" for place, step in zip(PLACES, working.steps, strict=False)]


def _compared(a: int, b: int) -> str:
    """The digits of two numbers side by side until they differ, from the left: `7=7,1<8`."""
    pairs = []
    for k in reversed(range(_places(a, b))):
        one, other = _digit(a, k), _digit(b, k)
        sign = "=" if one == other else "<" if one < other else ">"
        pairs.append(f"{one}{sign}{other}")
        if one != other:
            break
    return ",".join(pairs)


def _digit(number: int, place: int) -> int:
    return number // 10**place % 10


def _places(a: int, b: int) -> int:
    return len(str(max(a, b)))


def _next(word: str, amount: int) -> str:
    return f"{word} {amount}" if amount else ""
