"""How people ask: frames around an expression, and careless capitals and full stops."""

from random import Random

COMMON = "What is {}?"
FRAMES = (
    "What's {}?",
    "How much is {}?",
    "Calculate {}",
    "Compute {}",
    "Work out {}",
    "Solve {}",
    "Tell me {}",
    "What does {} equal?",
    "What is the result of {}?",
    "Can you calculate {}?",
    "Can you tell me what {} is?",
    "Do you know what {} is?",
    "Please calculate {}.",
    "What is {}, please?",
    "How much would {} be?",
    "What do you get for {}?",
    "Give me {}",
    "Find {}",
    "Evaluate {}",
    "I need {}",
    "{} please",
    "{}",
    "{}?",
    "{} is what?",
)
# Round symbols only: "the sum of 1 and 2 =" is not what anybody writes.
SYMBOL_FRAMES = ("{} =", "{}=", "{} = ?", "{}=?")
_OPENINGS = (
    *(
        "Hi! ",
        "Hi! ",
        "Hi, ",
        "Hello! ",
        "Hello, ",
        "Hello nano, ",
        "Hey, ",
        "Hey nano! ",
        "Okay, ",
    ),
    *("Good morning! ", "Good evening, ", "Thanks! ", "Question: ", "Quick question: ", "Next: "),
    *("So ", "Now ", "And ", "Please help me: ", "I have a question. "),
)


def ask(rng: Random, expression: str, *, symbols: bool = True) -> str:
    """A question for the value of an expression.

    Args:
      rng: draws the frame.
      expression: in symbols or words.
      symbols: whether it is in symbols.
    """
    if rng.random() < 0.3:
        frame = COMMON
    else:
        frame = rng.choice(FRAMES + SYMBOL_FRAMES if symbols else FRAMES)
    return casual(rng, frame.format(expression))


def spoken(rng: Random, text: str) -> str:
    """The text, now and then after a greeting or the like, seldom all of it in capitals."""
    draw = rng.random()
    if draw < 0.07:
        opening = rng.choice(_OPENINGS)
        small = opening[-2].isalpha() or opening[-2] in ",:"
        return opening + (text[0].lower() + text[1:] if small and rng.random() < 0.7 else text)
    return text.upper() if draw < 0.08 else text


def casual(rng: Random, text: str) -> str:
    """The text, now and then with a small first letter or without its end mark."""
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.15 and text[-1] in "?.":
        text = text[:-1]
    elif rng.random() < 0.1 and text[-1].isalnum():
        text += rng.choice(".?")
    return text
