"""An answer of several turns, with tools run between them; what `generate` and `chat` give."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gptoss_jax.text.harmony import Message
from gptoss_jax.tools.loop import ToolLoop

if TYPE_CHECKING:
    from gptoss_jax.inference.completion import Completion, Turn


def answer(
    turn: "Turn",
    loop: ToolLoop,
    *,
    max_tokens: int,
    stream: "Callable[[Turn], None]",
    show: Callable[[Message], None],
) -> "Completion":
    """Runs turns and tools until the model has answered.

    Args:
      turn: the first, not begun.
      loop: of the conversation that the turn follows.
      max_tokens: of all turns together.
      stream: iterates over a turn.
      show: is told what a tool answered.

    Returns:
      All of it as one: the last turn's text and finish reason, everybody's messages, the first
      prompt's tokens and all that were generated. A call that is not run, as the tokens or rounds
      are used up, leaves "length" or "tool_calls".

    Raises:
      UserError: with what the tools said the conversation is larger than the model's context.
    """
    turns: list[Completion] = []
    while True:
        stream(turn)
        said = turn.completion()
        turns.append(said)
        answers = loop.take([Message(**m) for m in said.messages], said.finish_reason)
        for message in answers:
            show(message)
        left = max_tokens - _generated(turns)
        if not answers or left < 1:
            break
        turn = turn.following(loop.conversation, left)
    return _joined(turns, loop.added, cut_off=bool(answers))


def _generated(turns: "Sequence[Completion]") -> int:
    return sum(turn.usage["completion_tokens"] for turn in turns)


def _logprobs(turns: "Sequence[Completion]") -> list[dict[str, Any]] | None:
    if turns[0].logprobs is None:
        return None
    return [one for turn in turns for one in turn.logprobs or ()]


def _joined(
    turns: "Sequence[Completion]", added: Sequence[Message], *, cut_off: bool
) -> "Completion":
    if len(turns) == 1 and not cut_off:
        return turns[0]
    from gptoss_jax.inference.completion import message_dict

    prompt, made = turns[0].usage["prompt_tokens"], _generated(turns)
    return dataclasses.replace(
        turns[-1],
        reasoning="\n".join(turn.reasoning for turn in turns if turn.reasoning),
        messages=[message_dict(message) for message in added],
        finish_reason="length" if cut_off else turns[-1].finish_reason,
        logprobs=_logprobs(turns),
        usage={
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        },
    )
