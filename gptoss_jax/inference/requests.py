"""What is asked of the engine, in tokens, and what has become of it."""

import dataclasses
import enum
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING

from gptoss_jax.errors import UserError
from gptoss_jax.model.config import Config

if TYPE_CHECKING:
    from gptoss_jax.text.constraints import Constraint, Matcher


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
      prompt: token ids.
      max_tokens: at most this many are generated.
      temperature: 0 is greedy.
      top_p: the smallest set of tokens that holds this much probability.
      top_k: the k likeliest tokens; 0 for all.
      min_p: tokens at least this fraction as likely as the likeliest.
      seed: with a token's position, all that its random numbers depend on.
      priority: requests of a higher one begin first.
      constraint: what the answer must follow, None for nothing.
    """

    prompt: Tokens[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    priority: int = 0
    constraint: "Constraint | None" = None


class Stage(enum.Enum):
    """Where a sequence is."""

    WAITING = enum.auto()  # it holds nothing
    PREFILLING = enum.auto()
    DECODING = enum.auto()
    ENDED = enum.auto()  # it holds nothing any more


@dataclasses.dataclass(eq=False)
class Sequence:
    """A request under way.

    Attributes:
      request: what was asked.
      order: of its submission.
      limit: how many tokens it may have, prompt included.
      tokens: of the prompt and, after them, generated.
      stage: where it is.
      computed: how many of its tokens are in the cache.
      part: of the devices' sequences, where those are split.
      pages: ids, in the order of positions.
      ring: id, or 0 for none.
      source: the ring its next prefill chunk goes on from; another's, if not its own.
      keys: of the prompt's whole pages.
      reused: prompt tokens that were in the cache already.
      served: the number of the step that last prefilled it.
      cancelled: to be ended before the next step.
      matcher: of its request's constraint.
    """

    request: Request
    order: int
    limit: int
    tokens: list[int]
    stage: Stage = Stage.WAITING
    computed: int = 0
    part: int = 0
    pages: list[int] = dataclasses.field(default_factory=list)
    ring: int = 0
    source: int = 0
    keys: list[bytes] = dataclasses.field(default_factory=list)
    reused: int = 0
    served: int = 0
    cancelled: bool = False
    matcher: "Matcher | None" = None

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.stage is Stage.ENDED


def check_prompt(config: Config, prompt: Tokens[int], max_tokens: int) -> None:
    """Raises a UserError for what no engine can run; needs no weights."""
    if not len(prompt):
        raise UserError("the prompt has no tokens")
    if min(prompt) < 0 or max(prompt) >= config.vocab_size:
        raise UserError(
            f"prompt token {max(prompt)} is outside the model's {config.vocab_size}-token "
            "vocabulary; use the tokenizer that belongs to the checkpoint"
        )
    if len(prompt) >= config.max_context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens; the model's context is "
            f"{config.max_context}, and at least one is needed for the answer"
        )
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; it must be at least 1")
