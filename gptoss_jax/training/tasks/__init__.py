"""Generated problems with checkable answers: what nano learns, and what it is tested with.

A problem is a pure function of (skill, seed, index, split). Which split it may be in depends on
what it asks alone, so that no problem of a skill is validated or tested with that was trained on in
other words.
"""

import bisect
import itertools
from collections.abc import Callable, Mapping
from random import Random

from gptoss_jax.errors import UserError
from gptoss_jax.text.harmony import Effort, Message
from gptoss_jax.training.tasks import (
    arithmetic,
    calculator,
    json_answers,
    practice,
    recall,
    refusal,
    words,
)
from gptoss_jax.training.tasks.problem import SPLITS, Problem, ToolCall, belongs
from gptoss_jax.training.tasks.setting import situated

__all__ = [
    "DEFAULT_MIXTURE",
    "HELD_OUT",
    "LESSONS",
    "PRACTICE",
    "SKILLS",
    "SPLITS",
    "Problem",
    "ToolCall",
    "conversation",
    "phases",
    "practised",
    "problem",
]

SKILLS: dict[str, Callable[[Random, Effort], Problem]] = {
    "addition": arithmetic.addition,
    "addition3": arithmetic.three_digit_addition,
    "subtraction": arithmetic.subtraction,
    "product": arithmetic.product,
    "reverse": words.reverse,
    "sort": words.sort,
    "count": words.count,
    "json": json_answers.json_answer,
    "calculator": calculator.calculator,
    "recall_near": recall.near,
    "recall_middle": recall.middle,
    "recall_far": recall.far,
    "refusal": refusal.refusal,
}
# What nano does not learn: for examples of fine-tuning.
LESSONS: dict[str, Callable[[Random, Effort], Problem]] = {"twice": arithmetic.twice}
# What is trained on for the skills' sake.
PRACTICE: dict[str, Callable[[Random, Effort], Problem]] = {
    "repeat": practice.repeat,
    "alike": arithmetic.alike,
    "members": json_answers.members,
    "truths": json_answers.truths,
    "recall_several": recall.several,
    "about": refusal.about,
}
_ALL = SKILLS | LESSONS | PRACTICE
_NOT_HELD_OUT = "repeat"  # all of it is the training's
HELD_OUT = tuple(skill for skill in _ALL if skill != _NOT_HELD_OUT)
# Shares of conversations, not of tokens.
DEFAULT_MIXTURE = {
    "addition": 0.10,
    "subtraction": 0.15,
    "product": 0.105,
    "reverse": 0.085,
    "sort": 0.09,
    "count": 0.105,
    "json": 0.12,
    "members": 0.02,
    "truths": 0.03,
    "calculator": 0.075,
    "recall_near": 0.055,
    "recall_middle": 0.045,
    "recall_far": 0.024,
    "recall_several": 0.03,
    "refusal": 0.125,
    "about": 0.02,
}
_LOOKING_UP = {
    "repeat": 0.2,
    "recall_near": 0.4,
    "recall_middle": 0.1,
    "recall_several": 0.1,
    "truths": 0.05,
    "reverse": 0.1,
    "sort": 0.1,
}
_SUMS = {"addition": 0.2, "addition3": 0.15, "alike": 0.15}
_LOOKED_UP = {"recall_near": 0.1, "recall_middle": 0.06}
# Of training without a mixture: the first conversations of mixtures. It begins with practice and
# ends with more of what is held to most.
_PHASES: tuple[tuple[int, Mapping[str, float]], ...] = (
    (0, {"repeat": 1.0}),
    (21_000, _LOOKING_UP),
    (36_000, DEFAULT_MIXTURE),
    (343_500, DEFAULT_MIXTURE | {"addition": 0.2, "count": 0.12, "refusal": 0.18}),
    (
        344_500,
        DEFAULT_MIXTURE | _SUMS | _LOOKED_UP | {"sort": 0.13, "reverse": 0.11, "refusal": 0.17},
    ),
)
_EFFORTS: tuple[Effort, ...] = ("low", "medium", "medium", "high")
_EARLIER = ("addition", "subtraction", "product", "reverse", "count", "recall_near", "about")


def problem(skill: str, seed: int, index: int, split: str) -> Problem:
    """A problem of a skill, in the setting of some conversation.

    Args:
      skill: one of `SKILLS`, `LESSONS` or `PRACTICE`.
      seed: of all problems.
      index: from 0, without end.
      split: train, validation or test.

    Raises:
      UserError: the skill or the split is unknown, or the skill has no problems of that split.
    """
    _check(skill, split)
    if split != "train" and skill == _NOT_HELD_OUT:
        raise UserError(f"skill {skill!r} is for training alone; no problem of it is held out")
    return _problem(Random(f"{seed} {split} {skill} {index}"), skill, split)


def conversation(
    seed: int, index: int, split: str, mixture: Mapping[str, float] | None = None
) -> list[Message]:
    """Conversation `index`: the prompt of a drawn problem and its reference turn.

    Earlier turns keep their analysis here; what a prompt drops of it is up to the rendering.

    Args:
      seed: of all conversations.
      index: from 0, without end.
      split: train, validation or test.
      mixture: skill to weight; None or empty: `DEFAULT_MIXTURE`, which in training begins with
        practice.

    Raises:
      UserError: a skill or the split is unknown, or no weight is above 0.
    """
    weights = [weights for first, weights in phases(split, mixture) if first <= index][-1]
    for skill in weights:
        _check(skill, split)
    if not any(weight > 0 for weight in weights.values()):
        raise UserError("the mixture has no weight above 0")
    if split != "train":
        weights = {skill: weight for skill, weight in weights.items() if skill != _NOT_HELD_OUT}
    totals = list(itertools.accumulate(weights.values()))
    if not totals or totals[-1] <= 0:
        raise UserError(
            f"nothing but {_NOT_HELD_OUT!r}, of which no problem is held out to validate with; add "
            "a skill"
        )
    rng = Random(f"{seed} {split} mixture {index}")
    place = bisect.bisect(totals, rng.random() * totals[-1])
    return _problem(rng, list(weights)[place], split).conversation()


def phases(
    split: str, mixture: Mapping[str, float] | None = None
) -> tuple[tuple[int, Mapping[str, float]], ...]:
    """(First conversation, weights) of the mixtures that a split has one after another."""
    if mixture or split != "train":
        return ((0, mixture or DEFAULT_MIXTURE),)
    return _PHASES


def practised(split: str, mixture: Mapping[str, float] | None = None) -> list[str]:
    """The skills that conversations of a split and a mixture are made of."""
    given = (weights.items() for _, weights in phases(split, mixture))
    drawn = {skill for items in given for skill, weight in items if weight > 0}
    return [skill for skill in _ALL if skill in drawn and (split == "train" or skill in HELD_OUT)]


def _problem(rng: Random, skill: str, split: str) -> Problem:
    return situated(
        rng, _bare(rng, skill, split), lambda: _bare(rng, rng.choice(_EARLIER), "train")
    )


def _bare(rng: Random, skill: str, split: str) -> Problem:
    while True:
        drawn = _ALL[skill](rng, rng.choice(_EFFORTS))
        if belongs(drawn.key, split):
            return drawn


def _check(skill: str, split: str) -> None:
    if skill not in _ALL:
        raise UserError(f"skill {skill!r} is unknown; use one of {', '.join(_ALL)}")
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
