"""The device's part of generation: a prefill chunk, and several decoded tokens a call.

Inside a shard_map (`programs.py`) each device has its own sequences, heads and experts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import sharding
from gptoss_jax.inference.sampling import Sampling, sample
from gptoss_jax.model.cache import Cache, LayerCache, Places
from gptoss_jax.model.transformer import GptOss

MOST_STEPS = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A batch of sequences between calls.

    Attributes:
      cache: everything but the newest token of each sequence.
      token_B: int32, the newest token, not yet in the cache.
      done_B: bool, sequences that stopped; their rows cost no expert and their cache rests.
    """

    cache: Cache
    token_B: jax.Array
    done_B: jax.Array

    @staticmethod
    def idle(layers: list[LayerCache], batch: int, columns: int) -> "State":
        """Rows without a sequence; but for the layers, NumPy arrays to be filled in.

        Args:
          layers: what is cached.
          batch: rows.
          columns: of the table of pages, the last one, which stays 0, included.
        """
        table_BJ = np.zeros((batch, columns), np.int32)
        places: Any = Places(table_BJ, *(np.zeros(batch, np.int32) for _ in range(2)))  # pyright: ignore[reportArgumentType]
        length_B, token_B = (np.zeros(batch, np.int32) for _ in range(2))
        return State(Cache(layers, places, length_B), token_B, np.ones(batch, bool))  # pyright: ignore[reportArgumentType]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """What ends a sequence and what may be in it.

    Attributes:
      sampling: see there.
      banned_V: bool, ids never sampled.
      stops_V: bool, ids that end a sequence.
      limit_B: int32, the number of positions, prompt included, at which a sequence ends.
      allowed_BW: int32, a bit for each id that may come next, 32 a word; W = 0: any may.
    """

    sampling: Sampling
    banned_V: jax.Array
    stops_V: jax.Array
    limit_B: jax.Array
    allowed_BW: jax.Array


def pools(model: GptOss, *, pages: int, rings: int, platform: str) -> list[LayerCache]:
    """Empty pages and rings on a platform ("cpu", "tpu", "cuda"), so many on each device.

    XLA:CPU updates no bfloat16 in place: it would convert the whole cache and back at every token.
    """
    dtype = jnp.float32 if platform == "cpu" else model.dtype
    return model.empty_layers(pages, rings, dtype)


def prefill(
    model: GptOss, tokens_BT: jax.Array, added_B: jax.Array, state: State, rules: Rules
) -> tuple[State, jax.Array, jax.Array]:
    """Appends a chunk of prompts; a row whose prompt ends in it gets its first sampled token.

    Args:
      model: the network.
      tokens_BT: int32, padded on the right.
      added_B: int32, how many of each row are real.
      state: to be donated.
      rules: see there.

    Returns:
      (the new state, int32 [B, 1] newest tokens of the whole batch, bool scalar: all are done).
    """
    logits_BV, cache = model.extend(tokens_BT, added_B, state.cache)
    sampled_B = sample(logits_BV, rules.sampling, cache.length_B, _banned(rules))
    token_B = jnp.where(added_B > 0, sampled_B, state.token_B)
    state = State(cache, token_B, _is_done(token_B, cache.length_B, rules))
    batch_axes = sharding.current(model.config).batch
    newest_B1 = sharding.gathered(token_B[:, None], batch_axes, axis=0)
    return state, newest_B1, _all_done(state, batch_axes)


def _banned(rules: Rules) -> jax.Array:
    """bool [B, V], or [1, V] where no row is constrained."""
    banned_1V = rules.banned_V[None]
    if not rules.allowed_BW.shape[1]:
        return banned_1V
    id_V = jnp.arange(banned_1V.shape[1])
    words_BV = rules.allowed_BW[:, id_V // 32]
    return banned_1V | ((words_BV >> (id_V % 32)[None]) & 1 == 0)


def _all_done(state: State, batch_axes: sharding.Axes) -> jax.Array:
    """The same on every device: collectives in a loop need that all go round as often."""
    going = sharding.total((~state.done_B).sum(dtype=jnp.int32), batch_axes)
    return going == 0


def _is_done(token_B: jax.Array, length_B: jax.Array, rules: Rules) -> jax.Array:
    """Whether the newest token, which will take position `length`, is the last."""
    return rules.stops_V[token_B] | (length_B + 1 >= rules.limit_B)


def decode(
    model: GptOss, state: State, rules: Rules, steps: jax.Array
) -> tuple[State, jax.Array, jax.Array]:
    """Decodes up to `steps` tokens of each sequence without coming back to the host.

    Args:
      model: the network.
      state: to be donated.
      rules: see there.
      steps: int32 scalar up to MOST_STEPS: how many tokens this call makes is no new program.

    Returns:
      (the new state, int32 [B, MOST_STEPS] tokens of the whole batch, -1 where a sequence was done;
      bool scalar: all are done).
    """
    batch_axes = sharding.current(model.config).batch
    banned_BV = _banned(rules)

    def unfinished(carry):
        index, state, _ = carry
        return (index < steps) & ~_all_done(state, batch_axes)

    def step(carry):
        index, state, out_BS = carry
        going_B = ~state.done_B
        logits_BV, cache = model.extend(
            state.token_B[:, None], going_B.astype(jnp.int32), state.cache
        )
        sampled_B = sample(logits_BV, rules.sampling, cache.length_B, banned_BV)
        token_B = jnp.where(going_B, sampled_B, state.token_B)
        column_B1 = jnp.where(going_B, sampled_B, -1)[:, None]
        out_BS = jax.lax.dynamic_update_slice_in_dim(out_BS, column_B1, index, axis=1)
        done_B = state.done_B | _is_done(token_B, cache.length_B, rules)
        return index + 1, State(cache, token_B, done_B), out_BS

    batch = state.token_B.shape[0]
    carry = (jnp.int32(0), state, jnp.full((batch, MOST_STEPS), -1, jnp.int32))
    with jax.named_scope("decode_steps"):
        _, state, out_BS = jax.lax.while_loop(unfinished, step, carry)
    out_BS = sharding.gathered(out_BS, batch_axes, axis=0)
    return state, out_BS, _all_done(state, batch_axes)
