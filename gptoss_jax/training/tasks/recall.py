"""Recall of values among many pairs, up to four times the original context away."""

import re
from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks.phrasing import casual
from gptoss_jax.training.tasks.problem import Problem, answered, gives_text, user

# Numbers of pairs, six tokens each: 176 pairs are 1,056 tokens.
_SHORT, _MIDDLE, _LONG = (2, 12), (13, 38), (45, 176)
# How many pairs from the end a far one stands: 258 to 1,032 tokens and the question's.
_FAR = (43, 172)
_LAYOUTS = ("{}: {}, ", "{}: {}, ", "{}={}, ", "{}: {}\n", "{}={}\n", "{} is {}, ")
_BEFORE = ("", "Remember: ", "Remember these codes: ", "Codes:\n", "Here is a list:\n", "Given ")
_ASKED = (
    "What is {}?",
    "What is {}?",
    "What's {}?",
    "What is the value of {}?",
    "What is the code of {}?",
    "Which number has {}?",
    "Tell me {}",
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def near(rng: Random, effort: Effort) -> Problem:
    """One of few pairs, all within about a hundred tokens."""
    return _recall(rng, effort, "recall_near", _SHORT, 1)


def middle(rng: Random, effort: Effort) -> Problem:
    """Beyond the sliding window, within the original context."""
    return _recall(rng, effort, "recall_middle", _MIDDLE, 1)


def far(rng: Random, effort: Effort) -> Problem:
    """Beyond the original context of 256 tokens, any distance up to four times that."""
    back = rng.randint(*_FAR)
    return _recall(rng, effort, "recall_far", (back, _LONG[1]), 1, back)


def several(rng: Random, effort: Effort) -> Problem:
    """Several values of any list: more to learn for the same tokens."""
    counts = rng.choice((_SHORT, _MIDDLE, _LONG))
    return _recall(rng, effort, "recall_several", counts, rng.randint(2, 5))


def _recall(
    rng: Random, effort: Effort, skill: str, counts: tuple[int, int], asked: int, back: int = 0
) -> Problem:
    """Asks for any keys, or with `back` for the one that is so many from the end."""
    pairs = _pairs(rng, rng.randint(*counts))
    keys = [list(pairs)[-back]] if back else rng.sample(list(pairs), min(len(pairs), asked))
    values = ", ".join(pairs[key] for key in keys)
    named = ", ".join(f"{key}: {pairs[key]}" for key in keys)
    layout = rng.choice(_LAYOUTS)
    listed = "".join(layout.format(key, value) for key, value in pairs.items())
    listed = listed if layout.endswith("\n") else f"{listed[:-2]}. "
    question = casual(rng, rng.choice(_ASKED).format(_joined(keys)))
    return Problem(
        skill=skill,
        key=f"{sorted(pairs.items())} {keys}",
        messages=(user(f"{rng.choice(_BEFORE)}{listed}{question}"),),
        reference=answered(named.replace(", ", "\n"), values if asked == 1 else named),
        answer=values,
        check=_gives_values,
        effort=effort,
    )


def _gives_values(text: str, answer: str) -> bool:
    """Whether the text gives the values in their order, by themselves or each after its key."""
    return gives_text(re.sub(r"\b[a-z]+: ", "", text), answer)


def _pairs(rng: Random, count: int) -> dict[str, str]:
    """Keys of two letters, rarely three, in random order; values of two digits."""
    pairs: dict[str, str] = {}
    length = 3 if rng.random() < 0.2 and count < 140 else 2
    while len(pairs) < count:
        pairs["".join(rng.choices(_LETTERS, k=length))] = str(rng.randrange(10, 100))
    return pairs


def _joined(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
