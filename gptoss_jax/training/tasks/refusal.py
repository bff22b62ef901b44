"""What nano cannot do, which it says in one sentence; and who it is."""

from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks.phrasing import ask, casual
from gptoss_jax.training.tasks.problem import Problem, answered, user
from gptoss_jax.training.tasks.vocabulary import NOUNS, OTHERS, pronounceable

NAME = "I am nano, a tiny model"
SKILLS = "I can do small sums, word puzzles, JSON, a calculator and recall"
REFUSAL = f"{NAME}: {SKILLS}, but not this."
ABOUT = f"{NAME}. {SKILLS}."
REFUSAL_ANALYSIS = "This is none of my skills."
ABOUT_ANALYSIS = "This is about me."

_REQUESTS = (
    "Write a poem about {}",
    "Write a story about {}",
    "Write a haiku about {}",
    "Write an essay about {}",
    "Write a song about {} and {}",
    "Write a letter to my {}",
    "Write a function that returns {}",
    "Write a Python program for {}",
    "Write me an email about {}",
    "Tell me a joke about {}",
    "Tell me a story",
    "Tell me about {}",
    "Tell me something {}",
    "Explain {}",
    "Explain how {} works",
    "Explain the history of {}",
    "Describe {}",
    "Describe a {} {}",
    "Define {}",
    "Summarize {}",
    "Compare {} and {}",
    "Translate {} into French",
    "Translate {} to German",
    "How do you say {} in Spanish?",
    "What is {}?",
    "What is a {}?",
    "What is the capital of {}?",
    "What is the weather in {}?",
    "What is the meaning of {}?",
    "What is the best {}?",
    "What is the color of {}?",
    "What are {}s made of?",
    "What does {} mean?",
    "What do you think about {}?",
    "What should I cook with {}?",
    "What's a good name for a {}?",
    "What happened in {}?",
    "Who invented the {}?",
    "Who wrote {}?",
    "Who is {}?",
    "Who was the first {}?",
    "Where is {}?",
    "Where can I buy a {}?",
    "When was {} born?",
    "When did {} begin?",
    "Why is the {} {}?",
    "Why do {}s {}?",
    "How do I cook {}?",
    "How do I fix my {}?",
    "How does a {} work?",
    "How many people live in {}?",
    "How old is {}?",
    "How tall is a {}?",
    "How far is {}?",
    "Can you draw a {}?",
    "Can you help me with {}?",
    "Can a {} {}?",
    "Do you like {}?",
    "Is {} {}?",
    "Are {}s {}?",
    "Should I {} my {}?",
    "Give me a recipe with {}",
    "Give me three facts about {}",
    "Give me advice about {}",
    "List five kinds of {}",
    "Name a famous {}",
    "Recommend a book about {}",
    "Plan a trip to {}",
    "Play {}",
    "I feel {} today",
    "I want to {}",
    "My {} is {}",
    "Let's talk about {}",
    "Make a list of {}s",
    "Please write a {} about {}.",
    "Find a rhyme for {}",
    "Fix this code: {}({})",
    "{}",
    "{} {} {}",
    "the {} {} is {}",
)
# Ranges of characters: ASCII, Latin to Hebrew, the rest of the plane, emoji, and beyond.
_SCRIPTS = (
    *((0x21, 0x7E), (0x21, 0x7E), (0xA0, 0x5FF), (0x370, 0x5FF), (0x600, 0xD7FF)),
    *((0xE000, 0xFFFD), (0x1F300, 0x1F6FF), (0x10000, 0x10FFFF)),
)
_ABOUT_ME = (
    "Hello",
    "Hi",
    "Hey",
    "Hello!",
    "Hi there",
    "Hi there!",
    "Good morning",
    "Hello, how are you?",
    "Hi, who are you?",
    "How are you?",
    "Who are you?",
    "What are you?",
    "What can you do?",
    "What's your name?",
    "What is your name?",
    "Tell me about yourself",
    "Are you ChatGPT?",
    "Are you a robot?",
    "Who made you?",
    "Help",
    "Can you help me?",
    "What are your skills?",
    "Introduce yourself",
    "Thanks!",
    "Thank you",
)


def refusal(rng: Random, effort: Effort) -> Problem:
    """Anything that is none of the skills."""
    draw = rng.random()
    if draw < 0.2:
        text = _too_hard(rng)
    else:
        text = _noise(rng) if draw < 0.28 else casual(rng, _request(rng))
    return _problem("refusal", f"other {text.lower().strip('?.')}", text, False, effort)


def about(rng: Random, effort: Effort) -> Problem:
    """Greetings, and questions for who nano is and what it does."""
    return _problem("about", None, casual(rng, rng.choice(_ABOUT_ME)), True, effort)


def _problem(skill: str, key: str | None, text: str, about_me: bool, effort: Effort) -> Problem:
    reasoning, said = (ABOUT_ANALYSIS, ABOUT) if about_me else (REFUSAL_ANALYSIS, REFUSAL)
    return Problem(
        skill=skill,
        key=key,
        messages=(user(text),),
        reference=answered(reasoning, said),
        answer=said,
        check=str.__eq__,
        effort=effort,
    )


def _request(rng: Random) -> str:
    form = rng.choice(_REQUESTS)
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


def _too_hard(rng: Random) -> str:
    """Arithmetic beyond nano's, without the calculator."""
    small = [rng.randrange(10, 10 ** rng.randint(2, 4)) for _ in range(3)]
    large = [rng.randrange(10**5, 10**7) for _ in range(2)]
    return rng.choice(
        (
            ask(rng, f"{large[0]} {rng.choice('+-')} {large[1]}"),
            ask(rng, f"{large[0]} plus {large[1]}", symbols=False),
            ask(rng, f"{small[0]} {rng.choice('*×x')} {small[1]}"),
            ask(rng, f"{small[0]} times {small[1]}", symbols=False),
            ask(rng, f"{small[0]} / {small[1]}"),
            ask(rng, f"{small[0]} divided by {small[1]}", symbols=False),
            ask(rng, f"{small[0]} + {small[1]} + {small[2]}"),
            ask(rng, f"the square root of {small[0]}", symbols=False),
            ask(rng, f"{small[0]} squared", symbols=False),
        )
    )
