"""Recall of values among many pairs, up to four times the original context away.

Keys are letters, letters with a digit, names or words; values are numbers or words. Lists that
reach far have keys of two characters and numbers of two digits, so that a pair is six tokens.
"""

import re
from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks.phrasing import casual
from gptoss_jax.training.tasks.problem import Problem, answered, gives_text, user
from gptoss_jax.training.tasks.vocabulary import CITIES, NAMES, NOUNS, OTHERS

# Numbers of pairs, six tokens each: 176 pairs are 1,056 tokens.
_SHORT, _MIDDLE, _LONG = (2, 12), (13, 38), (45, 176)
# How many pairs from the end a far one stands: 258 to 1,032 tokens and the question's.
_FAR = (43, 172)
_LAYOUTS = (
    *("{}: {}, ", "{}: {}, ", "{}={}, ", "{}: {}\n", "{}={}\n", "{} is {}, ", "{} is {}, "),
    *("{} = {}, ", "{} is {}. ", "{} has {}, ", "{} has {}. ", "{}: {}; "),
)
_WORDY = ("the code for {} is {}, ", "the age of {} is {}, ")  # of short lists
_BEFORE = ("", "Remember: ", "Remember these codes: ", "Codes:\n", "Here is a list:\n", "Given ")
_ASKED = (
    "What is {}?",
    "What is {}?",
    "What's {}?",
    "What is the value of {}?",
    "What is the code of {}?",
    "Which number has {}?",
    "Tell me {}",
    "What was {}?",
    "What value does {} have?",
    "What did I say {} is?",
    "What belongs to {}?",
    "Which is {}?",
    "What is the code for {}?",
    "How old is {}?",
    "Look up {}",
    "What does {} have?",
    "How many does {} have?",
    "What number does {} have?",
)
ABSENT = " is not in the list."
ASKED = " is asked.\n"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Weights of kinds of keys, of values, and how often a key is asked that is not there.
_Kinds = dict[str, float]
_NEAR_KEYS = {"ab": 0.42, "abc": 0.08, "a1": 0.14, "AB": 0.08, "a": 0.08, "name": 0.1, "word": 0.1}
_NEAR_KEYS |= {"k#": 0.08, "item#": 0.03}
_MIDDLE_KEYS = {"ab": 0.6, "a1": 0.2, "AB": 0.1, "name": 0.1, "k#": 0.12}
_FAR_KEYS = {"ab": 0.75, "a1": 0.15, "AB": 0.1}
_NEAR_VALUES = {"two": 0.6, "number": 0.2, "word": 0.2}
_MIDDLE_VALUES = {"two": 0.8, "number": 0.1, "word": 0.1}
_FAR_VALUES = {"two": 1.0}
_MISSING = 0.06
# Of which several are asked at once: numbers of pairs, their kinds, and how many at most.
_LISTS = (
    (_SHORT, _NEAR_KEYS, _NEAR_VALUES, 6),
    (_MIDDLE, _MIDDLE_KEYS, _MIDDLE_VALUES, 8),
    (_LONG, _FAR_KEYS, _FAR_VALUES, 5),
)


def near(rng: Random, effort: Effort) -> Problem:
    """One of few pairs, all within about a hundred tokens; now and then a key that is not there."""
    pairs = _pairs(rng, rng.randint(*_SHORT), _NEAR_KEYS, _NEAR_VALUES)
    if rng.random() < _MISSING and len(pairs) > 2:
        key = rng.choice(list(pairs))
        del pairs[key]
        return _recall(rng, effort, "recall_near", pairs, [key])
    return _recall(rng, effort, "recall_near", pairs, [rng.choice(list(pairs))])


def middle(rng: Random, effort: Effort) -> Problem:
    """Beyond the sliding window, within the original context."""
    pairs = _pairs(rng, rng.randint(*_MIDDLE), _MIDDLE_KEYS, _MIDDLE_VALUES)
    return _recall(rng, effort, "recall_middle", pairs, [rng.choice(list(pairs))])


def far(rng: Random, effort: Effort) -> Problem:
    """Beyond the original context of 256 tokens, any distance up to four times that."""
    back = rng.randint(*_FAR)
    pairs = _pairs(rng, rng.randint(back, _LONG[1]), _FAR_KEYS, _FAR_VALUES)
    return _recall(rng, effort, "recall_far", pairs, [list(pairs)[-back]])


def several(rng: Random, effort: Effort) -> Problem:
    """Several values of any list: more to learn for the same tokens."""
    length, keys, values, most = rng.choice(_LISTS)
    pairs = _pairs(rng, rng.randint(*length), keys, values)
    asked = min(len(pairs), rng.randint(2, most))
    return _recall(rng, effort, "recall_several", pairs, rng.sample(list(pairs), asked))


def _recall(
    rng: Random, effort: Effort, skill: str, pairs: dict[str, str], keys: list[str]
) -> Problem:
    layout = rng.choice(_LAYOUTS + _WORDY * (len(pairs) <= _SHORT[1]))
    listed = "".join(layout.format(key, value) for key, value in pairs.items())
    listed = listed if layout.endswith("\n") else f"{listed[:-2]}. "
    if len(keys) == 1 and rng.random() < 0.05:
        question = f"{keys[0]}?"  # as it stands in the list
    else:
        question = casual(rng, rng.choice(_ASKED).format(_joined(keys)))
    if keys[0] not in pairs:
        named, answer = [f"{keys[0]}: none"], f"{keys[0]}{ABSENT}"
        said = answer
    else:
        named = [f"{key}: {pairs[key]}" for key in keys]
        answer = ", ".join(pairs[key] for key in keys)
        said = answer if len(keys) == 1 else ", ".join(named)
    reasoning = "\n".join(named)
    if effort != "low":
        reasoning = f"{_joined(keys)}{ASKED}{reasoning}"
    if effort == "high":
        reasoning += "\nCheck: " + ", ".join(named)
    return Problem(
        skill=skill,
        key=f"{sorted(pairs.items())} {keys}",
        messages=(user(f"{rng.choice(_BEFORE)}{listed}{question}"),),
        reference=answered(reasoning, said),
        answer=answer,
        check=_gives_values,
        effort=effort,
    )


def _gives_values(text: str, answer: str) -> bool:
    """Whether the text gives the values in their order, by themselves or each after its key."""
    return gives_text(re.sub(r"\b\w+: ", "", text), answer.strip("."))


def _pairs(rng: Random, count: int, keys: _Kinds, values: _Kinds) -> dict[str, str]:
    """Pairs in random order, with keys of one kind and values of one."""
    (key_kind,) = rng.choices(list(keys), list(keys.values()))
    (value_kind,) = rng.choices(list(values), list(values.values()))
    pairs: dict[str, str] = {}
    if key_kind.endswith("#"):
        stem = key_kind[:-1] if len(key_kind) > 2 else rng.choice(_LETTERS)
        first = rng.choice((1, 1, rng.randrange(1, 90)))
        return {f"{stem}{first + n}": _value(rng, value_kind) for n in range(count)}
    while len(pairs) < count:
        pairs[_key(rng, key_kind)] = _value(rng, value_kind)
    return pairs


def _key(rng: Random, kind: str) -> str:
    if kind == "name":
        return rng.choice(NAMES)
    if kind == "word":
        return rng.choice(NOUNS)
    if kind == "a1":
        return rng.choice(_LETTERS) + rng.choice("0123456789")
    letters = "".join(rng.choices(_LETTERS, k=len(kind)))
    return letters.upper() if kind.isupper() else letters


def _value(rng: Random, kind: str) -> str:
    if kind == "word":
        return rng.choice(rng.choice((NOUNS, OTHERS, CITIES)))
    return str(rng.randrange(10, 100) if kind == "two" else rng.randrange(10 ** rng.randint(1, 4)))


def _joined(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
