"""Sums and differences to 4 digits, products of 2 by 1 digits."""

import dataclasses
from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks import working
from gptoss_jax.training.tasks.phrasing import ask, casual, spoken
from gptoss_jax.training.tasks.problem import Problem, answered, gives_number, user
from gptoss_jax.training.tasks.working import Working

_DIGITS = (1, 2, 2, 3, 3, 3, 3, 4, 4, 4)
_NEGATIVE_DIGITS = (1, 2, 2, 3, 3, 4, 4, 4)
_SUMS = ("{} + {}", "{} + {}", "{} + {}", "{}+{}")
_SUM_WORDS = (
    *("{} plus {}", "{} plus {}", "{} plus {}", "the sum of {} and {}", "{} added to {}"),
    *("the total of {} and {}", "{} and {} together", "{} more than {}"),
)
_SUM_ORDERS = (
    *("Add {} and {}", "Add {} and {}", "Add {} to {}", "Add {} + {}", "Please add {} and {}."),
    *("Sum {} and {}", "Sum of {} and {}", "The sum of {} and {}", "Add up {} and {}"),
    *("Add the numbers {} and {}", "What do you get if you add {} and {}?", "Add {} plus {}"),
    *("What do {} and {} make?", "Can you add {} and {}?", "Increase {} by {}"),
    *("What is {} increased by {}?",),
)
_DIFFERENCES = ("{} - {}", "{} - {}", "{} - {}", "{}-{}", "{} − {}", "{} – {}")
_DIFFERENCE_WORDS = (
    *("{} minus {}", "{} minus {}", "{} minus {}", "{} take away {}", "{} less {}"),
    *("{1} less than {0}", "{1} subtracted from {0}"),
)
_DIFFERENCE_ORDERS = (
    *("Subtract {1} from {0}", "Subtract {1} from {0}", "Take {1} from {0}", "Deduct {1} from {0}"),
    *("Take {1} away from {0}", "What is left if you take {1} from {0}?"),
    *("What is left of {0} after taking {1}?", "What is left of {0} if you take away {1}?"),
    *("What do you get if you subtract {1} from {0}?", "Can you subtract {1} from {0}?"),
    *("Decrease {0} by {1}", "What is {0} decreased by {1}?", "Reduce {0} by {1}"),
)
# Of a negative one people do not agree what it is.
_DIFFERENCE_NAMES = ("the difference between {} and {}", "the difference of {} and {}")
_HOW_MUCH_MORE = (
    *("How much more is {0} than {1}?", "How much less is {1} than {0}?"),
    *("How much larger is {0} than {1}?", "How many more is {0} than {1}?"),
)
_PRODUCTS = ("{} × {}", "{} x {}", "{} * {}", "{}*{}", "{}x{}", "{}×{}", "{} · {}")
_PRODUCT_WORDS = ("{} times {}", "{} times {}", "{} multiplied by {}", "the product of {} and {}")
_PRODUCT_ORDERS = (
    *("Multiply {} by {}", "Multiply {} by {}", "Multiply {} and {}", "Product of {} and {}"),
    *("Please multiply {} by {}.", "What do you get if you multiply {} by {}?"),
)
# By sign, for whoever else asks for sums in words.
WORDS = {"+": _SUM_WORDS, "-": _DIFFERENCE_WORDS, "*": _PRODUCT_WORDS}
ORDERS = {"+": _SUM_ORDERS, "-": _DIFFERENCE_ORDERS, "*": _PRODUCT_ORDERS}
_TWICE_WORDS = ("twice {}", "twice {}", "the double of {}", "two times the number {}")
_TWICE_ORDERS = ("Double the number {}", "Double the number {}", "Please double the number {}.")


def addition(rng: Random, effort: Effort, digits: tuple[int, ...] = _DIGITS) -> Problem:
    """A sum.

    Args:
      rng: draws all of it.
      effort: of the analysis.
      digits: lengths of numbers, drawn from.
    """
    return _sum(rng, "addition", _number(rng, digits), _number(rng, digits), effort)


def three_digit_addition(rng: Random, effort: Effort) -> Problem:
    """A sum of two three-digit numbers, which is held to more than the rest."""
    return addition(rng, effort, (3,))


def alike(rng: Random, effort: Effort) -> Problem:
    """A sum of numbers that begin alike: one is easily copied for the other. For training alone."""
    digits = rng.choice((3, 3, 3, 4))
    a = _number(rng, (digits,))
    end = 10 ** rng.randint(1, digits - 1)
    made = _sum(rng, "alike", a, a - a % end + rng.randrange(end), effort)
    if rng.random() > 0.15:
        return made
    (asked,) = made.messages
    return dataclasses.replace(made, messages=(user(asked["content"].upper()),))


def subtraction(rng: Random, effort: Effort) -> Problem:
    """A difference; one in three is negative."""
    negative = rng.random() < 0.33
    digits = _NEGATIVE_DIGITS if negative else _DIGITS
    b, a = sorted((_number(rng, digits), _number(rng, digits)))
    if rng.random() < 0.08:
        b = max(0, a - rng.randrange(12))  # most digits of the result are zeros to drop
    words = _DIFFERENCE_WORDS + _DIFFERENCE_NAMES
    orders = _DIFFERENCE_ORDERS + _HOW_MUCH_MORE
    if negative:
        a, b, words, orders = b, a, _DIFFERENCE_WORDS, _DIFFERENCE_ORDERS
    text = _phrase(rng, a, b, _DIFFERENCES, words, orders)
    low, high = sorted((a, b))
    check = working.add(high - low, low)
    worked = working.subtract(a, b)
    return _problem("subtraction", difference_key(a, b), text, worked, check, effort)


def product(rng: Random, effort: Effort) -> Problem:
    """A product, the single digit on either side."""
    a, b = _number(rng, (1, 2, 2, 2, 2)), rng.randrange(10)
    shown = (a, b) if rng.random() < 0.6 else (b, a)
    text = _phrase(rng, *shown, _PRODUCTS, _PRODUCT_WORDS, _PRODUCT_ORDERS)
    again = working.multiply(a, b)
    return _problem("product", product_key(a, b), text, again, again, effort)


def twice(rng: Random, effort: Effort) -> Problem:
    """A number doubled, worked as a sum. nano is not taught it: an example for a fine-tune."""
    a = _number(rng, _DIGITS)
    if rng.random() < 0.6:
        text = ask(rng, rng.choice(_TWICE_WORDS).format(a), symbols=False)
    else:
        text = casual(rng, rng.choice(_TWICE_ORDERS).format(a))
    check = working.subtract(2 * a, a)
    return _problem("twice", sum_key(a, a), text, working.add(a, a), check, effort)


def sum_key(a: int, b: int) -> str:
    """One key for a + b, b + a, and the differences that undo them (which the check works).

    Empty for what stands in the steps of other sums and products: that is in training anyway.
    """
    low, high = sorted((a, b))
    return "" if low < 10 and high < 100 else f"{low}+{high}"


def difference_key(a: int, b: int) -> str:
    """The key of a - b and b - a: that of the sum they undo."""
    low, high = sorted((a, b))
    return sum_key(low, high - low)


def product_key(a: int, b: int) -> str:
    """One key for a * b and b * a; empty for the tables."""
    low, high = sorted((a, b))
    return "" if high < 10 else f"{high}*{low}"


def _sum(rng: Random, skill: str, a: int, b: int, effort: Effort) -> Problem:
    text = _phrase(rng, a, b, _SUMS, _SUM_WORDS, _SUM_ORDERS)
    check = working.subtract(a + b, b)
    return _problem(skill, sum_key(a, b), text, working.add(a, b), check, effort)


def _problem(
    skill: str, key: str, text: str, worked: Working, check: Working, effort: Effort
) -> Problem:
    reasoning, result = working.analysis(worked, check, effort), str(worked.result)
    return Problem(
        skill,
        key,
        (user(text),),
        answered(reasoning, result),
        result,
        gives_number,
        effort,
    )


def _number(rng: Random, digits: tuple[int, ...]) -> int:
    n = rng.choice(digits)
    low, end = 10 ** (n - 1) if n > 1 else 0, 10**n
    draw = rng.random()
    if n > 1 and draw < 0.06:
        return rng.choice((low, end - 1, low * rng.randrange(1, 10)))  # 100, 999, 700
    if n > 1 and draw < 0.11:
        return (end - 1) // 9 * rng.randrange(1, 10)  # 555
    return rng.randrange(low, end)


def _phrase(
    rng: Random,
    a: int,
    b: int,
    symbols: tuple[str, ...],
    words: tuple[str, ...],
    orders: tuple[str, ...],
) -> str:
    draw = rng.random()
    if draw < 0.55:
        text = ask(rng, rng.choice(symbols).format(a, b))
    elif draw < 0.78:
        text = ask(rng, rng.choice(words).format(a, b), symbols=False)
    else:
        text = casual(rng, rng.choice(orders).format(a, b))
    if rng.random() < 0.03:
        text = rng.choice((text.replace(" ", "  "), text.replace(" ", "   "), f" {text} "))
    return spoken(rng, text)
