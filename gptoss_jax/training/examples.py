"""What the trainer sees: a conversation's ids and which of them are learned; or two of them."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence

import numpy as np

from gptoss_jax.text import HarmonyError, Tokenizer
from gptoss_jax.text.harmony import Message, assistant_start, render_for_training
from gptoss_jax.text.harmony.history import drop_finished_analysis
from gptoss_jax.text.tokenizer import START


@dataclasses.dataclass(frozen=True)
class Example:
    """A rendered conversation of n tokens.

    Attributes:
      ids_S: int32 [n].
      learn_S: bool [n]; the loss counts the prediction of these tokens.
      reference: of one of a pair, the log-probability of its learned tokens under the reference
        model; None before it is known.
    """

    ids_S: np.ndarray
    learn_S: np.ndarray
    reference: float | None = None

    @property
    def length(self) -> int:
        """Places it takes in a row: each of its tokens but the last is an input."""
        return len(self.ids_S) - 1

    @property
    def segments(self) -> "tuple[Example, ...]":
        """Itself: what a row holds one after another, without seeing each other."""
        return (self,)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two conversations with one beginning: which of them is preferred.

    Attributes:
      chosen: the better.
      rejected: the worse.
    """

    chosen: Example
    rejected: Example

    @property
    def length(self) -> int:
        """Places both take in a row."""
        return self.chosen.length + self.rejected.length

    @property
    def segments(self) -> tuple[Example, ...]:
        """The chosen, then the rejected."""
        return (self.chosen, self.rejected)

    def with_reference(self, chosen: float, rejected: float) -> "Pair":
        """The pair with the reference model's log-probabilities."""
        return Pair(
            dataclasses.replace(self.chosen, reference=chosen),
            dataclasses.replace(self.rejected, reference=rejected),
        )


Unit = Example | Pair  # what stays together in a row


def paired(chosen: Example, rejected: Example) -> Pair:
    """A pair in which only what follows the common beginning is learned: the rest cancels out.

    Raises:
      HarmonyError: there is nothing after it to learn in one of them.
    """
    shorter = min(len(chosen.ids_S), len(rejected.ids_S))
    differ = chosen.ids_S[:shorter] != rejected.ids_S[:shorter]
    begin = int(differ.argmax()) if differ.any() else shorter
    sides = []
    for one in (chosen, rejected):
        learn_S = one.learn_S & (np.arange(len(one.ids_S)) >= begin)
        if not learn_S.any():
            raise HarmonyError("chosen and rejected do not differ in what is learned")
        sides.append(dataclasses.replace(one, learn_S=learn_S))
    return Pair(*sides)


def kind(message: Message) -> str:
    """What `config.data.train_on` calls a message: analysis, final, calls, preamble; "" for others.

    A preamble is text for the user on the commentary channel, before calls.
    """
    if message.role != "assistant":
        return ""
    if message.is_tool_call:
        return "calls"
    if message.is_reasoning:
        return "analysis"
    return "final" if message.is_answer else "preamble"


def example(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    train_on: Collection[str],
    *,
    keep_analysis: bool = False,
) -> Example:
    """Renders a conversation and marks what is learned.

    Of a message on a channel of `train_on` that is all the model has to produce: header, content
    and end token. `<|start|>assistant` is the prompt's for the first message of a turn; for the
    next ones the model writes it itself, so there it is learned too. Earlier turns whose analysis
    is dropped are context only: to learn them as they then stand is to learn not to think.

    Args:
      tokenizer: must have the harmony specials.
      messages: what follows the last assistant message is left out: nobody answers it.
      train_on: of "analysis", "final", "calls", "preamble".
      keep_analysis: show the analysis of earlier turns too.

    Raises:
      HarmonyError: there is no assistant message on those channels, or it cannot be rendered.
    """
    messages = list(messages)
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise HarmonyError("no assistant turn, so there is nothing to learn")
    thoughtless: set[int] = set()
    if not keep_analysis:
        messages, thoughtless = _drop_analysis(messages)
    ids, learn = render_for_training(tokenizer, messages, keep_analysis=True)
    ids_S = np.asarray(ids, np.int32)
    learn_S = np.asarray(learn)
    # Content never holds a special id, so each <|start|> begins a message.
    starts = np.flatnonzero(ids_S == tokenizer.token_id(START)).tolist()
    header = len(assistant_start(tokenizer))
    for n, (message, start) in enumerate(zip(messages, starts, strict=True)):
        stop = starts[n + 1] if n + 1 < len(starts) else len(ids)
        if kind(message) not in train_on or n in thoughtless:
            learn_S[start:stop] = False
        elif n and _goes_on(messages[n - 1]):
            learn_S[start : start + header] = True
    if not learn_S.any():
        raise HarmonyError(f"no assistant message on a trained channel ({', '.join(train_on)})")
    return Example(ids_S, learn_S)


def _drop_analysis(messages: Sequence[Message]) -> tuple[list[Message], set[int]]:
    """(what a prompt shows, the places in it of turns that have lost some of it)."""
    kept = drop_finished_analysis(messages, for_completion=False)
    shown = {id(message) for message in kept}
    # A turn is what stands between messages that are neither the assistant's nor tools' answers.
    begins = itertools.accumulate(m.role not in ("assistant", "tool") for m in messages)
    turns = {id(message): turn for message, turn in zip(messages, begins, strict=True)}
    lossy = {turns[id(message)] for message in messages if id(message) not in shown}
    return kept, {n for n, message in enumerate(kept) if turns[id(message)] in lossy}


def _goes_on(message: Message) -> bool:
    """Whether the model writes another message after this one instead of stopping."""
    return kind(message) in ("analysis", "preamble")
