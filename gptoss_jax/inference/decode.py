"""The device's part of generation: a prefill chunk, and several decoded tokens a call.

Where a host's masks say what may come next, a call is two programs, `forward` and `choose`.

Inside a shard_map (`programs.py`) each device has its own sequences, heads and experts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import sharding
from gptoss_jax.inference import logprobs
from gptoss_jax.inference.penalties import Tally
from gptoss_jax.inference.sampling import Sampling, sample
from gptoss_jax.kernels.attention.eight_bit import EightBit
from gptoss_jax.kernels.low_rank import Chosen
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
      tally: of all tokens, the newest included.
    """

    cache: Cache
    token_B: jax.Array
    done_B: jax.Array
    tally: Tally

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
        cache, done_B = Cache(layers, places, length_B), np.ones(batch, bool)  # pyright: ignore[reportArgumentType]
        return State(cache, token_B, done_B, Tally.none(batch))  # pyright: ignore[reportArgumentType]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """What ends a sequence, what may be in it, and which adapter makes it.

    Attributes:
      sampling: see there.
      banned_V: bool, ids never sampled.
      stops_V: bool, ids that end a sequence.
      limit_B: int32, the number of positions, prompt included, at which a sequence ends.
      allowed_BW: int32, a bit for each id that may come next, 32 a word; W = 0: any may.
      ranks_K: int32, of the likeliest tokens whose log-probability is told; K = 0: none is, not
        even the chosen one's.
      adapters: see there; None: the model has no room for several.
    """

    sampling: Sampling
    banned_V: jax.Array
    stops_V: jax.Array
    limit_B: jax.Array
    allowed_BW: jax.Array
    ranks_K: jax.Array
    adapters: Chosen | None = None

    @staticmethod
    def greedy(batch: int, vocab_size: int, limit: int) -> "Rules":
        """No token is forbidden or ends a sequence, and nothing is told; NumPy arrays."""
        nothing_V, limit_B = np.zeros(vocab_size, bool), np.full(batch, limit, np.int32)
        anything_BW, ranks_K = np.zeros((batch, 0), np.int32), np.zeros(0, np.int32)
        sampling: Any = Sampling.of([None] * batch)
        return Rules(sampling, nothing_V, nothing_V, limit_B, anything_BW, ranks_K)  # pyright: ignore[reportArgumentType]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Made:
    """What a call made of the whole batch.

    Attributes:
      token_BS: int32, -1 where a sequence was done or there is none.
      id_BSK: int32, ids whose log-probabilities are told: the token itself, then the likeliest;
        K = 0 where nobody asked.
      logprob_BSK: float32, theirs.
    """

    token_BS: jax.Array
    id_BSK: jax.Array
    logprob_BSK: jax.Array

    @staticmethod
    def of(token_B: jax.Array, logits_BV: jax.Array, rules: Rules) -> "Made":
        """One token of each sequence."""
        # A row without a token has -1, which is no index.
        chosen_B = jnp.maximum(token_B, 0)
        id_BK, logprob_BK = logprobs.told(logits_BV, chosen_B, len(rules.ranks_K))
        return Made(token_B[:, None], id_BK[:, None], logprob_BK[:, None])


def pools(
    model: GptOss, *, pages: int, rings: int, platform: str, eight_bit: EightBit | None
) -> list[LayerCache]:
    """Empty pages and rings on a platform ("cpu", "tpu", "cuda"), so many on each device."""
    return model.empty_layers(pages, rings, cache_dtype(model, platform), eight_bit)


def cache_dtype(model: GptOss, platform: str) -> jnp.dtype:
    """Of keys and values, but for pages of 8 bits.

    XLA:CPU updates no bfloat16 in place: it would convert the whole cache and back at every token.
    """
    return jnp.dtype(jnp.float32) if platform == "cpu" else model.dtype


def prefill(
    model: GptOss, tokens_BT: jax.Array, added_B: jax.Array, state: State, rules: Rules
) -> tuple[State, Made, jax.Array]:
    """Appends a chunk of prompts; a row whose prompt ends in it gets its first sampled token.

    Args:
      model: the network.
      tokens_BT: int32, padded on the right.
      added_B: int32, how many of each row are real.
      state: to be donated.
      rules: see there.

    Returns:
      (the new state, each sequence's newest token, bool scalar: all are done).
    """
    state, logits_BV = forward(model, tokens_BT, added_B, state, rules.adapters)
    batch_axes = sharding.current(model.config).batch
    return choose(logits_BV, added_B, state, rules, batch_axes=batch_axes)


def forward(
    model: GptOss,
    tokens_BT: jax.Array,
    added_B: jax.Array,
    state: State,
    adapters: Chosen | None,
) -> tuple[State, jax.Array]:
    """The part of `prefill`, or of a step of `decode`, that needs not know what may come next.

    Args:
      model: the network.
      tokens_BT: int32, padded on the right.
      added_B: int32, how many of each row are real.
      state: to be donated.
      adapters: as in `Rules`.

    Returns:
      (the state with the tokens in its cache, float32 logits [B, V] after each row's last one).
    """
    logits_BV, cache = model.extend(tokens_BT, added_B, state.cache, adapters)
    return dataclasses.replace(state, cache=cache), logits_BV


def choose(
    logits_BV: jax.Array,
    added_B: jax.Array,
    state: State,
    rules: Rules,
    *,
    batch_axes: sharding.Axes,
) -> tuple[State, Made, jax.Array]:
    """The rest: a token for each row that was given any.

    Args:
      logits_BV: of `forward`.
      added_B: int32, how many tokens each row was given there.
      state: of `forward`; its layers are not looked at.
      rules: see there.
      batch_axes: of the mesh, that sequences are split over.

    Returns:
      as `prefill`.
    """
    state, made = _chosen(logits_BV, added_B > 0, state, rules, _banned(rules))
    return state, _gathered(made, batch_axes), _all_done(state, batch_axes)


def _chosen(
    logits_BV: jax.Array, going_B: jax.Array, state: State, rules: Rules, banned_BV: jax.Array
) -> tuple[State, Made]:
    """The state with one token more of each row that goes on, and these tokens."""
    length_B = state.cache.length_B
    adjusted_BV = state.tally.adjusted(logits_BV, rules.sampling)
    sampled_B = sample(adjusted_BV, rules.sampling, length_B, banned_BV)
    token_B = jnp.where(going_B, sampled_B, state.token_B)
    done_B = state.done_B | _is_done(token_B, length_B, rules)
    tally = state.tally.counted(sampled_B, going_B)
    made = Made.of(jnp.where(going_B, sampled_B, -1), logits_BV, rules)
    return State(state.cache, token_B, done_B, tally), made


def _gathered(made: Made, batch_axes: sharding.Axes) -> Made:
    return jax.tree.map(lambda x: sharding.gathered(x, batch_axes, axis=0), made)


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
) -> tuple[State, Made, jax.Array]:
    """Decodes up to `steps` tokens of each sequence without coming back to the host.

    Args:
      model: the network.
      state: to be donated.
      rules: see there.
      steps: int32 scalar up to MOST_STEPS: how many tokens this call makes is no new program.

    Returns:
      (the new state, MOST_STEPS tokens of each sequence, bool scalar: all are done).
    """
    batch_axes = sharding.current(model.config).batch
    banned_BV = _banned(rules)

    def unfinished(carry):
        index, state, _ = carry
        return (index < steps) & ~_all_done(state, batch_axes)

    def step(carry):
        index, state, made = carry
        going_B = ~state.done_B
        given = (state.token_B[:, None], going_B.astype(jnp.int32), state, rules.adapters)
        state, logits_BV = forward(model, *given)
        state, newest = _chosen(logits_BV, going_B, state, rules, banned_BV)
        made = jax.tree.map(
            lambda all_, one: jax.lax.dynamic_update_slice_in_dim(all_, one, index, axis=1),
            made,
            newest,
        )
        return index + 1, state, made

    carry = (jnp.int32(0), state, _nothing_made(len(state.token_B), len(rules.ranks_K)))
    with jax.named_scope("decode_steps"):
        _, state, made = jax.lax.while_loop(unfinished, step, carry)
    return state, _gathered(made, batch_axes), _all_done(state, batch_axes)


def verify(
    model: GptOss, tokens_BT: jax.Array, added_B: jax.Array, state: State, rules: Rules
) -> tuple[State, Made, jax.Array]:
    """Decodes as many tokens of each sequence as were guessed right, and one more.

    A token's random numbers depend on its seed and position alone, so a guess is right if it is
    what would have been sampled: the tokens are those of `decode`, but for rounding.

    Args:
      model: the network.
      tokens_BT: int32, each row's newest token and then guesses of what follows.
      added_B: int32, how many of each row are real: 0 of rows that are done.
      state: to be donated; nobody asks for penalties, biases or log-probabilities.
      rules: see there; no row is constrained.

    Returns:
      (the new state, T tokens of each sequence, bool scalar: all are done).
    """
    batch, size = tokens_BT.shape
    index_BT, length_B = jnp.broadcast_to(jnp.arange(size), (batch, size)), state.cache.length_B
    position_BT = length_B[:, None] + 1 + index_BT  # of what is sampled
    each = jax.tree.map(lambda x: jnp.repeat(x, size, axis=0), (rules.sampling, rules.limit_B))
    sampling, limit_R = each
    sampled_BT = jnp.zeros_like(tokens_BT)

    def choose(logits_BTV: jax.Array) -> jax.Array:
        nonlocal sampled_BT
        logits_RV = logits_BTV.reshape(batch * size, -1)
        sampled_R = sample(logits_RV, sampling, position_BT.reshape(-1), rules.banned_V[None])
        sampled_BT = sampled_R.reshape(batch, size)
        is_last_R = rules.stops_V[sampled_R] | (position_BT.reshape(-1) + 1 >= limit_R)
        is_guess_BT = index_BT[:, 1:] < added_B[:, None]
        goes_on_BT = is_guess_BT & (tokens_BT[:, 1:] == sampled_BT[:, :-1])
        goes_on_BT &= ~is_last_R.reshape(batch, size)[:, :-1]
        right_B = jnp.cumprod(goes_on_BT, axis=1, dtype=jnp.int32).sum(1)
        return jnp.where(added_B > 0, 1 + right_B, 0)

    cache = model.verify(tokens_BT, added_B, state.cache, choose, rules.adapters)
    kept_B = cache.length_B - length_B
    newest_B1 = jnp.take_along_axis(sampled_BT, jnp.maximum(kept_B - 1, 0)[:, None], axis=1)
    token_B = jnp.where(kept_B > 0, newest_B1[:, 0], state.token_B)
    done_B = state.done_B | _is_done(token_B, cache.length_B, rules)
    state = State(cache, token_B, done_B, state.tally)
    token_BT = jnp.where(index_BT < kept_B[:, None], sampled_BT, -1)
    nothing_told = jnp.zeros((batch, size, 0))
    made = Made(token_BT, nothing_told.astype(jnp.int32), nothing_told)
    batch_axes = sharding.current(model.config).batch
    return state, _gathered(made, batch_axes), _all_done(state, batch_axes)


def draft(
    model: GptOss,
    tokens_BT: jax.Array,
    added_B: jax.Array,
    state: State,
    rules: Rules,
    *,
    count: int,
) -> tuple[State, Made, jax.Array]:
    """Appends tokens to each sequence, and guesses the next ones.

    What is guessed is in no ring, and in pages beyond each sequence's end: it is written over.

    Args:
      model: the network that guesses.
      tokens_BT: int32, padded on the right: each row's tokens up to the newest.
      added_B: int32, how many of each row are real.
      state: to be donated; its newest tokens and tallies are not looked at.
      rules: see there; no row is constrained.
      count: guesses.

    Returns:
      (the new state, `count` tokens of each sequence, bool scalar: all are done).
    """
    logits_BV, held = model.extend(tokens_BT, added_B, state.cache)
    going_B = (added_B > 0).astype(jnp.int32)

    def chosen(logits_BV, cache):
        banned_1V = rules.banned_V[None]
        return sample(logits_BV, rules.sampling, cache.length_B, banned_1V)[:, None]

    def step(index, carry):
        logits_BV, cache, token_BS = carry
        token_B1 = chosen(logits_BV, cache)
        token_BS = jax.lax.dynamic_update_slice_in_dim(token_BS, token_B1, index, axis=1)
        return *model.extend(token_B1, going_B, cache), token_BS

    carry = (logits_BV, held, jnp.zeros((len(added_B), count - 1), jnp.int32))
    with jax.named_scope("guesses"):
        logits_BV, after, token_BS = jax.lax.fori_loop(0, count - 1, step, carry)
    token_BS = jnp.concatenate([token_BS, chosen(logits_BV, after)], axis=1)
    layers = [
        new if model.config.window(index) is None else old
        for index, (old, new) in enumerate(zip(held.layers, after.layers, strict=True))
    ]
    state = dataclasses.replace(state, cache=dataclasses.replace(held, layers=layers))
    nothing_told = jnp.zeros((len(added_B), count, 0))
    made = Made(token_BS, nothing_told.astype(jnp.int32), nothing_told)
    batch_axes = sharding.current(model.config).batch
    return state, _gathered(made, batch_axes), _all_done(state, batch_axes)


def _nothing_made(batch: int, ranks: int) -> Made:
    token_BS = jnp.full((batch, MOST_STEPS), -1, jnp.int32)
    told = (batch, MOST_STEPS, 1 + ranks if ranks else 0)
    return Made(token_BS, jnp.zeros(told, jnp.int32), jnp.zeros(told, jnp.float32))
