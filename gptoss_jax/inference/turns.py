"""Turns of many conversations."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from gptoss_jax.inference.completion import ended_by, message_dict
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request
from gptoss_jax.text import Tokenizer
from gptoss_jax.text.harmony import HarmonyParser, to_turn


@dataclasses.dataclass(frozen=True)
class BatchTurn:
    """An assistant turn.

    Attributes:
      tokens: its ids, the one that ended it included.
      text: of the final channel.
      messages: every harmony message, as `Completion.messages` has it.
      finish_reason: "stop", "tool_calls" or "length".
    """

    tokens: list[int]
    text: str
    messages: list[dict[str, Any]]
    finish_reason: str


def turn_of(tokenizer: Tokenizer, tokens: list[int]) -> BatchTurn:
    """The turn that these ids are."""
    parser = HarmonyParser(tokenizer)
    for token in tokens:
        parser.push(token)
    parser.finish()
    turn = to_turn(parser.messages)
    reason = ended_by(tokenizer, tokens[-1] if tokens else None, turn) or "length"
    return BatchTurn(tokens, turn.content, [message_dict(m) for m in parser.messages], reason)


def turns(engine: Engine, tokenizer: Tokenizer, asked: Iterable[Request]) -> Iterator[BatchTurn]:
    """The turn of each request, in their order.

    Args:
      engine: of the model.
      tokenizer: its tokenizer.
      asked: how many is not bounded.
    """
    for sequence in [engine.submit(request) for request in asked]:
        while not sequence.ended:
            engine.step()
        yield turn_of(tokenizer, sequence.generated)
