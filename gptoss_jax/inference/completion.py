"""One conversation in, one assistant turn out."""

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from gptoss_jax.errors import UserError
from gptoss_jax.inference.checks import check_sampling
from gptoss_jax.inference.engine import Engine, engine_for
from gptoss_jax.inference.reading import TurnReader
from gptoss_jax.inference.requests import Request, TokenLogprobs, check_prompt, copies
from gptoss_jax.inference.runner import Timings
from gptoss_jax.inference.service import Service
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import Tokenizer
from gptoss_jax.text.harmony import (
    AssistantTurn,
    Message,
    ResponseFormat,
    ToolFunction,
    ToolNamespace,
    from_chat,
    render_conversation,
    to_turn,
)

DEFAULT_MAX_TOKENS = 4096
_ROOM_STEP = 512
_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Completion:
    """An assistant turn.

    Attributes:
      text: the final channel (or the preamble of a turn that only calls tools).
      reasoning: the analysis channel.
      messages: every harmony message of the turn as a dictionary, empty fields left out.
      finish_reason: "stop" (by the model or a stop string), "tool_calls", "length" (a constrained
        answer may be brought to a legal end then), "error" (its constraint gave up) or
        "interrupted".
      usage: prompt_tokens, completion_tokens and total_tokens.
      timings: compile_s, prefill_s, prefill_tokens_per_second, decode_tokens_per_second, and of
        what was guessed the share that was right, guesses_right.
      logprobs: of each generated token its id, text, logprob, and as "top" the same of the
        likeliest ones, of the model's own distribution; None where that was not asked for.
    """

    text: str
    reasoning: str
    messages: list[dict[str, Any]]
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]
    logprobs: list[dict[str, Any]] | None = None


class Asked(Protocol):
    """What a turn reads of its request under way: an engine's `Sequence`, a service's `Stream`."""

    @property
    def request(self) -> Request: ...

    @property
    def logprobs(self) -> list[TokenLogprobs]: ...

    @property
    def cut_short(self) -> str | None: ...


class Turn:
    """An assistant turn under way: iterate for its text as it comes, then ask for `completion`.

    Turns of one engine run together, whichever of them is iterated.

    Not done here: running tools (`answer`).
    """

    def __init__(
        self,
        engine: Engine | Service,
        tokenizer: Tokenizer,
        request: Request,
        *,
        raw: bool = False,
    ):
        """Submits a turn's request.

        Args:
          engine: of the model, here or on a thread of its own.
          tokenizer: its tokenizer.
          request: the conversation in tokens, and how it goes on.
          raw: no harmony: the output is plain text, special tokens shown by name.

        Raises:
          UserError: the engine cannot run the request.
        """
        # What `submit` of either gives, its `follow` takes.
        self._engine: Any = engine
        self._tokenizer = tokenizer
        self._reader = TurnReader(tokenizer, request.stop, raw=raw)
        self._sequence: Asked = engine.submit(request)
        self._tokens: list[int] = []
        self._interrupted = False

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yields (channel, text), as `TurnReader` gives them."""
        for tokens in self._engine.follow(self._sequence):
            for token in tokens:
                self._tokens.append(token)
                yield from self._reader.push(token)
                if self._reader.stopped:
                    break
            if self._interrupted or self._reader.stopped:
                break
        yield from self._reader.finish()

    def interrupt(self) -> None:
        """Ends the turn with what was generated until then.

        An engine's after the device call under way, a service's at once.
        """
        self._interrupted = True
        self._engine.cancel(self._sequence)

    def following(self, conversation: Sequence[Message], max_tokens: int) -> "Turn":
        """A turn of the same kind after a conversation, as this one's with what tools said."""
        prompt = render_conversation(self._tokenizer, conversation)
        asked = dataclasses.replace(self._sequence.request, prompt=prompt, max_tokens=max_tokens)
        return Turn(self._engine, self._tokenizer, asked)

    def completion(self) -> Completion:
        """The turn so far; complete once iteration has ended."""
        messages = self._reader.messages
        turn = to_turn(messages)
        prompt_tokens, generated = len(self._sequence.request.prompt), len(self._tokens)
        return Completion(
            text=self._reader.text,
            reasoning=turn.reasoning,
            messages=[message_dict(message) for message in messages],
            finish_reason=self._finish_reason(turn),
            usage={
                "prompt_tokens": prompt_tokens,
                "completion_tokens": generated,
                "total_tokens": prompt_tokens + generated,
            },
            timings=_as_timings(self._engine.timings),
            logprobs=self._logprobs(),
        )

    def _finish_reason(self, turn: AssistantTurn) -> str:
        if self._reader.stopped:
            return "stop"
        ended = ended_by(self._tokenizer, self._tokens[-1] if self._tokens else None, turn)
        return (
            self._sequence.cut_short or ended or ("interrupted" if self._interrupted else "length")
        )

    def _logprobs(self) -> list[dict[str, Any]] | None:
        if self._sequence.request.logprobs is None:
            return None

        def shown(id_: int, logprob: float) -> dict[str, Any]:
            return {"id": id_, "text": self._tokenizer.decode([id_]), "logprob": logprob}

        # What came after a stop string is not told.
        told = zip(self._tokens, self._sequence.logprobs, strict=False)
        return [
            shown(id_, one.chosen) | {"top": [shown(*other) for other in one.likeliest]}
            for id_, one in told
        ]


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
        "guesses_right": timings.right_tokens / max(1, timings.guessed_tokens),
    }


def chat_conversation(
    messages: Sequence[Mapping[str, Any]],
    reasoning_effort: str | None = None,
    response_formats: Sequence[ResponseFormat] = (),
    *,
    functions: Sequence[ToolFunction] = (),
    namespaces: Sequence[ToolNamespace] = (),
    current_date: str | None = None,
) -> list[Message]:
    """A conversation in the chat API's form as harmony has it, with the date in its system message.

    Args:
      messages: as `complete` takes them.
      reasoning_effort: low, medium (the default) or high.
      response_formats: that the system message tells of.
      functions: that may be called.
      namespaces: of built-in tools.
      current_date: YYYY-MM-DD; None for today's.

    Raises:
      HarmonyError: a message is not of that form, or the effort is not low, medium or high.
    """
    return from_chat(
        messages,
        tools=functions,
        response_formats=response_formats,
        builtin_tools=namespaces,
        effort=reasoning_effort or "medium",  # pyright: ignore[reportArgumentType]
        current_date=current_date or today(),
    )


def today() -> str:
    """YYYY-MM-DD."""
    return datetime.date.today().isoformat()


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    reasoning_effort: str | None = None,
    response_formats: Sequence[ResponseFormat] = (),
) -> list[int]:
    """Prompt ids of `chat_conversation`."""
    conversation = chat_conversation(messages, reasoning_effort, response_formats)
    return render_conversation(tokenizer, conversation)


def engine_of_few(
    model: GptOss,
    tokenizer: Tokenizer,
    asked: Sequence[Request],
    report: Callable[[str], None] | None = None,
    *,
    more: int = 0,
    **options: Any,
) -> Engine:
    """An engine for some requests, up to 16 at once, with no more memory than these can need.

    Args:
      model: the network.
      tokenizer: its tokenizer.
      asked: the first ones, if there is `more`.
      report: as `Engine` takes it.
      more: tokens that others will put between a request's own, so that more requests follow.
      **options: of `Engine`.
    """
    wanted = max(len(request.prompt) + request.max_tokens for request in asked) + more
    # Few sizes, so that what was compiled before is found again.
    room = -(-wanted // _ROOM_STEP) * _ROOM_STEP
    at_once = min(len(asked), _AT_ONCE)
    reuse = len(asked) > 1 or more > 0
    options |= {"max_tokens": room, "reuse": reuse, "report": report}
    return engine_for(model, tokenizer, at_once, **options)


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
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
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
      repetition_penalty: of tokens in prompt and answer, as Hugging Face transformers have it; 1
        for none.
      presence_penalty: of tokens in the answer, -2..2, as the OpenAI API has it.
      frequency_penalty: the same, as often as a token is there.
      logit_bias: by id, -100..100 to be added to the logits.
      stop: strings that end the final channel's text; they are not in it.
      logprobs: how many of the likeliest tokens are told with their log-probabilities beside each
        chosen one, 0..20; None for nothing.
      seed: with a token's position, all that its random numbers depend on.
      reasoning_effort: low, medium (the default) or high.

    Raises:
      UserError: a value of the wrong type or out of its range, or a prompt that leaves no room.
      HarmonyError: a message is not of the chat API's form.
    """
    request = Request(
        (),
        max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias={} if logit_bias is None else logit_bias,
        seed=seed,
        logprobs=logprobs,
        stop=stop,
    )
    (completion,) = completions(
        model, tokenizer, messages, request, reasoning_effort=reasoning_effort
    )
    return completion


def completions(
    model: GptOss,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    request: Request,
    count: int = 1,
    *,
    reasoning_effort: str | None = None,
) -> list[Completion]:
    """Several answers to a conversation, whose prompt is computed once as far as pages go.

    Args:
      model: from `load`.
      tokenizer: from `load`.
      messages: as in `complete`.
      request: how they are sampled; its prompt is not looked at. For the seeds see `copies`.
      count: of answers.
      reasoning_effort: low, medium (the default) or high.

    Raises:
      UserError: as `complete`.
      HarmonyError: as `complete`.
    """
    check_sampling(request, model.config.vocab_size)
    if tokenizer is None:
        raise UserError("no tokenizer: load one with gptoss_jax.text.load_tokenizer(FILE or DIR)")
    prompt = render_chat(tokenizer, messages, reasoning_effort)
    check_prompt(model.config, prompt, request.max_tokens)
    asked = copies(dataclasses.replace(request, prompt=prompt), count)
    engine = engine_of_few(model, tokenizer, asked)
    under_way = [Turn(engine, tokenizer, one) for one in asked]
    for turn in under_way:
        for _ in turn:
            pass
    return [turn.completion() for turn in under_way]
