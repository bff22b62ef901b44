"""What is asked of the engine, in tokens, and what has become of it."""

import dataclasses
import enum
from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gptoss_jax.errors import UserError
from gptoss_jax.inference.lookup import Lookup
from gptoss_jax.model.config import Config

if TYPE_CHECKING:
    from gptoss_jax.inference.adapters import Resident
    from gptoss_jax.text.constraints import Constraint, Matcher

# The most of the likeliest tokens whose log-probabilities may be asked for.
MOST_LOGPROBS = 20


class TokenLogprobs(NamedTuple):
    """Natural logarithms of probabilities at one token's place.

    They are of the model's own distribution: before penalties, biases, constraints, temperature
    and filters, which say what is done with it.

    Attributes:
      chosen: of the token that came.
      likeliest: (id, log-probability) of as many tokens as were asked for, the likeliest first.
    """

    chosen: float
    likeliest: list[tuple[int, float]]


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
      repetition_penalty: logits of tokens in prompt and answer are divided by it where positive,
        multiplied by it where not, as Hugging Face transformers do; 1 for none.
      presence_penalty: taken off the logits of tokens in the answer, as the OpenAI API does.
      frequency_penalty: the same, as often as a token is there.
      logit_bias: by id, what is added to logits.
      seed: with a token's position, all that its random numbers depend on.
      logprobs: of so many of the likeliest tokens, up to 20, and of the chosen one at each place;
        0: of the chosen one alone; None: of none. Of the model's own distribution, see
        `TokenLogprobs`.
      stop: strings that end the answer. They are `TurnReader`'s to find, the engine knows no text.
      priority: requests of a higher one begin first.
      constraint: what the answer must follow, None for nothing.
      adapter: the name of one of the engine's, None for the model alone.
    """

    prompt: Tokens[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None
    stop: Tokens[str] = ()
    priority: int = 0
    constraint: "Constraint | None" = None
    adapter: str | None = None

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed by what was said, or by a bias."""
        penalties = (self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        return any(penalties) or bool(self.logit_bias)


def copies(request: Request, count: int) -> list[Request]:
    """A request `count` times, the seed of copy i being i more (modulo 2**32).

    So the first is the request itself, and each can be had alone. Where an engine reuses prefixes,
    copies that are submitted together have their prompt's whole pages computed once.
    """
    seeds = [(request.seed + index) % 2**32 for index in range(count)]
    return [dataclasses.replace(request, seed=seed) for seed in seeds]


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
      ends: numbers of pages after which a chunk of its prompt ends, for others to go on from there.
      reused: prompt tokens that were in the cache already.
      served: the number of the step that last prefilled it.
      begun: how often it was given pages: more than once, if it was displaced.
      cancelled: to be ended before the next step.
      matcher: of its request's constraint.
      logprobs: of each generated token, if the request asks for them.
      adapter: of its request's name.
      lookup: what it may say next.
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
    ends: set[int] = dataclasses.field(default_factory=set)
    reused: int = 0
    served: int = 0
    begun: int = 0
    cancelled: bool = False
    matcher: "Matcher | None" = None
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    adapter: "Resident | None" = None
    lookup: Lookup = dataclasses.field(default_factory=Lookup)

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def begun_to_answer(self) -> bool:
        """Whether there are any tokens after the prompt."""
        return len(self.tokens) > len(self.request.prompt)

    @property
    def cut_short(self) -> str | None:
        """Why its end is not the model's own: "error", a constraint that gave up, or "length"."""
        if self.matcher is None:
            return None
        return "error" if self.matcher.problem else "length" if self.matcher.hurried else None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.stage is Stage.ENDED


def check_prompt(config: Config, prompt: Tokens[int], max_tokens: int) -> None:
    """Raises a UserError for what no engine can run; needs no weights."""
    try:
        ids = np.asarray(prompt)
    except ValueError:  # lists of different lengths
        ids = np.zeros((1, 1))
    if ids.shape == (0,):
        raise UserError("the prompt has no tokens")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError("the prompt is no sequence of token ids; render or encode it first")
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if len(outside):
        raise UserError(
            f"prompt token {outside[0]} is outside the model's {config.vocab_size}-token "
            "vocabulary; use the tokenizer that belongs to the checkpoint"
        )
    if len(prompt) >= config.max_context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens; the model's context is "
            f"{config.max_context}, and at least one is needed for the answer"
        )
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; it must be at least 1")
