"""Patterns of XML Schema as regular expressions in Rust's syntax, or a part of what they match.

Where the two know different characters under one name (digits, words) the narrower set is taken,
and the wider one of what may not be, so that both match what comes of it.
"""

from __future__ import annotations

import re

from gptoss_jax.text.errors import GrammarError

_TOKEN = re.compile(r"\\[pP]\{[^}]*\}|\\.|-\[|[\s\S]")
_NEGATED_LESS = re.compile(r"\[\^(?:\\.|[^\]\\])*-\[")
_ONE = {"d": "0-9", "w": "A-Za-z0-9", "s": " ", "i": "A-Za-z_:", "c": "A-Za-z0-9._:-"}
_NOT = {"D": r"\P{Nd}", "W": r"\p{P}\p{Z}\p{C}", "S": r"\x{21}-\x{10FFFF}"}
# Of what is taken away: all of them. XML's own names have too many letters to be listed.
_ALL = {"d": r"\p{Nd}", "w": r"\p{L}\p{M}\p{N}\p{S}", "s": r" \t\n\r"}
_LITERAL = set("nrt\\|.?*+(){}-[]^")
_UNSUPPORTED = "is not supported in a pattern"


def translate(pattern: str) -> str:
    """An expression that matches, as a whole, no more than the pattern does.

    Raises:
      GrammarError: something in it is not in the subset.
    """
    if _NEGATED_LESS.search(pattern):
        # Rust would negate what is left after the subtraction.
        raise GrammarError(f"pattern {pattern!r}: [^...-[...]] {_UNSUPPORTED}")
    out, before = [], ""
    taken: list[bool] = []  # of each class that is open: whether what is in it is taken away
    for token in _TOKEN.findall(pattern):
        if not taken and (before, token) == ("(", "?"):
            raise GrammarError(f"pattern {pattern!r}: (? {_UNSUPPORTED}")
        out.append(_class_part(token, before, taken[-1]) if taken else _part(token, pattern))
        if token in ("[", "-["):
            taken.append(bool(taken) and not taken[-1])
        elif token == "^" and before in ("[", "-[") and taken:
            taken[-1] = not taken[-1]
        elif token == "]" and taken:
            taken.pop()
        before = token
    if taken:
        raise GrammarError(f"pattern {pattern!r}: a [ is not closed")
    return "".join(out)


def _part(token: str, pattern: str) -> str:
    if token in ("^", "$", "/"):
        return "\\" + token
    if token == "-[":
        return "\\-["
    if token in ("&", "<", ">", '"'):
        raise GrammarError(f"pattern {pattern!r}: {token} outside of [] {_UNSUPPORTED}")
    inside = _escape(token)
    named = token[0] == "\\" and (token[1] in _ONE or token[1] in _NOT)
    return f"[{inside}]" if named else inside


def _class_part(token: str, before: str, taken: bool) -> str:
    if token == "-[":
        return "--["
    if token == "^" and before in ("[", "-["):
        return token
    if taken and token[0] == "\\" and token[1:] in _ONE:
        if token[1:] not in _ALL:
            raise GrammarError(f"{token} in what is taken away {_UNSUPPORTED}")
        return _ALL[token[1:]]
    return "\\" + token if token in "[&~^/" else _escape(token)


def _escape(token: str) -> str:
    if token[0] != "\\" or len(token) == 1:
        return token
    if token[1] in "pP":
        if token[3:5] == "Is":
            raise GrammarError(f"{token} {_UNSUPPORTED}")
        return token
    if token[1] in _ONE or token[1] in _NOT:
        return _ONE.get(token[1]) or _NOT[token[1]]
    if token[1] not in _LITERAL:
        raise GrammarError(f"{token} {_UNSUPPORTED}")
    return token
