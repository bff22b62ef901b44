"""Penalties of what a sequence said already, and biases of single tokens, on the device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.inference.sampling import Sampling


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tally:
    """What each sequence said, and what its request wants more or less of.

    Attributes:
      seen_BV: int32, twice how often an id was generated, and 1 more if the prompt has it; V = 0
        where nobody asks for anything.
      bias_BV: float32, added to logits.
    """

    seen_BV: jax.Array
    bias_BV: jax.Array

    @staticmethod
    def none(batch: int) -> "Tally":
        """Of rows that ask for nothing; NumPy arrays."""
        return Tally(np.zeros((batch, 0), np.int32), np.zeros((batch, 0), np.float32))  # pyright: ignore[reportArgumentType]

    def adjusted(self, logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
        """Logits [B, V] as penalties and biases make them.

        First the repetition penalty as in Hugging Face transformers: over prompt and answer,
        positive logits divided by it, others multiplied. Then presence and frequency penalty as in
        the OpenAI API, over the answer alone, and the bias.
        """
        if not self.seen_BV.shape[1]:
            return logits_BV
        repetition_B1 = sampling.repetition_penalty_B[:, None]
        presence_B1 = sampling.presence_penalty_B[:, None]
        frequency_B1 = sampling.frequency_penalty_B[:, None]
        repeated_BV = jnp.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
        logits_BV = jnp.where(self.seen_BV > 0, repeated_BV, logits_BV)
        times_BV = self.seen_BV >> 1
        logits_BV -= jnp.where(times_BV > 0, presence_B1, 0)
        logits_BV -= frequency_B1 * times_BV.astype(jnp.float32)
        return logits_BV + self.bias_BV

    def counted(self, token_B: jax.Array, is_new_B: jax.Array) -> "Tally":
        """With a token more of each sequence that has one."""
        if not self.seen_BV.shape[1]:
            return self
        row_B = jnp.arange(len(token_B))
        seen_BV = self.seen_BV.at[row_B, token_B].add(jnp.where(is_new_B, 2, 0))
        return Tally(seen_BV, self.bias_BV)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Additions:
    """What is added to a tally, of one part's rows M numbers; those left over are zeros.

    Attributes:
      row_M: int32, of the part.
      id_M: int32.
      seen_M: int32.
      bias_M: float32.
    """

    row_M: jax.Array
    id_M: jax.Array
    seen_M: jax.Array
    bias_M: jax.Array


def renewed(
    old: Tally | None, from_B: jax.Array, additions: Additions, *, vocab_size: int
) -> Tally:
    """The tally of rows that are others than in the last call.

    Args:
      old: of the last call, with rows of its own number; None: there was none.
      from_B: int32, which of them each row was; -1: it begins with zeros.
      additions: of those that begin.
      vocab_size: V.
    """
    shape = (len(from_B), vocab_size)
    if old is None:
        seen_BV, bias_BV = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    else:
        is_kept_B1, row_B = (from_B >= 0)[:, None], jnp.maximum(from_B, 0)
        seen_BV = jnp.where(is_kept_B1, old.seen_BV[row_B], 0)
        bias_BV = jnp.where(is_kept_B1, old.bias_BV[row_B], 0)
    at = (additions.row_M, additions.id_M)
    return Tally(seen_BV.at[at].add(additions.seen_M), bias_BV.at[at].add(additions.bias_M))
