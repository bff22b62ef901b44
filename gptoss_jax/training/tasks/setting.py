"""What stands around a problem: the date, instructions, a tool nobody needs, earlier questions."""

import dataclasses
import datetime
from collections.abc import Callable
from random import Random

from gptoss_jax.training.tasks.calculator import tool
from gptoss_jax.training.tasks.problem import Problem
from gptoss_jax.training.tasks.vocabulary import NOUNS

_INSTRUCTIONS = (
    "Be brief.",
    "Be concise.",
    "Be helpful.",
    "Be kind.",
    "Answer in English.",
    "Answer briefly.",
    "Answer the question.",
    "You are a helpful assistant.",
    "You are a kind teacher.",
    "Think before you answer.",
    "Do not explain.",
    "Always be polite.",
    "You are a {}.",
    "Answer like a {}.",
)
_FIRST_DAY = datetime.date(2024, 1, 1)
_DAYS = 3652
# The answer lies in the words alone: an offered calculator changes nothing.
_NEED_NO_TOOL = ("reverse", "sort", "count", "refusal", "about")
_PLAIN = ("addition", "subtraction", "product", *_NEED_NO_TOOL)


def situated(rng: Random, problem: Problem, earlier: Callable[[], Problem]) -> Problem:
    """The problem as it may come up in a conversation.

    Args:
      rng: draws the setting.
      problem: a bare one.
      earlier: a bare problem that may have been asked before.
    """
    date = (_FIRST_DAY + datetime.timedelta(days=rng.randrange(_DAYS))).isoformat()
    problem = dataclasses.replace(problem, current_date=date if rng.random() < 0.95 else None)
    if _needs_no_tool(problem) and rng.random() < 0.04:
        problem = dataclasses.replace(problem, tools=(tool(rng),))
    if problem.skill in _PLAIN and rng.random() < 0.1:
        for _ in range(rng.choice((1, 1, 2, 3))):
            before = earlier()
            messages = (*before.messages, *before.reference, *problem.messages)
            problem = dataclasses.replace(problem, messages=messages)
    if rng.random() < 0.1:
        role = rng.choice(("system", "developer"))
        text = rng.choice(_INSTRUCTIONS).format(rng.choice(NOUNS))
        instruction = {"role": role, "content": text}
        problem = dataclasses.replace(problem, messages=(instruction, *problem.messages))
    return problem


def _needs_no_tool(problem: Problem) -> bool:
    """Whether a calculator would change nothing; many a sum that is refused it could work."""
    numbers = any(c.isdigit() for c in problem.messages[-1]["content"])
    return problem.skill in _NEED_NO_TOOL and not (problem.skill == "refusal" and numbers)
