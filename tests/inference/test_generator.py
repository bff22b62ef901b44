"""The decode loop against the full forward, batches against single prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptoss_jax.errors import UserError
from gptoss_jax.inference import generator as generator_module
from gptoss_jax.inference.generator import Generator, capacity_for, chunk_size
from gptoss_jax.inference.sampling import Sampling
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss

CONFIG = Config(
    num_layers=2,
    num_experts=6,
    experts_per_token=2,
    hidden_size=64,
    expert_width=96,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=160,
    sliding_window=8,
    rope_original_context=64,
    max_context=96,
)


@pytest.fixture(scope="module")
def model() -> GptOss:
    model = GptOss(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(1))
    # Large enough that the argmax is not a matter of rounding.
    return jax.tree.map(lambda x: x * 12 if x.dtype == jnp.float32 and x.ndim == 2 else x, model)


@pytest.fixture(scope="module")
def generator(model) -> Generator:
    return Generator(model, [], np.array([], np.int32))


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist()


def tokens_of(generator: Generator, prompts, sampling, max_tokens) -> list[list[int]]:
    columns = np.concatenate(list(generator.run(prompts, sampling, max_tokens)), axis=1)
    return [[t for t in row if t >= 0] for row in columns.tolist()]


@pytest.mark.fast
@pytest.mark.parametrize("length", [1, 7, 40])
def test_greedy_tokens_are_those_of_the_full_forward(model, generator, length):
    ids = prompt(length)
    (tokens,) = tokens_of(generator, [ids], Sampling.same(1, temperature=0.0), 12)
    padded = jnp.asarray([ids + tokens + [0] * (64 - length - len(tokens))])
    logits_TV = jax.jit(lambda model, tokens: model(tokens))(model, padded)[0]
    assert tokens == logits_TV.argmax(-1)[length - 1 : length - 1 + len(tokens)].tolist()
    assert len(tokens) == 12


def test_rows_do_not_depend_on_each_other(generator):
    prompts = [prompt(n, seed=n) for n in (30, 3, 17)]
    together = tokens_of(generator, prompts, Sampling.same(3, seed=5), 20)
    others = [prompt(30, seed=99), prompts[1], prompt(2, seed=98)]
    again = tokens_of(generator, others, Sampling.same(3, seed=5), 20)
    assert together[1] == again[1]
    assert together[0] != again[0]


def test_prompts_longer_than_a_chunk(model, generator, monkeypatch):
    ids = [prompt(50, seed=4), prompt(21, seed=5)]
    whole = tokens_of(generator, ids, Sampling.same(2, temperature=0.0), 10)
    monkeypatch.setattr(generator_module, "_MOST_CHUNK", 16)
    assert chunk_size(50) == 16
    chunked = tokens_of(generator, ids, Sampling.same(2, temperature=0.0), 10)
    assert whole == chunked


def test_a_row_ends_at_its_stop_token_and_the_others_go_on(model, generator):
    prompts = [prompt(9, seed=1), prompt(12, seed=2)]
    sampling = Sampling.same(2, seed=3)
    free = tokens_of(generator, prompts, sampling, 25)
    stop = free[0][6]
    stopping = Generator(model, [stop], np.array([], np.int32))
    ended = tokens_of(stopping, prompts, sampling, 25)
    for before, after in zip(free, ended, strict=True):
        cut = before.index(stop) + 1 if stop in before else len(before)
        assert after == before[:cut]
    assert len(ended[0]) < len(free[0])


def test_banned_ids_do_not_appear(model):
    banned = np.arange(0, CONFIG.vocab_size, 2)
    odd = Generator(model, [], banned)
    (tokens,) = tokens_of(odd, [prompt(5)], Sampling.same(1), 30)
    assert all(token % 2 for token in tokens)


@pytest.mark.parametrize(
    ("length", "max_tokens", "made"), [(5, 1, 1), (5, 9, 9), (90, 50, 6), (90, 10**30, 6)]
)
def test_ends_at_the_limit(generator, length, max_tokens, made):
    (tokens,) = tokens_of(generator, [prompt(length)], Sampling.same(1), max_tokens)
    assert len(tokens) == made  # 90 + 6 is the model's context of 96


def test_timings_count_tokens(generator):
    tokens_of(generator, [prompt(9), prompt(4)], Sampling.same(2), 5)
    timings = generator.timings
    assert (timings.prefill_tokens, timings.decode_tokens) == (13, 8)
    assert timings.prefill_tokens_per_second > 0 < timings.decode_tokens_per_second


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([[]], 5, "no tokens"),
        ([[1, 160]], 5, "token 160 is outside"),
        ([[1, -1]], 5, "outside"),
        ([[1] * 96], 5, "context is 96"),
        ([[1]], 0, "max_tokens is 0"),
    ],
)
def test_bad_requests_are_refused_in_a_line(generator, prompts, max_tokens, message):
    with pytest.raises(UserError, match=message) as error:
        next(generator.run(prompts, Sampling.same(1), max_tokens))
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_capacity_holds_the_last_chunk_and_the_answer():
    assert chunk_size(1) == 16
    assert chunk_size(17) == 32
    assert chunk_size(9999) == 512
    for longest, max_tokens in [(1, 1), (500, 20), (513, 1), (1025, 3000), (9, 10**9)]:
        capacity = capacity_for(longest, max_tokens, 131_072)
        chunk = chunk_size(longest)
        assert capacity >= -(-longest // chunk) * chunk
        assert capacity >= min(longest + max_tokens, 131_072)
        assert capacity % 512 == 0
