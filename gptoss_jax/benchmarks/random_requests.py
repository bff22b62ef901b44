"""Random requests: each is drawn from the run's seed and its own number alone.

Whatever a request can ask of the engine has a function here, named in `_FEATURES`, that draws it;
what that does to the tokens, `alone.Alone` has to know too.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptoss_jax.inference.requests import Request, copies
from gptoss_jax.text import Tokenizer, constraints
from gptoss_jax.text.constraints import Constraint

# Tokens. Beginnings that requests share end within a page, at its end, and after two; most answers
# stay in a page, and some go on through two more.
LONGEST_OWN, SHORT_ANSWER, LONGEST_ANSWER = 90, 30, 280
_BEGINNINGS = (0, 0, 100, 128, 256, 256)
LONGEST_PROMPT = max(_BEGINNINGS) + LONGEST_OWN
LONGEST = LONGEST_PROMPT + LONGEST_ANSWER
_STOPPING = list("aeinorst 01:")  # what stop strings are made of: often said


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A request, and when it is given up.

    Attributes:
      number: from 0.
      request: for the engine.
      cancelled_after: steps after its submission; None: it is let run.
      goes_on: whether it is to go on from an answer, if there is one that leaves room.
    """

    number: int
    request: Request
    cancelled_after: int | None
    goes_on: bool = False

    def after(self, tokens: Sequence[int], adapter: str | None) -> "Drawn":
        """With all that was said before its own prompt, or the end of that."""
        own = self.request.prompt[-min(len(self.request.prompt), LONGEST_PROMPT - len(tokens)) :]
        request = dataclasses.replace(self.request, prompt=[*tokens, *own], adapter=adapter)
        return dataclasses.replace(self, request=request)


class Source:
    """Draws requests, as many as asked for."""

    def __init__(self, seed: int, tokenizer: Tokenizer, vocab_size: int, adapters: Sequence[str]):
        """Prepares.

        Args:
          seed: of the run.
          tokenizer: for constraints.
          vocab_size: ids that prompts may have.
          adapters: names to choose from.
        """
        self._seed = seed
        self.vocab_size = vocab_size
        self.adapters = adapters
        schema = {"type": "array", "items": {"enum": [1, 22, "x"]}, "maxItems": 5}
        self.constraints = [
            Constraint(tokenizer, constraints.regex("[a-f ]{3,30}"), raw=True),
            Constraint(tokenizer, constraints.json_schema(schema), raw=True),
            Constraint(tokenizer, constraints.regex("(yes|no)")),
        ]

    def draw(self, number: int) -> Drawn:
        """The request of a number; some three that follow each other are copies of one."""
        first = number - number % 3
        is_copy = np.random.default_rng((self._seed, first, 1)).random() < 0.15
        request = self._request(first if is_copy else number)
        if is_copy:
            request = copies(request, 3)[number % 3]
        rng = np.random.default_rng((self._seed, number, 2))
        cancelled = int(rng.integers(0, 30)) if rng.random() < 0.15 else None
        return Drawn(number, request, cancelled, goes_on=bool(rng.random() < 0.2))

    def _request(self, number: int) -> Request:
        rng = np.random.default_rng((self._seed, number, 0))
        fields: dict[str, Any] = {"seed": number}
        for feature in _FEATURES:
            fields |= feature(self, rng)
        return Request(**fields)


def _prompt(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    shared = int(rng.choice(_BEGINNINGS))
    beginning = np.random.default_rng(shared).integers(0, source.vocab_size, shared)
    own = rng.integers(0, source.vocab_size, rng.integers(1, LONGEST_OWN + 1))
    return {"prompt": [*beginning.tolist(), *own.tolist()]}


def _length(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    longest = LONGEST_ANSWER if rng.random() < 0.15 else SHORT_ANSWER
    return {"max_tokens": int(rng.integers(1, longest + 1))}


def _sampling(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"temperature": 0.0}
    filters = {"top_p": 0.9, "top_k": 20, "min_p": 0.05}
    chosen = {name: value for name, value in filters.items() if rng.random() < 0.3}
    return {"temperature": float(rng.uniform(0.3, 1.5)), **chosen}


def _penalties(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    if rng.random() < 0.8:
        return {}
    biased = rng.integers(0, source.vocab_size, 4).tolist()
    return {
        "repetition_penalty": float(rng.uniform(1.0, 1.5)),
        "presence_penalty": float(rng.uniform(-1.0, 1.0)),
        "frequency_penalty": float(rng.uniform(-0.5, 1.0)),
        "logit_bias": {one: float(rng.uniform(-3.0, 3.0)) for one in biased},
    }


def _stop(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    # Two characters are often of two tokens.
    if rng.random() < 0.8:
        return {}
    lengths = rng.integers(1, 3, rng.integers(1, 4))
    return {"stop": ["".join(rng.choice(_STOPPING, length)) for length in lengths]}


def _priority(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    return {"priority": int(rng.integers(0, 3))}


def _adapter(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    # Some are asked for more than others, so that they find what is cached.
    names = [None, *source.adapters]
    return {"adapter": names[int(len(names) * rng.random() ** 2)]}


def _logprobs(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    return {"logprobs": 2} if rng.random() < 0.15 else {}


def _constraint(source: Source, rng: np.random.Generator) -> dict[str, Any]:
    # Where one runs, everything beside it gets a token a call.
    if rng.random() < 0.8:
        return {}
    return {"constraint": source.constraints[rng.integers(len(source.constraints))]}


_FEATURES = (
    *(_prompt, _length, _sampling, _penalties, _stop, _priority, _adapter),
    *(_constraint, _logprobs),
)
