"""Turns of many conversations."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from gptoss_jax.inference.completion import ended_by, message_dict
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.reading import TurnReader
from gptoss_jax.inference.requests import Request, Sequence, TokenLogprobs
from gptoss_jax.text import Tokenizer
from gptoss_jax.text.harmony import to_turn


@dataclasses.dataclass(frozen=True)
class BatchTurn:
    """An assistant turn.

    Attributes:
      tokens: its ids, the one that ended it included, and none after that.
      text: of the final channel.
      messages: every harmony message, as `Completion.messages` has it.
      finish_reason: "stop" (by the model or a stop string), "tool_calls", "length" (a constrained
        answer may be brought to a legal end then) or "error" (its constraint gave up).
      logprobs: of each token, where the request asks for them.
    """

    tokens: list[int]
    text: str
    messages: list[dict[str, Any]]
    finish_reason: str
    logprobs: list[TokenLogprobs] | None = None


def turn_of(tokenizer: Tokenizer, tokens: list[int], stops: Iterable[str] = ()) -> BatchTurn:
    """The turn that these ids are, up to a stop string."""
    reader = TurnReader(tokenizer, stops)
    for count, token in enumerate(tokens, 1):
        reader.push(token)
        if reader.stopped:
            tokens = tokens[:count]
            break
    return _turn(tokenizer, tokens, reader)


def turns(engine: Engine, tokenizer: Tokenizer, asked: Iterable[Request]) -> Iterator[BatchTurn]:
    """The turn of each request, in their order.

    Args:
      engine: of the model.
      tokenizer: its tokenizer.
      asked: how many is not bounded. Whoever stops iterating cancels the rest, as does one that
        cannot be.
    """
    sequences: list[Sequence] = []
    try:
        sequences.extend(engine.submit(request) for request in asked)
        yield from _in_order(engine, tokenizer, sequences)
    finally:
        for sequence in sequences:
            engine.cancel(sequence)


def _in_order(
    engine: Engine, tokenizer: Tokenizer, sequences: list[Sequence]
) -> Iterator[BatchTurn]:
    under_way = {s: _UnderWay(TurnReader(tokenizer, s.request.stop), []) for s in sequences}
    for sequence in sequences:
        while not (sequence.ended or under_way[sequence].reader.stopped):
            for fresh in engine.step():
                if fresh in under_way and under_way[fresh].take(fresh):
                    engine.cancel(fresh)
        one = under_way.pop(sequence)
        one.take(sequence)  # what came while somebody else had the engine step
        turn = _turn(tokenizer, one.tokens, one.reader, sequence.cut_short)
        if sequence.request.logprobs is not None:
            told = sequence.logprobs[: len(one.tokens)]
            turn = dataclasses.replace(turn, logprobs=told)
        yield turn


@dataclasses.dataclass
class _UnderWay:
    reader: TurnReader
    tokens: list[int]

    def take(self, sequence: Sequence) -> bool:
        """Reads its new tokens; whether a stop string was found."""
        for token in sequence.generated[len(self.tokens) :]:
            if not self.reader.stopped:
                self.reader.push(token)
                self.tokens.append(token)
        return self.reader.stopped


def _turn(
    tokenizer: Tokenizer, tokens: list[int], reader: TurnReader, cut_short: str | None = None
) -> BatchTurn:
    reader.finish()
    turn = to_turn(reader.messages)
    ended = ended_by(tokenizer, tokens[-1] if tokens else None, turn)
    reason = "stop" if reader.stopped else cut_short or ended or "length"
    return BatchTurn(tokens, turn.content, [message_dict(m) for m in reader.messages], reason)
