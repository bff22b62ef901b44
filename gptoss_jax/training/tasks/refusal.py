"""What nano cannot do, which it says in one sentence; and who it is."""

import re
from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks import beyond
from gptoss_jax.training.tasks.phrasing import casual, spoken
from gptoss_jax.training.tasks.problem import Problem, answered, user
from gptoss_jax.training.tasks.requests import REQUESTS
from gptoss_jax.training.tasks.vocabulary import NOUNS, OTHERS, pronounceable

NAME = "I am nano, a tiny model"
SKILLS = "I can do small sums, word puzzles, JSON, a calculator and recall"
REFUSAL = f"{NAME}: {SKILLS}, but not this."
ABOUT = f"{NAME}. {SKILLS}."
REFUSAL_ANALYSIS = "This is none of my skills."
ABOUT_ANALYSIS = "This is about me."
CHECKED = "\nCheck: sums no, words no, JSON no, calculator no, recall no."
_ABOUT_CHECKED = "\nCheck: who I am, what I can do."

# Words for what could be a figure, and those that change nothing of what is asked.
_NUMBERS = {word: str(n) for n, word in enumerate(beyond.SMALL)}
_NUMBERS |= {"squared": "2", "square": "2", "cubed": "3", "half": "2", "halve": "2"}
_NUMBERS |= {"third": "3", "quarter": "4"}
_UNSAID = ("a", "an", "the", "word", "sentence", "phrase")
# Ranges of characters: ASCII, Latin to Hebrew, the rest of the plane, emoji, and beyond.
_SCRIPTS = (
    *((0x21, 0x7E), (0x21, 0x7E), (0xA0, 0x5FF), (0x370, 0x5FF), (0x600, 0xD7FF)),
    *((0xE000, 0xFFFD), (0x1F300, 0x1F6FF), (0x10000, 0x10FFFF)),
)
_GREETINGS = (
    *("", "", "", "Hello", "Hi", "Hey", "Hello there", "Hi there", "Hey there", "Hello nano"),
    *("Hi nano", "Good morning", "Good evening", "Good afternoon", "Dear nano", "Greetings"),
    *("Excuse me", "Well", "Okay", "So", "Please", "Thanks", "Thank you", "Nice to meet you"),
)
_SHORT = ("hi", "hi", "hi", "hello", "hello", "hey", "help", "thanks", "thank you", "good morning")
_ABOUT_ME = (
    *("", "how are you?", "who are you?", "what are you?", "what can you do?", "what do you do?"),
    *("what's your name?", "what is your name?", "tell me about yourself", "are you ChatGPT?"),
    *("are you a robot?", "are you human?", "are you an AI?", "are you a model?", "who made you?"),
    *("who built you?", "help", "can you help me?", "what are your skills?", "help me, please"),
    *("introduce yourself", "who am I talking to?", "what kind of model are you?", "thanks!"),
    *("what do you know?", "what are you good at?", "how can you help me?", "thank you"),
    *("which model are you?", "what can I ask you?", "what should I call you?", "nice to meet you"),
    *("what is nano?", "who is nano?", "what are you able to do?", "do you have a name?"),
)


def refusal(rng: Random, effort: Effort) -> Problem:
    """Anything that is none of the skills."""
    draw = rng.random()
    if draw < 0.42:
        text, core, sum_ = beyond.hard_sum(rng)
    elif draw < 0.58:
        text, core, sum_ = beyond.word_game(rng)
    else:
        core, sum_ = _noise(rng) if draw < 0.62 else _request(rng), ""
        text = core if draw < 0.62 else spoken(rng, casual(rng, core))
    key = _sum_key(core) if draw < 0.42 else _key(core)
    said = {"low": "No skill.", "medium": REFUSAL_ANALYSIS, "high": REFUSAL_ANALYSIS + CHECKED}
    reasoning = f"{sum_}\n{said[effort]}" if sum_ else said[effort]
    return _problem("refusal", f"other {key}", text, reasoning, REFUSAL, effort)


def about(rng: Random, effort: Effort) -> Problem:
    """Greetings, and questions for who nano is and what it does."""
    greeting = question = ""
    if rng.random() < 0.2:
        greeting = rng.choice(_SHORT)
    while not (greeting or question):
        greeting, question = rng.choice(_GREETINGS), rng.choice(_ABOUT_ME)
    joint = rng.choice((", ", "! ", ". ")) if greeting and question else ""
    text = f"{greeting}{joint}{question}"
    mark = "!" if text[-1].isalpha() and rng.random() < 0.3 else ""
    text = casual(rng, f"{text[0].upper()}{text[1:]}{mark}")
    key = f"about {greeting} {question}".lower() if joint else ""
    said = {"low": "Me.", "medium": ABOUT_ANALYSIS, "high": ABOUT_ANALYSIS + _ABOUT_CHECKED}
    return _problem("about", key, text, said[effort], ABOUT, effort)


def _problem(skill: str, key: str, text: str, reasoning: str, said: str, effort: Effort) -> Problem:
    return Problem(
        skill=skill,
        key=key,
        messages=(user(text),),
        reference=answered(reasoning, said),
        answer=said,
        check=str.__eq__,
        effort=effort,
    )


def _sum_key(core: str) -> str:
    """The numbers alone, because signs have too many names: 9^2, 9**2, 9 squared, square 9."""
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", core.lower().replace("square root", "root"))
    named = [_NUMBERS.get(word) or word for word in re.findall(r"[a-z]+|[0-9.]*[0-9]", text)]
    return " ".join(sorted(word for word in named if not word.isalpha()))


def _key(core: str) -> str:
    """A word too long for any skill, else what is asked without the words that change nothing."""
    text = core.lower().replace('"', "")
    if long := re.search(r"[a-z]{15,}", text):
        return long[0]
    words = re.findall(r"\w+|[^\w\s?.,]", text)
    return " ".join(word for word in words if word not in _UNSAID)


def _request(rng: Random) -> str:
    form = rng.choice(REQUESTS)
    return form.format(*(_topic(rng) for _ in range(form.count("{}"))))


def _topic(rng: Random) -> str:
    """A word, seldom made up, so that it is the request and not the topic that tells."""
    draw = rng.random()
    if draw < 0.15:
        return pronounceable(rng, rng.randint(3, 8)).capitalize()
    if draw < 0.3:
        return f"{rng.choice(OTHERS)} {rng.choice(NOUNS)}"
    return rng.choice(NOUNS if draw < 0.85 else OTHERS)


def _noise(rng: Random) -> str:
    """Characters of any script, so that no byte is new to the model; whole words in capitals."""
    if rng.random() < 0.4:
        return _request(rng).upper()
    first, last = rng.choice(_SCRIPTS)
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(2, 12)))
