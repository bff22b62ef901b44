"""How likely the model itself held a token, and what else it held likely."""

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.inference.requests import MOST_LOGPROBS, TokenLogprobs


def ranks(vocab_size: int, *, wanted: bool) -> np.ndarray:
    """int32 [K] of `Rules.ranks_K`: none where nobody asked."""
    return np.arange(min(MOST_LOGPROBS, vocab_size) if wanted else 0, dtype=np.int32)


def told(logits_BV: jax.Array, token_B: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """(int32 ids, float32 log-probabilities), both [B, 1 + most]: the token's, the likeliest ones'.

    Args:
      logits_BV: float32, the model's.
      token_B: int32, what was chosen.
      most: how many of the likeliest; 0: nothing is told, and both are [B, 0].
    """
    if not most:
        nothing_B0 = token_B[:, None][:, :0]
        return nothing_B0, nothing_B0.astype(jnp.float32)
    top_BK, id_BK = jax.lax.top_k(logits_BV, most)
    own_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)
    ids_BK = jnp.concatenate([token_B[:, None], id_BK.astype(jnp.int32)], axis=1)
    # The largest is taken off first: added to the logarithm it would swallow a small one's digits.
    largest_B1 = top_BK[:, :1]
    log_sum_B1 = jnp.log(jnp.exp(logits_BV - largest_B1).sum(axis=-1, keepdims=True))
    return ids_BK, jnp.concatenate([own_B1, top_BK], axis=1) - largest_B1 - log_sum_B1


def read(ids_SK: np.ndarray, logprobs_SK: np.ndarray, most: int) -> list[TokenLogprobs]:
    """What `told` gave for S tokens of a sequence, with `most` of the likeliest."""
    asked = slice(most + 1)
    return [
        TokenLogprobs(values[0], list(zip(ids[1:], values[1:], strict=True)))
        for ids, values in zip(
            ids_SK[:, asked].tolist(), logprobs_SK[:, asked].tolist(), strict=True
        )
    ]
