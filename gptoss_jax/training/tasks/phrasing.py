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
    "Please calculate {}.",
    "{}",
    "{}?",
    "{} is what?",
)
# Round symbols only: "the sum of 1 and 2 =" is not what anybody writes.
SYMBOL_FRAMES = ("{} =", "{}=", "{} = ?", "{}=?")


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


def casual(rng: Random, text: str) -> str:
    """The text, now and then with a small first letter or without its end mark."""
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.15 and text[-1] in "?.":
        text = text[:-1]
    elif rng.random() < 0.1 and text[-1].isalnum():
        text += rng.choice(".?")
    return text
