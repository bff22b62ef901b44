"""Grammars for answers, as masks of the tokens that may come next.

A grammar is over the whole turn: free analysis, then the header of a final message, then the answer
as constrained, then the token that ends the turn; or, with tools, a call to one. llguidance parses
and makes the masks.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import llguidance
import numpy as np
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from gptoss_jax.text import xml_schema
from gptoss_jax.text.endings import Endings
from gptoss_jax.text.errors import GrammarError
from gptoss_jax.text.json_schema import prepared
from gptoss_jax.text.tokenizer import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    Tokenizer,
)

if TYPE_CHECKING:
    from gptoss_jax.text.harmony import ToolFunction

_T = TypeVar("_T")

# The model may call its answer json in the header, with or without a space before.
_TURN = f"""
start: analysis? final
analysis: {CHANNEL} "analysis" {MESSAGE} THOUGHT {END} {START} "assistant"
THOUGHT: /(.|\\n)*/
final: {CHANNEL} "final" json? {MESSAGE} answer
json: " "? {CONSTRAIN} "json"
"""
# A preamble tells the user what will be done. A tool may be named after the role or the channel.
_TOOLS = f"""
start: analysis? (preamble analysis?)? (final | call)
preamble: {CHANNEL} "commentary" {MESSAGE} THOUGHT {END} {START} "assistant"
"""
_CALL = f"""
call{{n}}: to{{n}} {MESSAGE} arguments{{n}} {CALL}
to{{n}}: {{after_role}} {CHANNEL} "commentary" json? | {CHANNEL} {{after_channel}} json?
arguments{{n}}: {{arguments}}
"""
# llguidance's time grows with the square of the symbols, and its stack with the depth of the rules.
_MOST_CHARACTERS = 400_000
_STACK_BYTES = 512 << 20
_STACK_SIZE = threading.Lock()  # the next thread's is the process's
_LIMITS = llguidance.LLParserLimits(max_grammar_size=30_000)
# Tokens: between two looks for an ending, beyond one when that need not be, of the longest.
_LOOK_EVERY = 16
_PLENTY = 256
_MOST_RESERVED = 8  # of so many parts of all tokens one
_LONGEST_ENDING = 1024
_ALONE_SECONDS = 0.002
_ANY_TEXT = "answer: THOUGHT"


def json_schema(schema: Mapping[str, Any] | bool) -> str:
    """The rule of an answer that is JSON and follows a schema.

    Between its tokens a blank may stand, or a line break and an indentation.

    Raises:
      GrammarError: the schema is nested too deep or too large.
    """
    return f"answer: {_json(schema)}"


def _json(schema: Any) -> str:
    try:
        written, separated = (
            f"%json {json.dumps(prepared(schema, separate=separate))}" for separate in (False, True)
        )
    except RecursionError:
        raise GrammarError("it is nested too deep") from None
    _check_size(written)
    if "oneOf constraints are not supported" not in _problem(written):
        return written
    return written if _problem(separated) else separated


def _problem(written: str) -> str:
    return _on_a_large_stack(
        lambda: llguidance.LLMatcher.validate_grammar(f"start: {written}", limits=_LIMITS)
    )


def _check_size(answer: str) -> None:
    if len(answer) > _MOST_CHARACTERS:
        raise GrammarError(
            f"it has {len(answer)} characters; at most {_MOST_CHARACTERS} are compiled"
        )


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

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: str | None,
        *,
        tools: Sequence[ToolFunction] = (),
        raw: bool = False,
    ):
        """Compiles.

        Args:
          tokenizer: of the model.
          answer: of `json_schema`, `regex`, `lark` or `xml`; None for any text.
          tools: functions that may be called instead, and no others, with arguments that follow
            the schema of those that are `strict` and are a JSON object to the others.
          raw: the answer is all there is, without harmony around it.

        Raises:
          GrammarError: in a line, what cannot be compiled and why.
        """
        self._tokenizer, self._endings = _tokenizer_of(tokenizer)
        turn = "start: answer" if raw else _turn(self._tokenizer, tools)
        grammar = f"{turn}\n{answer or _ANY_TEXT}"
        if answer is not None:
            _check_size(answer)
            _check_satisfiable(self._tokenizer, answer)
        self._beginning = _compiled(self._tokenizer, grammar)
        if self._beginning.is_error():
            raise GrammarError(_reason(self._beginning.get_error()))

    @property
    def vocab_size(self) -> int:
        """Ids of its tokenizer."""
        return self._tokenizer.vocab_size

    def matcher(self) -> Matcher:
        """What follows one sequence from its beginning."""
        return Matcher(self._beginning.deep_copy(), self._endings, self._tokenizer.vocab_size)


def _compiled(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    return _on_a_large_stack(
        lambda: llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    )


def _on_a_large_stack(function: Callable[[], _T]) -> _T:
    """A rule that leads to another is a frame more; the main thread's stack holds some hundred."""
    with _STACK_SIZE:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = ThreadPoolExecutor(1)
            future = thread.submit(function)  # which starts it
        finally:
            threading.stack_size(before)
    with thread:
        return future.result()


def _check_satisfiable(tokenizer: llguidance.LLTokenizer, answer: str) -> None:
    """Refuses what cannot be compiled, and what no text begins to follow."""
    alone = _compiled(tokenizer, f"start: answer\n{answer}")
    if not alone.is_error():
        allowed = np.frombuffer(alone.compute_bitmask(), np.uint8)
        if not alone.is_error():  # some are too large only once they are begun
            alone.consume_token(int(np.unpackbits(allowed, bitorder="little").argmax()))
    if "NoExtension" in alone.get_error():
        raise GrammarError("no answer can follow it")
    if alone.is_error():
        raise GrammarError(_reason(alone.get_error()))


def _turn(tokenizer: llguidance.LLTokenizer, tools: Sequence[ToolFunction]) -> str:
    """The rules around an answer."""
    if not tools:
        return _TURN
    calls = " | ".join(f"call{n}" for n in range(len(tools)))
    bodies = [_call(tokenizer, n, tool) for n, tool in enumerate(tools)]
    rest = _TURN.partition("\n")[2].partition("\n")[2]
    return "\n".join([_TOOLS, rest, f"call: {calls}", *bodies])


def _call(tokenizer: llguidance.LLTokenizer, number: int, tool: ToolFunction) -> str:
    if not re.fullmatch(r"[\w.-]+", tool.name):
        raise GrammarError(f"tool {tool.name!r}: its name may have letters, digits and _ . - alone")
    schema: Any = {"type": "object"}
    if tool.strict:
        schema = tool.parameters or {"type": "object", "additionalProperties": False}
    try:
        written = _json(schema)
        _check_satisfiable(tokenizer, f"answer: {written}")
    except GrammarError as error:
        raise GrammarError(f"tool {tool.name}: {error}") from None
    recipient = f"to=functions.{tool.name}"
    return _CALL.format(
        n=number,
        after_role=f'" {recipient}"',
        after_channel=f'"commentary {recipient}"',
        arguments=written,
    )


class Matcher:
    """Which tokens may come next in a sequence.

    Attributes:
      problem: why it can follow the sequence no longer (a limit of the parser was reached), or "".
      hurried: whether it lets nothing come any more but an ending, as tokens ran out.
    """

    def __init__(self, matcher: llguidance.LLMatcher, endings: Endings, vocab_size: int):
        self._matcher = matcher
        self._endings = endings
        self._words = -(-vocab_size // 32)
        self._ending: list[int] = []
        # An ending is looked for once no more than so many tokens are left.
        self._look_at: int | None = None
        # Tokens beyond an ending: at the last look, what went in between two looks, what is kept.
        self._spare: int | None = None
        self._lost = 0
        self._reserve: int | None = None
        self.problem = ""

    @property
    def hurried(self) -> bool:
        """See the class."""
        return bool(self._ending)

    def accept(self, token: int) -> None:
        """Takes the next token of the sequence."""
        if self._ending:
            self._ending.pop(0)
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def hurry(self, left: int) -> None:
        """Says how many tokens may still come: with the last that can, it goes for an ending."""
        if self._ending or self.problem or (self._look_at is not None and left > self._look_at):
            return
        ending = self._endings.find(self._matcher, min(left, _LONGEST_ENDING))
        if self._reserve is None:  # from the beginning: what begins later may call for as much
            shortest = len(ending) if ending else 0
            self._reserve = max(_LOOK_EVERY, min(shortest, left // _MOST_RESERVED))
        if ending is None:
            self._look_at = left // 2 if self._spare is None else left - _LOOK_EVERY
            return
        spare = left - len(ending)
        if spare > _PLENTY:
            self._spare, self._look_at = None, left - spare // 2
            return
        # What is begun until the next look may call for as much as between two others.
        self._lost = max(self._lost, (self._spare or spare) - spare)
        self._spare = spare
        if spare <= max(self._lost, self._reserve):
            self._ending = ending
        else:
            self._look_at = left - _LOOK_EVERY

    def _check(self) -> None:
        if self._matcher.is_error():
            self.problem = _reason(self._matcher.get_error())


def fill_masks(matchers: Sequence[Matcher | None], words_BW: np.ndarray) -> None:
    """Writes a bit for each of the tokenizer's ids, 1 where it may come.

    What takes long is computed on several threads.

    Args:
      matchers: of each row, of one tokenizer; rows of None are left as they are.
      words_BW: int32, 32 ids a word; those past the tokenizer's are never allowed.
    """
    rows = [(row, matcher) for row, matcher in enumerate(matchers) if matcher is not None]
    if not rows:
        return
    width = rows[0][1]._words
    filled_BW = np.zeros((len(rows), width), np.int32)
    free = [(m._matcher, place) for place, (_, m) in enumerate(rows) if not m._ending]
    # Waking threads takes longer than most masks do; those that take long are left to them.
    began = time.perf_counter()
    while free and time.perf_counter() - began < _ALONE_SECONDS:
        matcher, place = free.pop()
        fill_next_token_bitmask(matcher, filled_BW, place)
    if free:
        fill_next_token_bitmask_par(_executor(), free, filled_BW)
    for place, (row, matcher) in enumerate(rows):
        if matcher._ending:
            word, bit = divmod(matcher._ending[0], 32)
            filled_BW[place].view(np.uint32)[word] = 1 << bit
        matcher._check()
        words_BW[row, :width] = filled_BW[place]
        words_BW[row, width:] = 0  # ids that are none of the tokenizer's


@functools.cache
def _executor() -> llguidance.LLExecutor:
    return llguidance.LLExecutor()


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


def _tokenizer_of(tokenizer: Tokenizer) -> tuple[llguidance.LLTokenizer, Endings]:
    """Built once for each tokenizer: of 201,088 ids they take a second."""
    found = _BUILT.get(id(tokenizer))
    if found is None or found[0] is not tokenizer:
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        built = (llguidance.LLTokenizer(wrapper), Endings(tokenizer))
        found = _BUILT[id(tokenizer)] = (tokenizer, built)
    return found[1]


_BUILT: dict[int, tuple[Tokenizer, tuple[llguidance.LLTokenizer, Endings]]] = {}


def _reason(problem: str) -> str:
    """The first line, without the place in a grammar that the user did not write."""
    line = problem.strip().splitlines()[0]
    return re.sub(r"^at \d+\(\d+\): ", "", line)
