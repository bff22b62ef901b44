"""What lies just beyond nano's skills, to be told from them: other sums, other word games."""

import re
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from gptoss_jax.training.tasks.phrasing import ask, casual, spoken
from gptoss_jax.training.tasks.vocabulary import NAMES, NOUNS, long_word, word

SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "last")
# Each {} is a number of one to four digits, {d} one with decimals, {w} one in words, {l} one of
# five digits or more, {p} one of two to four, {c} one with a comma.
_SUMS = (
    ("{} / {}", "{} ÷ {}", "{}/{}", "{} : {}", "{} % {}", "{} mod {}"),
    ("{} divided by {}", "the remainder of {} divided by {}", "{} over {}", "half of {}"),
    ("{}^{}", "{}**{}", "{} ^ {}", "{}!", "√{}", "sqrt({})", "|{}|", "-{}", "log({})"),
    ("{} to the power of {}", "{} squared", "{} cubed", "the square root of {}", "the root of {}"),
    ("{d} + {}", "{} - {d}", "{d} + {d}", "{d} * {}", "{d} - {d}", "{d} / {}"),
    ("{d} plus {}", "{} minus {d}", "{d} times {}", "{} times {d}"),
    ("{}/{} + {}/{}", "-{} + {}", "-{} - {}", "{} + -{}", "{} - -{}", "-{} * {}", "{} + ({})"),
    ("{}% of {}", "{} percent of {}", "{} per cent of {}", "a third of {}", "a quarter of {}"),
    ("{w} plus {w}", "{w} minus {w}", "{w} times {w}", "{w} and {w}", "{} plus {w}"),
    ("{} = {}", "{} < {}", "x + {} = {}", "{}x = {}", "x if x - {} = {}", "{}x + {} = {}"),
    ("the average of {} and {}", "the larger of {} and {}", "the maximum of {}, {} and {}"),
    ("the factors of {}", "the next prime after {}", "the number after {}", "{} in binary"),
    ("{} in words", "{} in Roman numerals", "{} rounded to the nearest ten", "{} dollars in euros"),
    ("{c} + {}", "{} + {c}", "{c} - {}", "{c} plus {c}", "{c} minus {}", "{} times {c}"),
)
# With the sum that each of them is: {0} is its first number.
# Those that were taken for a skill most often.
_SIGNED = (
    *("-{} + {}", "-{} - {}", "{} + -{}", "{} - -{}", "-{} * {}", "-{}+{}", "-{} plus {}"),
    "minus {} plus {}",
)
_COMMAS = ("{c} + {}", "{} + {c}", "{c} + {c}", "{c} - {}", "{c} plus {}", "{c}+{}", "{c} times {}")
_POWERS = ("{}^{}", "{} ^ {}", "{}**{}", "{} to the power of {}", "{} squared", "{}^2", "2^{}")
_CUT_OFF = ("{} +", "{} -", "{} *", "{} plus", "+ {}", "{} + {} +", "{} {}")
_ORDERS = {
    "Add {}, {} and {}": "{0} + {1} + {2}",
    "Add {} and {} and {}": "{0} + {1} + {2}",
    "Add {}, {}, {} and {}": "{0} + {1} + {2} + {3}",
    "Sum of {}, {} and {}": "{0} + {1} + {2}",
    "Divide {} by {}": "{0} / {1}",
    "Split {} by {}": "{0} / {1}",
    "Multiply {p} by {p}": "{0} * {1}",
    "Multiply {p} and {p}": "{0} * {1}",
    "Product of {p} and {p}": "{0} * {1}",
    "Multiply {}, {} and {}": "{0} * {1} * {2}",
    "Add {l} and {}": "{0} + {1}",
    "Add {} to {l}": "{0} + {1}",
    "Subtract {} from {l}": "{1} - {0}",
    "Subtract {l} from {l}": "{1} - {0}",
    "{l} less than {l}": "{1} - {0}",
    "Subtract {} and {} from {}": "{2} - {0} - {1}",
    "Add {d} and {}": "{0} + {1}",
    "Subtract {d} from {}": "{1} - {0}",
    "Multiply {d} by {}": "{0} * {1}",
}
_OTHER_ORDERS = (
    *(
        "Halve {}",
        "Square {}",
        "Negate {}",
        "Factor {}",
        "Take the square root of {}",
        "Half of {}",
    ),
    *("Add {w} and {w}", "Add {} and {w}", "Subtract {w} from {}", "What is {} out of {}?"),
)
_COUNTED = (
    "{name} has {} {thing}s and buys {} more. How many {thing}s are there now?",
    "I had {} {thing}s and lost {}. How many are left?",
    "There are {} {thing}s in each of {} bags. How many is that?",
    "Which is larger, {} or {}?",
    "Which is smaller, {} or {}?",
    "Compare {} and {}",
    "Is {} larger than {}?",
    "Is {} a prime number?",
    "Is {} even?",
    "What comes after {}, {}, {}?",
    "Count from {} to {}",
    "Round {d} to a whole number",
    "Convert {} to binary",
    "How many digits does {} have?",
    "Reverse {}",
    "Sort {}, {}, {}",
    "Sort the numbers {}, {} and {}",
    "I am {} years old. How old am I?",
    "I am {} years old. How old will I be in {} years?",
    "a: {}, b: {}, c: {}. What is the sum?",
    "a is {}, b is {}. What is a + b?",
    "x is {}. What is {} + x?",
    "How many days are in {} weeks?",
    "Add all numbers from {} to {}",
)
_WORDS = (
    "How many vowels are in {}?",
    "How many consonants does {} have?",
    "How many syllables are in {}?",
    "How many words are in {} {} {}?",
    "Spell {}",
    "Spell the word {}",
    "What is the {nth} letter of {}?",
    "Which letter comes {nth} in {}?",
    "Is {} a palindrome?",
    "Is {} longer than {}?",
    "Does {} contain the letter {letter}?",
    "Capitalize {}",
    "Write {} in capitals",
    "Remove the vowels from {}",
    "Delete the letter {letter} from {}",
    "Replace the letter {letter} in {} with x",
    "Sort the words {}, {}, {}",
    "Reverse the words {} {} {}",
    "Make an anagram of {}",
    "What rhymes with {}?",
    "Repeat {} three times",
    "Which words begin with {letter}?",
    "What letter comes after {letter}?",
    'Reverse "{} {}"',
    "Reverse the sentence {} {} {}",
    "Reverse the phrase {} {}",
    'How many letters are in "{} {} {}"?',
    "How many letters are in {} {}?",
    'Sort the letters of "{} {}"',
    "Reverse the word {}-{}",
    "How many letters does {}-{} have?",
    "Reverse the word {accented}",
    "Sort the letters of {accented}",
    "How many letters are in {accented}?",
)
# Of words beyond twelve letters.
_LONG_WORDS = (
    *("Reverse the word {}", "Reverse {}", "Spell {} backwards", "What is {} backwards?"),
    *("Sort the letters of {}", "Sort {} alphabetically", "How many letters are in {}?"),
    *("Count the letters in {}", "How long is the word {}?", "How many {letter}'s are in {}?"),
    *("Count the {letter}s in {}", "How often does {letter} occur in {}?", "Reverse: {}"),
)


class Beyond(NamedTuple):
    """A question beyond nano's skills.

    Attributes:
      text: as it is asked.
      core: what it asks for, without the frame it is asked in.
      sum_: of a sum what a skill's working would begin with, else "". Written down, it shows at
        its place that there is a digit, a term or a sign too much.
    """

    text: str
    core: str
    sum_: str = ""


def hard_sum(rng: Random) -> Beyond:
    """Arithmetic beyond nano's: too long, too many terms, or of another kind."""
    draw = rng.random()
    if draw < 0.75:
        if draw < 0.13:
            sum_ = _long(rng)
        elif draw < 0.18:  # too long to be written down
            sum_ = _endless(rng)
            return Beyond(spoken(rng, _asked(rng, sum_)), sum_)
        elif draw < 0.31:
            sum_ = _many_terms(rng)
        elif draw < 0.41:
            sum_ = _wide_product(rng)
        elif draw < 0.55:
            sum_ = _filled(rng, rng.choice(rng.choice((_SIGNED, _COMMAS, _POWERS, _CUT_OFF))))
        else:
            sum_ = _filled(rng, rng.choice(rng.choice(_SUMS)))
        return Beyond(spoken(rng, _asked(rng, sum_)), sum_, _in_signs(sum_))
    if draw < 0.86:
        order = rng.choice(list(_ORDERS))
        core = _filled(rng, order)
        sum_ = _ORDERS[order].format(*re.findall(r"[\d.]+", core))
        return Beyond(spoken(rng, casual(rng, core)), core, sum_)
    core = _filled(rng, rng.choice(_OTHER_ORDERS if draw < 0.89 else _COUNTED))
    return Beyond(spoken(rng, casual(rng, core)), core)


def word_game(rng: Random) -> Beyond:
    """A word's letters: none of reversing, sorting and counting them."""
    long = rng.random() < 0.35
    form = rng.choice(_LONG_WORDS if long else _WORDS)
    form = form.replace("{accented}", _accented(rng))
    form = form.replace("{nth}", rng.choice(_ORDINALS))
    form = form.replace("{letter}", rng.choice("abcdefghijklmnopqrstuvwxyz"))
    core = form.format(*((long_word if long else word)(rng) for _ in range(form.count("{}"))))
    return Beyond(spoken(rng, casual(rng, core)), core)


def _in_signs(sum_: str) -> str:
    """As nano's workings write sums: "4 × 251" is "4 * 251", "3 plus 4" is "3 + 4"."""
    for said, sign in ((" plus ", " + "), (" minus ", " - "), (" times ", " * ")):
        sum_ = sum_.replace(said, sign)
    sum_ = re.sub(r"(?<=[\d)]) ?[×x·] ?(?=[\d(])", " * ", sum_)
    return re.sub(r"(?<=[\d)]) ?([-+*]) ?(?=[\d(-])", r" \1 ", sum_)


def _asked(rng: Random, sum_: str) -> str:
    in_words = any(c.isalpha() and c != "x" for c in sum_)
    return ask(rng, sum_, symbols=not in_words)


def _long(rng: Random) -> str:
    """A sum or difference with a number of five digits or more; the other is of any length."""
    pair = [_number(rng, rng.choice((5, 5, 5, 6, 7))), _number(rng, rng.choice((1, 2, 3, 4, 5, 6)))]
    rng.shuffle(pair)
    return rng.choice(("{} + {}", "{} - {}", "{}+{}", "{}-{}", "{} plus {}", "{} minus {}")).format(
        *pair
    )


def _endless(rng: Random) -> str:
    """A sum with a number of 8 to 50 digits, often of one digit alone."""
    length = rng.choice((8, 9, 10, 12, 15, 20, 30, 50))
    digit = str(rng.randrange(1, 10))
    long = digit * length if rng.random() < 0.4 else str(_number(rng, length))
    pair = [long, str(_number(rng, rng.randint(1, 4)))]
    rng.shuffle(pair)
    return f"{pair[0]} {rng.choice('+-*')} {pair[1]}"


def _accented(rng: Random) -> str:
    letters = list(word(rng))
    letters[rng.randrange(len(letters))] = rng.choice("éèüöäñßçåø")
    return "".join(letters)


def _wide_product(rng: Random) -> str:
    """A product of more than two digits by one."""
    if rng.random() < 0.5:
        pair = [_number(rng, rng.choice((2, 2, 3, 4))), _number(rng, 2)]
    else:
        pair = [_number(rng, rng.choice((3, 3, 4))), rng.randrange(2, 10)]
    rng.shuffle(pair)
    return rng.choice(("{} * {}", "{} × {}", "{} x {}", "{}*{}", "{} times {}", "{} · {}")).format(
        *pair
    )


def _many_terms(rng: Random) -> str:
    """Three terms or four, now and then in brackets."""
    digits = rng.choice(((1,), (1, 2), (1, 2, 3), (2, 3, 4)))
    terms = [str(_number(rng, rng.choice(digits))) for _ in range(rng.choice((3, 3, 3, 4)))]
    draw = rng.random()
    if draw < 0.15:
        return " plus ".join(terms)
    if draw < 0.3:
        terms[0], terms[1] = f"({terms[0]}", f"{terms[1]})"
    space = rng.choice((" ", " ", ""))
    out = terms[0]
    for term in terms[1:]:
        out += f"{space}{rng.choice('+++--*×')}{space}{term}"
    return out


def _filled(rng: Random, form: str) -> str:
    """The form with a value for each name in braces."""
    values: dict[str, Callable[[], str]] = {
        "{}": lambda: str(_number(rng, rng.choice((1, 1, 2, 2, 3, 4)))),
        "{d}": lambda: f"{rng.randrange(100)}.{rng.randrange(1, 100)}",
        "{w}": lambda: rng.choice(SMALL),
        "{l}": lambda: str(_number(rng, rng.choice((5, 5, 6)))),
        "{p}": lambda: str(_number(rng, rng.choice((2, 2, 3, 4)))),
        "{c}": lambda: f"{_number(rng, rng.choice((4, 4, 5))):,}",
    }
    thing = rng.choice(NOUNS)
    out = form.replace("{thing}", thing).replace("{name}", rng.choice(NAMES))
    for name, value in values.items():
        while name in out:
            out = out.replace(name, value(), 1)
    return out


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)
