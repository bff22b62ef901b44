"""Turns of many conversations, a batch of one size at a time, so that few programs are compiled."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptoss_jax.inference.completion import ended_by, message_dict
from gptoss_jax.inference.generator import Generator
from gptoss_jax.inference.sampling import Sampling
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


def turns(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_tokens: int,
) -> Iterator[BatchTurn]:
    """The turn of each prompt, in order.

    Args:
      generator: the model.
      tokenizer: its tokenizer.
      prompts: token ids; how many is not bounded.
      sampling: of a batch, whose size is that of every batch.
      max_tokens: at most this many a turn.
    """
    size = len(sampling.seed_B)
    for first in range(0, len(prompts), size):
        batch = [list(prompt) for prompt in prompts[first : first + size]]
        padded = batch + batch[-1:] * (size - len(batch))
        parts = list(generator.run(padded, sampling, max_tokens))
        for row in np.concatenate(parts, axis=1)[: len(batch)]:
            yield turn_of(tokenizer, row[row >= 0].tolist())
