"""Reversing, sorting and counting a word's letters. The analysis numbers the letters."""

import collections
import itertools
import string
from collections.abc import Sequence
from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks.phrasing import casual, spoken
from gptoss_jax.training.tasks.problem import (
    Problem,
    answered,
    gives_number,
    gives_text,
    user,
)
from gptoss_jax.training.tasks.vocabulary import word

_REVERSE = (
    "Reverse the word {}",
    "Reverse {}",
    "Reverse the letters of {}",
    "Spell {} backwards",
    "Write {} backwards",
    "What is {} backwards?",
    "What is {} spelled backwards?",
    "What is {} reversed?",
    "Can you reverse {}?",
    "Please reverse the word {}.",
    "{} backwards",
    "{} reversed",
    "Reverse: {}",
    "Reverse the following word: {}",
    "Reverse the string {}",
    "Spell the word {} backwards",
    "Can you write {} backwards?",
    "Read {} backwards",
    "What is the reverse of {}?",
    "What's {} backwards?",
    "Tell me the word {} backwards",
    "Write {} in reverse",
    "Reverse {}'s letters",
    "Spell {} in reverse",
    "{} in reverse",
    "Turn the word {} around",
    "Reverse this word: {}",
    "Give me {} backwards",
    "Write {} in reverse order",
    "Write the word {} in reverse order",
    "Flip the word {}",
    "Flip the letters of {}",
)
_SORT = (
    "Sort the letters of {}",
    "Sort the letters of the word {}",
    "Sort the letters in {}",
    "Sort {} alphabetically",
    "Put the letters of {} in alphabetical order",
    "What are the letters of {} in alphabetical order?",
    "Can you sort the letters of {}?",
    "Please sort the letters of {}.",
    "Order the letters of {} alphabetically",
    "Arrange the letters of {} in alphabetical order",
    "Sort the letters in the word {}",
    "Sort the word {} alphabetically",
    "Sort the letters of this word: {}",
    "Sort {}",
    "Sort: {}",
    "Alphabetize {}",
    "Alphabetize the letters of {}",
    "Sort these letters: {}",
    "Sort {}'s letters",
    "Put these letters in order: {}",
    "Arrange the letters in {} from a to z",
    "Order the letters in {}",
    "Put the letters in {} in order",
    "Put {}'s letters in order",
    "What is {} with its letters sorted?",
    "Write the letters of {} in alphabetical order",
)
_LENGTH = (
    "How many letters are in {}?",
    "How many letters does {} have?",
    "How many letters are there in {}?",
    "How many letters are in the word {}?",
    "Count the letters of {}",
    "Count the letters in {}",
    "Count the letters of the word {}",
    "Count letters in {}",
    "How many letters in {}?",
    "How many letters has {}?",
    "How many letters does the word {} have?",
    "Number of letters in {}",
    "What is the length of {}?",
    "What is the length of the word {}?",
    "How long is the word {}?",
    "How long is {}?",
    "Count how many letters {} has",
    "How many characters are in {}?",
    "How many characters does {} have?",
    "How many letters does {} contain?",
)
_COUNT = (
    "How many {letter} are in {}?",
    "How many {letter} are there in {}?",
    "How many {letter} does {} have?",
    "How often does {one} occur in {}?",
    "How many times does {one} appear in {}?",
    "How many times is {one} in the word {}?",
    "Count the letter {one} in {}",
    "Count {one} in {}",
    "Count the {letter} in {}",
    "How many {letter} in {}?",
    "How many {letter} in the word {}?",
    "How many {letter} are in the word {}?",
    "How many {letter} are there in the word {}?",
    "How often is {one} in {}?",
    "In {}, how many {letter} are there?",
    "Number of {letter} in {}",
    "Tell me how many {letter} are in {}",
    "How many {letter} does {} contain?",
    "How many times does {one} show up in {}?",
    "How many times does {one} occur in {}?",
    "How many {letter} can you find in {}?",
    "How often does {one} come up in {}?",
    "How often does {} contain {one}?",
)
_QUOTES = ("{}", "{}", '"{}"', '"{}"', "'{}'", "“{}”")


def reverse(rng: Random, effort: Effort) -> Problem:
    """A word backwards."""
    letters = _letters(word(rng))
    back = letters[::-1]
    text = "".join(letter for _, letter in back)
    low = f"Spell:{_listed(letters)}\nBack:{_listed(back)}"
    analysis = _worked(effort, low, text, _listed(_letters(text)))
    return _problem(rng, "reverse", letters, _REVERSE, analysis, text, effort)


def sort(rng: Random, effort: Effort) -> Problem:
    """A word's letters in alphabetical order, by a walk through the alphabet."""
    letters = _letters(word(rng))
    text = "".join(sorted(letter for _, letter in letters))
    low = f"Spell:{_numbered_alike(letters)}\nOrder:{_walk(text)}"
    analysis = _worked(effort, low, text, _listed(_letters(text)))
    return _problem(rng, "sort", letters, _SORT, analysis, text, effort)


def count(rng: Random, effort: Effort) -> Problem:
    """How many letters a word has, or how often it has one."""
    letters = _letters(word(rng))
    if rng.random() < 0.3:
        low, number, back = f"Spell:{_listed(letters)}", str(len(letters)), letters[::-1]
        analysis = _worked(effort, low, number, _listed(back))
        return _problem(rng, "count", letters, _LENGTH, analysis, number, effort)
    wanted = _wanted(rng, "".join(letter for _, letter in letters))
    low, number = _running_count(letters, wanted)
    analysis = _worked(effort, low, number, _listed(letters))
    shown = wanted.upper() if rng.random() < 0.12 else wanted
    # "ss" might be two of them.
    bare = f"{shown}'s" if shown in "sS" else f"{shown}s"
    quoted = rng.choice((f'"{shown}"', f"'{shown}'"))
    plural = rng.choice((f"{shown}'s", bare, quoted, f"{quoted}s", shown, f"letters {shown}"))
    single = rng.choice((shown, quoted, f"the letter {shown}", f"the letter {quoted}"))
    forms = [f.replace("{letter}", plural).replace("{one}", single) for f in _COUNT]
    forms = [form.replace("the letter the letter", "the letter") for form in forms]
    return _problem(rng, "count", letters, forms, analysis, number, effort)


def _wanted(rng: Random, spelled: str) -> str:
    """Mostly a letter that is there, often one that is there twice in a row."""
    draw = rng.random()
    if draw < 0.15:
        return rng.choice(string.ascii_lowercase)
    doubled = [one for one, after in itertools.pairwise(spelled) if one == after]
    return rng.choice(doubled if doubled and draw < 0.6 else spelled)


def _problem(
    rng: Random,
    skill: str,
    letters: list[tuple[int, str]],
    forms: Sequence[str],
    analysis: str,
    text: str,
    effort: Effort,
) -> Problem:
    spelled = "".join(letter for _, letter in letters)
    # The working is in small letters whatever the word is asked in.
    quoted = rng.choice(_QUOTES).format(_written(rng, spelled))
    asked = rng.choice(forms).format(quoted)
    # A bare word at the beginning stays as it is: the answer has its letters as they stand.
    asked = spoken(rng, asked if asked.startswith(quoted) else casual(rng, asked))
    check = gives_number if text.isdigit() else gives_text
    return Problem(
        skill,
        f"word {spelled}",
        (user(asked),),
        answered(analysis, text),
        text,
        check,
        effort,
    )


def _written(rng: Random, spelled: str) -> str:
    draw = rng.random()
    return spelled.capitalize() if draw < 0.08 else spelled.upper() if draw < 0.1 else spelled


def _letters(spelled: str) -> list[tuple[int, str]]:
    return list(enumerate(spelled, 1))


def _listed(letters: Sequence[tuple[int, str]]) -> str:
    return "".join(f" {n}:{letter}" for n, letter in letters)


def _numbered_alike(letters: Sequence[tuple[int, str]]) -> str:
    """Each letter with how often it has come until there: "o1v1a1o2"."""
    seen: collections.Counter[str] = collections.Counter()
    out = []
    for _, letter in letters:
        seen[letter] += 1
        out.append(f"{letter}{seen[letter]}")
    return "".join(out)


def _walk(ordered: str) -> str:
    """The alphabet, and at each letter that is there all until then: "a:aa,bcd:aad,e…"."""
    out, until = [], ""
    for letter in string.ascii_lowercase:
        here = letter * ordered.count(letter)
        until += here
        out.append(f"{letter}:{until}," if here else letter)
    return "".join(out)


def _running_count(letters: Sequence[tuple[int, str]], wanted: str) -> tuple[str, str]:
    """Each letter followed by how often the wanted one came until there, and the last number."""
    out, seen = [], 0
    for _, letter in letters:
        seen += letter == wanted
        out.append(f"{letter}{seen}")
    return f"Count {wanted}: {''.join(out)}", str(seen)


def _worked(effort: Effort, low: str, result: str, check: str) -> str:
    """Low effort lists; medium says the result too; high lists once more to check."""
    said = low if effort == "low" else f"{low}\nSo {result}"
    return f"{said}\nCheck:{check}" if effort == "high" else said
