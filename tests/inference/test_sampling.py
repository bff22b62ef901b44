"""Sampling against numpy, and its independence of everything but seed and position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.sampling import Sampling, sample

pytestmark = pytest.mark.fast

V = 50
draw = jax.jit(sample)


def same(batch: int, *, seed: int = 0, **options) -> Sampling:
    """The same for every row, except the seed, which is `seed` plus the row."""
    return Sampling.of([Request([0], 1, seed=seed + row, **options) for row in range(batch)])


def logits(rows: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, (rows, V)), jnp.float32)


def nothing() -> jax.Array:
    return jnp.zeros((1, V), bool)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def kept_by(row: np.ndarray, *, top_k=0, top_p=1.0, min_p=0.0) -> set[int]:
    """The ids that the filters keep, one filter after the other, by sorting plainly."""
    order = np.argsort(-row)
    if top_k:
        order = order[:top_k]
    p = softmax(row[order])
    if top_p < 1:
        enough = int(np.searchsorted(np.cumsum(p), top_p)) + 1
        order, p = order[:enough], p[:enough]
    return set(order[p >= min_p * p[0]].tolist())


def drawn(row: jax.Array, sampling: Sampling, draws: int = 3000) -> np.ndarray:
    many = jnp.broadcast_to(row[None], (draws, V))
    return np.asarray(draw(many, sampling, jnp.arange(draws), nothing()))


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_p": 0.5},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.1},
    ],
)
def test_filters_keep_what_sorting_keeps(filters):
    row = logits(1, seed=3)[0]
    seen = set(drawn(row, same(3000, **filters)).tolist())
    expected = kept_by(np.asarray(row, np.float64), **filters)
    assert seen <= expected
    likely = softmax(np.asarray(row, np.float64))
    assert {i for i in expected if likely[i] > 0.01} <= seen


def test_frequencies_follow_the_tempered_distribution():
    row = logits(1, seed=5)[0]
    counts = np.bincount(drawn(row, same(20_000, temperature=0.7), 20_000), minlength=V)
    expected = 20_000 * softmax(np.asarray(row, np.float64) / 0.7)
    big = expected > 20
    chi_squared = ((counts - expected)[big] ** 2 / expected[big]).sum()
    assert chi_squared < big.sum() + 4 * np.sqrt(2 * big.sum())


def test_zero_temperature_is_greedy_beside_sampled_rows():
    sampling = Sampling(
        jnp.asarray([0.0, 5.0]),
        jnp.ones(2),
        jnp.zeros(2, jnp.int32),
        jnp.zeros(2),
        jnp.ones(2),
        jnp.zeros(2),
        jnp.zeros(2),
        jnp.zeros(2, jnp.uint32),
    )
    both = logits(2)
    tokens = [draw(both, sampling, jnp.full(2, i), nothing()) for i in range(40)]
    assert {int(t[0]) for t in tokens} == {int(both[0].argmax())}
    assert len({int(t[1]) for t in tokens}) > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_ids_are_never_chosen(temperature):
    row = logits(1)[0]
    banned = row > jnp.sort(row)[5]  # all but six
    many = jnp.broadcast_to(row[None], (500, V))
    sampling = same(500, temperature=temperature, top_k=20)
    tokens = np.asarray(draw(many, sampling, jnp.arange(500), banned[None]))
    assert not np.asarray(banned)[tokens].any()


def test_random_numbers_depend_on_seed_and_position_only():
    row = logits(1)
    alone = [
        int(draw(row, same(1, seed=9), jnp.asarray([position]), nothing())[0])
        for position in range(20)
    ]
    three = jnp.concatenate([logits(1, seed=8), row, logits(1, seed=7)])
    crowd = same(3, seed=8)  # the middle row has seed 9
    beside = [
        int(draw(three, crowd, jnp.asarray([4, position, 77]), nothing())[1])
        for position in range(20)
    ]
    assert alone == beside
    assert len(set(alone)) > 5
    other = [
        int(draw(row, same(1, seed=10), jnp.asarray([position]), nothing())[0])
        for position in range(20)
    ]
    assert alone != other


def test_min_p_is_relative_to_the_likeliest():
    """0.3 of 0.4 keeps what is at least 0.12; as a probability 0.3 would keep one."""
    row = jnp.log(jnp.asarray([0.4, 0.25, 0.2, 0.1, 0.05] + [1e-9] * (V - 5), jnp.float32))
    assert set(drawn(row, same(3000, min_p=0.3)).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-38, 1e-39, 1e-300])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}])
def test_the_colder_the_greedier(temperature, filters):
    rows = 30 * logits(50, seed=4)
    banned = jnp.arange(V) == int(jnp.argmax(rows[0]))
    ids = draw(rows, same(50, temperature=temperature, **filters), jnp.arange(50), banned[None])
    expected = jnp.argmax(jnp.where(banned[None], -jnp.inf, rows), axis=-1)
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e300])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5}])
def test_no_temperature_makes_a_banned_id_likely(temperature, filters):
    banned = jnp.arange(V) >= 3
    rows = logits(500, seed=4)
    sampling = same(500, temperature=temperature, **filters)
    ids = np.asarray(draw(rows, sampling, jnp.arange(500), banned[None]))
    assert set(ids.tolist()) == {0, 1, 2}
