"""Grammars for answers, as masks of the tokens that may come next.

A grammar is over the whole turn: free analysis, then the header of a final message, then the answer
as constrained, then the token that ends the turn. llguidance parses and makes the masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import llguidance
from llguidance.numpy import fill_next_token_bitmask

from gptoss_jax.text import xml_schema
from gptoss_jax.text.errors import GrammarError
from gptoss_jax.text.tokenizer import (
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    Tokenizer,
)

if TYPE_CHECKING:
    import numpy as np

# The model may call its answer json in the header, with or without a space before.
_TURN = f"""
start: analysis? final
analysis: {CHANNEL} "analysis" {MESSAGE} THOUGHT {END} {START} "assistant"
THOUGHT: /(.|\\n)*/
final: {CHANNEL} "final" (" "? {CONSTRAIN} "json")? {MESSAGE} answer
"""


def json_schema(schema: Mapping[str, Any] | bool) -> str:
    """The rule of an answer that is JSON and follows a schema."""
    return f"answer: %json {json.dumps(schema)}"


def regex(pattern: str) -> str:
    """The rule of an answer that a regular expression (Rust's syntax) matches as a whole."""
    escaped = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern).replace("\n", "\\n")
    return f"answer: /{escaped}/"


def lark(grammar: str) -> str:
    """The rule of an answer that follows a grammar in Lark's syntax, whose rule is `start`."""
    return f"answer: %lark {{\n{grammar}\n}}"


def xml(schema: str) -> str:
    """The rule of an answer that is XML and follows an XML Schema (a subset, see `xml_schema`).

    Raises:
      GrammarError: the schema is not well-formed or has something that is not in the subset.
    """
    return lark(xml_schema.grammar(schema))


class Constraint:
    """A compiled grammar; every sequence follows it with a `Matcher` of its own."""

    def __init__(self, tokenizer: Tokenizer, answer: str, *, raw: bool = False):
        """Compiles.

        Args:
          tokenizer: of the model.
          answer: of `json_schema`, `regex`, `lark` or `xml`.
          raw: the answer is all there is, without harmony around it.

        Raises:
          GrammarError: in a line, what cannot be compiled and why.
        """
        self._tokenizer = _tokenizer_of(tokenizer)
        self._grammar = f"{'start: answer' if raw else _TURN}\n{answer}"
        problem = llguidance.LLMatcher.validate_grammar(self._grammar, self._tokenizer)
        if problem:
            raise GrammarError(_reason(problem))

    def matcher(self) -> Matcher:
        """What follows one sequence from its beginning."""
        matcher = llguidance.LLMatcher(self._tokenizer, self._grammar, log_level=0)
        return Matcher(matcher, self._tokenizer.vocab_size)


class Matcher:
    """Which tokens may come next in a sequence.

    Attributes:
      problem: why it can follow the sequence no longer (a limit of the parser was reached), or "".
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int):
        self._matcher = matcher
        self._words = -(-vocab_size // 32)
        self.problem = ""

    def mask(self, words_1W: np.ndarray) -> None:
        """Writes a bit for each of the tokenizer's ids into int32 words, 1 where it may come."""
        fill_next_token_bitmask(self._matcher, words_1W[:, : self._words])
        self._check()

    def accept(self, token: int) -> None:
        """Takes the next token of the sequence."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            self.problem = _reason(self._matcher.get_error())


class _Vocabulary:
    """A tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: Tokenizer):
        ids = range(tokenizer.vocab_size)
        pieces = [tokenizer.token_bytes(i) for i in ids]
        self.eos_token_id = tokenizer.token_id(RETURN)
        self.bos_token_id = None
        # An id without a string is a special token that no grammar names.
        self.special_token_ids = [i for i in ids if pieces[i] is None or tokenizer.is_special(i)]
        self.tokens = [pieces[i] or f"<|unused_{i}|>".encode() for i in ids]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text)


def _tokenizer_of(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """Built once for each tokenizer: of 201,088 ids it takes a second."""
    found = _BUILT.get(id(tokenizer))
    if found is None or found[0] is not tokenizer:
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        found = _BUILT[id(tokenizer)] = (tokenizer, llguidance.LLTokenizer(wrapper))
    return found[1]


_BUILT: dict[int, tuple[Tokenizer, llguidance.LLTokenizer]] = {}


def _reason(problem: str) -> str:
    """The first line, without the place in a grammar that the user did not write."""
    line = problem.strip().splitlines()[0]
    return re.sub(r"^at \d+\(\d+\): ", "", line)
