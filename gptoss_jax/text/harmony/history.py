"""Which messages of a conversation a prompt still shows."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_jax.text.harmony.messages import ANALYSIS, FINAL, Message


def drop_finished_analysis(messages: Sequence[Message], for_completion: bool) -> list[Message]:
    """Drops the analysis of turns that ended in a `final`, as the format asks.

    Within a tool loop, that is after the last `final`, analysis stays. Calls made on the analysis
    channel (built-in tools) go with it, and the answers to them too, whatever channel these name.

    Args:
      messages: the conversation.
      for_completion: the assistant speaks next. If not, the messages after the last one of another
        role are a turn still being looked at (training), and keep their analysis.
    """
    end = len(messages)
    if not for_completion:
        while end and messages[end - 1].role == "assistant":
            end -= 1
    finished = max((i for i in range(end) if messages[i].channel == FINAL), default=-1)
    kept: list[Message] = []
    dropped_calls: set[str] = set()
    for i, message in enumerate(messages):
        if i < finished and _goes(message, dropped_calls):
            continue
        kept.append(message)
    return kept


def _goes(message: Message, dropped_calls: set[str]) -> bool:
    if message.role == "tool":
        answers_dropped = message.name in dropped_calls
        return message.channel == ANALYSIS or answers_dropped
    if message.channel != ANALYSIS:
        # A call that stays: its answer stays too, even if an earlier call of that tool went.
        dropped_calls.discard(message.recipient or "")
        return False
    if message.is_tool_call and message.recipient:
        dropped_calls.add(message.recipient)
    return True


def drop_as_openai_harmony(messages: Sequence[Message]) -> list[Message]:
    """Drops what openai-harmony 0.0.8 drops.

    That is analysis before the *first* final, and only if the last assistant message is a final.
    """
    assistant = [m for m in messages if m.role == "assistant"]
    if not assistant or assistant[-1].channel != FINAL:
        return list(messages)
    first = next(i for i, m in enumerate(messages) if m.channel == FINAL)
    return [m for i, m in enumerate(messages) if i >= first or m.channel != ANALYSIS]
