"""What a request's answer is without an engine: the whole forward, no cache, no other rows."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.inference.penalties import Tally
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.sampling import Sampling, sample
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text.constraints import fill_masks

# Of the logits' range: scores that are closer may come out in either order.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer beside the model's own.

    Attributes:
      tokens: compared.
      tied: of them, those that are not the model's choice, but are as near to it as rounding.
      wrong: the place of the first that is neither, None where there is none.
      logprob_T: float32, how likely the model finds each.
      rounding_T: float32, what rounding may change of that.
    """

    tokens: int
    tied: int
    wrong: int | None
    logprob_T: np.ndarray = dataclasses.field(compare=False, default_factory=lambda: np.zeros(0))
    rounding_T: np.ndarray = dataclasses.field(compare=False, default_factory=lambda: np.zeros(0))


class Alone:
    """Says of answers whether the model alone, given the same tokens, makes each next one.

    Programs are compiled once for a size and a model's structure.
    """

    def __init__(self, banned_V: np.ndarray, sizes: Sequence[tuple[int, int]]):
        """Prepares.

        Args:
          banned_V: bool, ids never sampled.
          sizes: (tokens of a prompt with its answer, of the answer) to pad to, ascending.
        """
        self._banned_V = banned_V
        self._sizes = sizes

    def check(self, model: GptOss, request: Request, made: list[int]) -> Answer:
        """Compares the answer to a request, or the beginning of one that was given up.

        Args:
          model: with the request's adapter, if it has one.
          request: what was asked.
          made: what came.
        """
        prompt, count = list(request.prompt), len(made)
        length = len(prompt) + count
        room, answer = next(size for size in self._sizes if length <= size[0] and count <= size[1])
        tokens_S = np.zeros(room, np.int32)
        tokens_S[:length] = [*prompt, *made]
        banned_TV = np.tile(self._banned_V, (answer, 1))
        if request.constraint is not None:
            self._forbid(request, made, banned_TV)
        tally = _said(request, made, banned_TV.shape)
        sampling = Sampling.of([request] * answer)
        found = _compare(model, tokens_S[None], np.int32(len(prompt)), sampling, banned_TV, tally)
        is_own, is_near, logprob_T, rounding_T = (np.asarray(x)[:count] for x in found)
        wrong = np.flatnonzero(~(is_own | is_near))
        tied = int((~is_own & is_near).sum())
        first = int(wrong[0]) if len(wrong) else None
        return Answer(count, tied, first, logprob_T, rounding_T)

    def _forbid(self, request: Request, made: list[int], banned_TV: np.ndarray) -> None:
        """What the constraint leaves no room for, at each place."""
        assert request.constraint is not None
        matcher = request.constraint.matcher()
        id_V = np.arange(len(self._banned_V))
        words_1W = np.full((1, -(-len(id_V) // 32)), -1, np.int32)
        for place, (banned_V, token) in enumerate(zip(banned_TV, made, strict=False)):
            if place:
                matcher.hurry(request.max_tokens - place)
            fill_masks([matcher], words_1W)
            banned_V |= (words_1W[0, id_V // 32] >> (id_V % 32)) & 1 == 0
            matcher.accept(token)


def _said(request: Request, made: list[int], shape: tuple[int, int]) -> Tally:
    """What came before each place; int32 and float32 [T, V]."""
    seen_TV, bias_TV = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    seen_TV[:, list(request.prompt)] = 1
    for place, token in enumerate(made):
        seen_TV[place + 1 :, token] += 2
    for token, bias in request.logit_bias.items():
        bias_TV[:, token] = bias
    return Tally(seen_TV, bias_TV)  # pyright: ignore[reportArgumentType]


@jax.jit
def _compare(
    model: GptOss,
    tokens_1S: jax.Array,
    first: jax.Array,
    sampling: Sampling,
    banned_TV: jax.Array,
    tally: Tally,
) -> tuple[jax.Array, ...]:
    """[T] of the tokens from `first` on: the model's own choice; its choice but for rounding.

    The second is what it chooses where that token's score is higher, and all others lower, by half
    of what rounding may change. Then their log-probabilities, and what rounding may change of them.
    """
    place_T = first + jnp.arange(len(banned_TV))
    logits_SV = model(tokens_1S)[0]
    logits_TV = logits_SV[jnp.minimum(place_T, len(logits_SV)) - 1]
    made_T = tokens_1S[0, jnp.minimum(place_T, tokens_1S.shape[1] - 1)]
    own_T = sample(tally.adjusted(logits_TV, sampling), sampling, place_T, banned_TV)
    rounding_T1 = _ROUNDING * jnp.ptp(logits_TV, axis=-1, keepdims=True)
    is_made_TV = jnp.arange(logits_TV.shape[1])[None] == made_T[:, None]
    nudged_TV = logits_TV + 0.5 * jnp.where(is_made_TV, rounding_T1, -rounding_T1)
    near_T = sample(tally.adjusted(nudged_TV, sampling), sampling, place_T, banned_TV)
    logprob_T = jnp.where(is_made_TV, jax.nn.log_softmax(logits_TV), 0.0).sum(-1)
    return own_T == made_T, near_T == made_T, logprob_T, 2 * rounding_T1[:, 0]
