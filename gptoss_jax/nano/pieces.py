"""nano's vocabulary: single characters, bytes, and whole phrases where the text is always the same.

Words are spelled: a phrase begins or ends inside no ordinary word, so that the model sees every
letter and digit that it works with. The exceptions are the words of harmony's headers.
"""

from gptoss_jax.text.harmony import system_message
from gptoss_jax.text.harmony.prompt import EFFORTS
from gptoss_jax.training.tasks import calculator, json_answers, recall, refusal

UNKNOWN = "<unk>"
SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
# Space to tilde, and what else prompts are written with.
CHARACTERS = ("\n", *map(chr, range(0x20, 0x7F)), "×", "÷", "’", "“", "”", "−")
HEADER_WORDS = (
    "system",
    "developer",
    "user",
    "assistant",
    "analysis",
    "commentary",
    "final",
    "json",
    "functions.calculator",
)
_HEADERS = (" to=functions.calculator", " to=assistant")
_DEVELOPER = (
    "# Instructions\n\n",
    "\n\n# Tools\n\n",
    "# Tools\n\n",
    "## functions\n\nnamespace functions {\n\n",
    "// Evaluates an arithmetic expression.\n",
    "type calculator = (_: {\n",
    "// The expression to evaluate.\n",
    "expression: string,\n",
    "}) => any;\n\n} // namespace functions",
    "# Response Formats\n\n## ",
    "You are a helpful assistant.",
)
# No truth value is one piece with the end of its key: it would have to be looked up before the key
# has been read, and nano then says true whatever was said.
_JSON = (
    '\n\n{"type":"object","properties":{"',
    '":{"type":"string"},"',
    '":{"type":"integer"},"',
    '":{"type":"boolean"},"',
    '":{"type":"string"}}',
    '":{"type":"integer"}}',
    '":{"type":"boolean"}}',
    ',"required":["',
    '"],"additionalProperties":false}',
    ',"additionalProperties":false}',
    '"]}',
    '{"expression":"',
    '{"result": ',
    '{"',
    '":"',
    '","',
    '":',
    ',"',
    '"}',
)
_ANALYSIS = (
    "\nunits ",
    "\ntens ",
    "\nhundreds ",
    "\nthousands ",
    ", write ",
    ", carry ",
    ", borrow ",
    "\nCheck ",
    "Spell:",
    "\nBack:",
    "\nOrder:",
    "\nCheck:",
    "\nSo ",
    *(f" {n}:" for n in range(1, 13)),
    calculator.CALL_ANALYSIS,
    calculator.RESULT_ANALYSIS,
    calculator.NO_RESULT_ANALYSIS,
    calculator.NO_RESULT,
    recall.ABSENT,
    recall.ASKED,
    json_answers.ANALYSIS,
    refusal.REFUSAL_ANALYSIS,
    refusal.ABOUT_ANALYSIS,
    refusal.CHECKED,
    refusal.REFUSAL,
    refusal.ABOUT,
)
_PROMPTS = (
    "What is ",
    "what is ",
    "What's ",
    "What does ",
    "How much is ",
    "How many ",
    "How do ",
    "Calculate ",
    "Compute ",
    "Work out ",
    "Tell me ",
    "Solve ",
    "Add ",
    "Subtract ",
    "Multiply ",
    "Reverse ",
    "Sort ",
    "Count ",
    "Spell ",
    "Write ",
    "Please ",
    "Can you ",
    "Use the calculator",
    "Remember these codes: ",
    "the letters of ",
    "the letter ",
    "the word ",
    "the sum of ",
    " plus ",
    " minus ",
    " times ",
    " and ",
    " from ",
    " is ",
    " in ",
    "Where ",
    "Who ",
    " of ",
    " has ",
    " letters ",
    " are in ",
    " are there in ",
    " does ",
    " backwards",
    " alphabetically",
    " in alphabetical order",
    " have?",
    " is not ",
    " years old",
    " lives in ",
    " + ",
    " - ",
    " * ",
    " × ",
    " = ",
    ", ",
    ". ",
    ": ",
    "; ",
    "'s ",
)


def phrases() -> list[str]:
    """All pieces of more than one character, in the order of their ids."""
    fixed = (*HEADER_WORDS, *_HEADERS, *_DEVELOPER, *_JSON, *_ANALYSIS, *_PROMPTS)
    return list(dict.fromkeys([*_system(), *fixed]))


def _system() -> list[str]:
    """The system message around its date, and its line about function tools."""
    messages = {effort: system_message(effort, "0").content for effort in EFFORTS}
    heads, tails = zip(*(text.split("0\n") for text in messages.values()), strict=True)
    line = system_message("low", "0", function_tools=True).content.removeprefix(messages["low"])
    no_date = system_message("low", None).content.split("\n\n")[0]
    # Dates begin with 20; the "\n" before the tails was the split's.
    date = heads[0].removeprefix(no_date) + "20"
    return [no_date, date, *(f"\n{tail}" for tail in tails), line]
