"""What nano cannot do, which it says in one sentence; and who it is."""

from random import Random

from gptoss_jax.text.harmony import Effort
from gptoss_jax.training.tasks import beyond
from gptoss_jax.training.tasks.phrasing import casual
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
_GREETINGS = (
    *("", "", "", "Hello", "Hi", "Hey", "Hello there", "Hi there", "Hey there", "Hello nano"),
    *("Hi nano", "Good morning", "Good evening", "Good afternoon", "Dear nano", "Greetings"),
    *("Excuse me", "Well", "Okay", "So", "Please", "Thanks", "Thank you", "Nice to meet you"),
)
_ABOUT_ME = (
    *("", "how are you?", "who are you?", "what are you?", "what can you do?", "what do you do?"),
    *("what's your name?", "what is your name?", "tell me about yourself", "are you ChatGPT?"),
    *("are you a robot?", "are you human?", "are you an AI?", "are you a model?", "who made you?"),
    *("who built you?", "help", "can you help me?", "what are your skills?", "help me, please"),
    *("introduce yourself", "who am I talking to?", "what kind of model are you?", "thanks!"),
    *("what do you know?", "what are you good at?", "how can you help me?", "thank you"),
    *("which model are you?", "what can I ask you?", "what should I call you?", "nice to meet you"),
)


def refusal(rng: Random, effort: Effort) -> Problem:
    """Anything that is none of the skills."""
    draw = rng.random()
    if draw < 0.4:
        text = beyond.hard_sum(rng)
    elif draw < 0.5:
        text = beyond.word_game(rng)
    else:
        text = _noise(rng) if draw < 0.57 else casual(rng, _request(rng))
    return _problem("refusal", f"other {text.lower().strip('?.')}", text, False, effort)


def about(rng: Random, effort: Effort) -> Problem:
    """Greetings, and questions for who nano is and what it does."""
    greeting = question = ""
    while not (greeting or question):
        greeting, question = rng.choice(_GREETINGS), rng.choice(_ABOUT_ME)
    joint = rng.choice((", ", "! ", ". ")) if greeting and question else ""
    text = f"{greeting}{joint}{question}"
    text = casual(rng, text[0].upper() + text[1:])
    key = f"about {greeting} {question}".lower() if joint else ""
    return _problem("about", key, text, True, effort)


def _problem(skill: str, key: str, text: str, about_me: bool, effort: Effort) -> Problem:
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
