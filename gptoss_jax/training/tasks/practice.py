"""Exercises that are no skills: what makes the skills' attention form at all.

A model that is to look a key up among many has to find an earlier occurrence of what it is reading
and copy what followed. Trained on recall alone a small one stays at chance for thousands of steps;
repeating text without sense asks for the same at every token, and is learned in hundreds.
"""

from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks.problem import Problem, answered, gives_text, user

_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_LENGTHS = (8, 48)


def repeat(rng: Random, effort: Effort) -> Problem:
    """A text without sense, again. In training alone: nobody asks nano for it."""
    text = "".join(rng.choices(_CHARACTERS, k=rng.randint(*_LENGTHS)))
    return Problem(
        "repeat", "", (user(f"Write {text}"),), answered("", text), text, gives_text, effort
    )
