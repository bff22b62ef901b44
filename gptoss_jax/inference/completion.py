"""One conversation in, one assistant turn out."""

import dataclasses
import datetime
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gptoss_jax.errors import UserError
from gptoss_jax.inference.engine import Engine, engine_for
from gptoss_jax.inference.requests import Request, check_prompt
from gptoss_jax.inference.runner import Timings
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import StreamDecoder, Tokenizer
from gptoss_jax.text.harmony import (
    AssistantTurn,
    Delta,
    Event,
    HarmonyParser,
    Message,
    ResponseFormat,
    from_chat,
    render_conversation,
    to_turn,
)

DEFAULT_MAX_TOKENS = 4096
_ROOM_STEP = 512


@dataclasses.dataclass(frozen=True)
class Completion:
    """An assistant turn.

    Attributes:
      text: the final channel (or the preamble of a turn that only calls tools).
      reasoning: the analysis channel.
      messages: every harmony message of the turn as a dictionary, empty fields left out.
      finish_reason: "stop", "tool_calls", "length" or "interrupted".
      usage: prompt_tokens, completion_tokens and total_tokens.
      timings: compile_s, prefill_s, prefill_tokens_per_second, decode_tokens_per_second.
    """

    text: str
    reasoning: str
    messages: list[dict[str, Any]]
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]


class Turn:
    """An assistant turn under way: iterate for its text as it comes, then ask for `completion`.

    Not done here: running tools, more than one conversation at a time.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        request: Request,
        *,
        raw: bool = False,
    ):
        """Prepares a turn.

        Args:
          engine: of the model.
          tokenizer: its tokenizer.
          request: the conversation in tokens, and how it goes on.
          raw: no harmony: the output is plain text, special tokens shown by name.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._parser = None if raw else HarmonyParser(tokenizer)
        self._decoder = StreamDecoder(tokenizer)
        self._raw_text: list[str] = []
        self._request = request
        self._last_id: int | None = None
        self._generated = 0
        self._interrupted = False

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yields (channel, text): channel "final", "analysis", "commentary" or "raw"."""
        for _, tokens in self._engine.run([self._request]):
            for token in tokens:
                yield from self._push(token)
            if self._interrupted:
                break
        yield from self._finish()

    def interrupt(self) -> None:
        """Ends the turn after the device call under way, with what was generated until then."""
        self._interrupted = True

    def _push(self, token: int) -> Iterator[tuple[str, str]]:
        self._last_id = token
        self._generated += 1
        if self._parser is not None:
            yield from _shown(self._parser.push(token))
        elif token not in self._tokenizer.stop_ids:
            yield from self._raw(self._decoder.push(token))

    def _finish(self) -> Iterator[tuple[str, str]]:
        if self._parser is not None:
            yield from _shown(self._parser.finish())
        else:
            yield from self._raw(self._decoder.finish())

    def _raw(self, text: str) -> Iterator[tuple[str, str]]:
        if text:
            self._raw_text.append(text)
            yield "raw", text

    def completion(self) -> Completion:
        """The turn so far; complete once iteration has ended."""
        messages = [] if self._parser is None else self._parser.messages
        turn = to_turn(messages)
        prompt_tokens = len(self._request.prompt)
        return Completion(
            text=turn.content if self._parser else "".join(self._raw_text),
            reasoning=turn.reasoning,
            messages=[message_dict(message) for message in messages],
            finish_reason=self._finish_reason(turn),
            usage={
                "prompt_tokens": prompt_tokens,
                "completion_tokens": self._generated,
                "total_tokens": prompt_tokens + self._generated,
            },
            timings=_as_timings(self._engine.timings),
        )

    def _finish_reason(self, turn: AssistantTurn) -> str:
        ended = ended_by(self._tokenizer, self._last_id, turn)
        return ended or ("interrupted" if self._interrupted else "length")


def _shown(events: Iterable[Event]) -> Iterator[tuple[str, str]]:
    """(channel, text) of what the assistant says; a call to a tool is commentary on any channel."""
    for event in events:
        if isinstance(event, Delta) and event.role == "assistant":
            commentary = event.recipient is not None or event.channel == "commentary"
            channel = "analysis" if event.channel == "analysis" else "final"
            yield "commentary" if commentary else channel, event.text


def ended_by(tokenizer: Tokenizer, last_id: int | None, turn: AssistantTurn) -> str | None:
    """How the model ended a turn itself: "tool_calls" or "stop"; None: it did not."""
    if last_id not in tokenizer.stop_ids:
        return None
    return "tool_calls" if turn.tool_calls else "stop"


def message_dict(message: Message) -> dict[str, Any]:
    """A harmony message as `Completion.messages` has it, empty fields left out."""
    return {k: v for k, v in dataclasses.asdict(message).items() if v not in (None, False)}


def _as_timings(timings: Timings) -> dict[str, float]:
    return {
        "compile_s": timings.compile_s,
        "prefill_s": timings.prefill_s,
        "prefill_tokens_per_second": timings.prefill_tokens_per_second,
        "decode_tokens_per_second": timings.decode_tokens_per_second,
    }


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    reasoning_effort: str | None = None,
    response_formats: Sequence[ResponseFormat] = (),
) -> list[int]:
    """Prompt ids of a conversation in the chat API's form, today's date in its system message.

    Raises:
      HarmonyError: a message is not of that form, or the effort is not low, medium or high.
    """
    conversation = from_chat(
        messages,
        response_formats=response_formats,
        effort=reasoning_effort or "medium",  # pyright: ignore[reportArgumentType]
        current_date=datetime.date.today().isoformat(),
    )
    return render_conversation(tokenizer, conversation)


def engine_of_one(
    model: GptOss,
    tokenizer: Tokenizer,
    request: Request,
    report: Callable[[str], None] | None = None,
) -> Engine:
    """An engine for one request, with no more memory than that can need."""
    wanted = len(request.prompt) + request.max_tokens
    # Few sizes, so that what was compiled before is found again.
    room = -(-wanted // _ROOM_STEP) * _ROOM_STEP
    return engine_for(model, tokenizer, 1, max_tokens=room, reuse=False, report=report)


def complete(
    model: GptOss,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    reasoning_effort: str | None = None,
) -> Completion:
    """Answers a conversation.

    Args:
      model: from `load`.
      tokenizer: from `load`.
      messages: dictionaries with "role" and "content" (and what the chat API allows beside them).
      max_tokens: at most this many tokens are generated, reasoning included.
      temperature: 0 is greedy.
      top_p: the smallest set of tokens that holds this much probability.
      top_k: the k likeliest tokens; 0 for all.
      min_p: tokens at least this fraction as likely as the likeliest.
      seed: with a token's position, all that its random numbers depend on.
      reasoning_effort: low, medium (the default) or high.

    Raises:
      UserError: a value of the wrong type or out of its range, or a prompt that leaves no room.
      HarmonyError: a message is not of the chat API's form.
    """
    check_sampling(max_tokens, temperature, top_p, top_k, min_p, seed)
    if tokenizer is None:
        raise UserError("no tokenizer: load one with gptoss_jax.text.load_tokenizer(FILE or DIR)")
    prompt = render_chat(tokenizer, messages, reasoning_effort)
    request = Request(prompt, max_tokens, temperature, top_p, top_k, min_p, seed=seed)
    check_prompt(model.config, prompt, max_tokens)
    turn = Turn(engine_of_one(model, tokenizer, request), tokenizer, request)
    for _ in turn:
        pass
    return turn.completion()


def check_sampling(
    max_tokens: int, temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    """Raises a UserError that names a value of the wrong type or out of its range."""
    for name, value in {"max_tokens": max_tokens, "top_k": top_k, "seed": seed}.items():
        _check_type(name, value, numbers.Integral, "a whole number")
    for name, value in {"temperature": temperature, "top_p": top_p, "min_p": min_p}.items():
        _check_type(name, value, numbers.Real, "a number")
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if not 0 <= top_k < 2**31:
        raise UserError(f"top_k is {top_k}; it must lie in 0 (all tokens)..{2**31 - 1}")
    if not 0 <= min_p <= 1:
        raise UserError(f"min_p is {min_p}; it must lie in 0..1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in 0..{2**32 - 1}")


def _check_type(name: str, value: Any, kind: type, what: str) -> None:
    # Python's True is a number; nobody means it as one.
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UserError(f"{name} is {value!r}; it must be {what}")
