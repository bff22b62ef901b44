"""Prefill and decode against the full forward: rings, unequal lengths, chunks, rows at rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sample

from gptoss_jax.model import cache as kv

pytestmark = pytest.mark.fast

CONFIG = sample.SHAPES["narrow"]
WINDOW = CONFIG.sliding_window
TOTAL = 75  # past the original context and several turns of the ring
# Of the logits' range: the same network in float32, summed in another order.
MAX_ERROR = 3e-6

extend = jax.jit(lambda model, tokens, added, cache: model.extend(tokens, added, cache))


@functools.cache
def model():
    return sample.make_model(CONFIG, sample.make_weights(CONFIG, seed=2))


@functools.cache
def prompts():
    return np.concatenate([sample.prompt(CONFIG, TOTAL, seed) for seed in (3, 4, 5)])


@functools.cache
def full():
    """Logits [3, TOTAL, V] of the full forward."""
    return np.asarray(jax.jit(lambda model, tokens: model(tokens))(model(), prompts()))


def check(logits_V, row: int, length: int) -> None:
    """The logits after `length` tokens of a prompt."""
    expected = full()[row, length - 1]
    assert sample.relative_error(expected, np.asarray(logits_V)) <= MAX_ERROR


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    """Pages of 16, so that chunks and decoding cross their borders."""
    monkeypatch.setattr("gptoss_jax.model.cache.PAGE", 16)


def feed(cache, steps, width: int, *, capacity_check: int):
    """Appends step by step: each a list of how many tokens a row adds, in a chunk of `width`."""
    held = np.asarray(cache.length_B).copy()
    for added in steps:
        tokens = np.full((3, width), CONFIG.vocab_size - 1, np.int32)  # padding is never read
        for row, count in enumerate(added):
            tokens[row, :count] = prompts()[row, held[row] : held[row] + count]
        assert held.max() + width <= capacity_check
        logits, cache = extend(model(), tokens, np.asarray(added, np.int32), cache)
        held += added
        np.testing.assert_array_equal(cache.length_B, held)
        for row, count in enumerate(added):
            if count:
                check(logits[row], row, held[row])
    return cache


CAPACITY = TOTAL + 40
EDGES = [2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 40]


@pytest.mark.parametrize("length", EDGES)
def test_prefill_then_decode(length):
    """Every row the same; decode goes on past another turn of the ring."""
    cache = model().empty_cache(3, CAPACITY)
    cache = feed(cache, [[length] * 3], 40, capacity_check=CAPACITY)
    feed(cache, [[1] * 3] * (WINDOW + 2), 1, capacity_check=CAPACITY)


def test_prefill_of_exactly_its_tokens():
    cache = model().empty_cache(3, CAPACITY)
    feed(cache, [[TOTAL] * 3], TOTAL, capacity_check=CAPACITY)


def test_decode_from_nothing():
    cache = model().empty_cache(3, CAPACITY)
    feed(cache, [[1] * 3] * (2 * WINDOW + 3), 1, capacity_check=CAPACITY)


@pytest.mark.parametrize("lengths", [(WINDOW - 1, WINDOW, WINDOW + 1), (1, 40, 7), (3, 0, 33)])
def test_unequal_lengths(lengths):
    cache = model().empty_cache(3, CAPACITY)
    cache = feed(cache, [list(lengths)], 40, capacity_check=CAPACITY)
    feed(cache, [[1] * 3] * (WINDOW + 2), 1, capacity_check=CAPACITY)


CHUNKS = {
    "equal": [[9] * 3] * 7,
    "unequal": [[9, 4, 1], [2, 9, 9], [9, 9, 3], [1, 1, 9], [9, 5, 9], [8, 9, 9], [9, 9, 2]],
    "some_add_nothing": [
        [9, 0, 5],
        [0, 9, 0],
        [9, 9, 0],
        [0, 0, 9],
        [9, 0, 1],
        [0, 9, 9],
        [9, 9, 9],
    ],
    "whole_windows": [[9, 9, 7], [7, 7, 9], [9, 9, 9], [7, 7, 7]],
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunked_prefill(name):
    cache = model().empty_cache(3, CAPACITY)
    cache = feed(cache, CHUNKS[name], 9, capacity_check=CAPACITY)
    feed(cache, [[1] * 3] * 3, 1, capacity_check=CAPACITY)


def test_chunks_wider_than_the_window():
    cache = model().empty_cache(3, CAPACITY)
    steps = [[33, 16, 2], [1, 17, 33], [33, 0, 15]]
    cache = feed(cache, steps, 33, capacity_check=CAPACITY)
    feed(cache, [[1] * 3] * 3, 1, capacity_check=CAPACITY)


@pytest.mark.parametrize("start", [5, WINDOW, 2 * WINDOW + 5])
def test_decode_of_rows_at_rest(start):
    """A row that adds nothing loses nothing, though its ring is full."""
    cache = model().empty_cache(3, CAPACITY)
    cache = feed(cache, [[start] * 3], 40, capacity_check=CAPACITY)
    steps = [[1, 0, 1], [0, 0, 1], [1, 0, 0]] * 6 + [[1, 1, 1]] * 3
    cache = feed(cache, steps, 1, capacity_check=CAPACITY)
    feed(cache, [[0, 5, 9], [9, 9, 0]], 9, capacity_check=CAPACITY)


def test_capacity_may_be_used_to_the_last_slot():
    cache = model().empty_cache(3, TOTAL)
    cache = feed(cache, [[40] * 3], 40, capacity_check=TOTAL)
    cache = feed(cache, [[33] * 3], 33, capacity_check=TOTAL)
    feed(cache, [[1] * 3] * 2, 1, capacity_check=TOTAL)


def test_a_batch_row_is_its_own_sequence():
    """The same row alone and in a batch: other rows' lengths and tokens do not reach it."""
    alone = model().empty_cache(1, CAPACITY)
    tokens = prompts()[:, :9]
    _, together = extend(
        model(), tokens, np.array([6, 9, 0], np.int32), model().empty_cache(3, CAPACITY)
    )
    _, alone = extend(model(), tokens[:1], np.array([6], np.int32), alone)
    real = slice(0, 6)
    for one, many in zip(alone.layers, together.layers, strict=True):
        np.testing.assert_allclose(
            one.k_PKHS[1, ..., real], many.k_PKHS[1, ..., real], rtol=0, atol=2e-5
        )


def test_pages_and_rings_may_lie_anywhere():
    cache = model().empty_cache(3, CAPACITY)
    rng = np.random.default_rng(6)

    def mixed(ids, count: int):
        """Other ids for the same places; 0 stays."""
        return jnp.asarray(np.r_[0, 1 + rng.permutation(count)], jnp.int32)[ids]

    rings, pages = (len(layer.k_PKHS) - 1 for layer in cache.layers[:2])
    ring_B = mixed(cache.places.ring_B, rings)
    places = kv.Places(mixed(cache.places.table_BJ, pages), ring_B, ring_B)
    cache = dataclasses.replace(cache, places=places)
    cache = feed(cache, [[20, 33, 9]], 33, capacity_check=CAPACITY)
    feed(cache, [[1, 1, 1]] * 20, 1, capacity_check=CAPACITY)


def test_a_prefix_goes_on_in_another_ring_and_keeps_its_own():
    """Row 1 goes on from row 0's prefix twice: its pages are shared, its ring is left as it was."""
    cache = model().empty_cache(3, CAPACITY)
    tokens = np.tile(prompts()[:1], (3, 1))
    length = 32  # two whole pages
    added = np.array([length, 0, 0], np.int32)
    _, cache = extend(model(), tokens[:, :length], added, cache)
    kept = jax.tree.map(np.array, cache.layers)
    places = cache.places
    shared_BJ = places.table_BJ.at[1, :2].set(places.table_BJ[0, :2])
    places = kv.Places(shared_BJ, places.ring_B, places.ring_B.at[1].set(places.ring_B[0]))
    cache = kv.Cache(cache.layers, places, jnp.asarray([length, length, 0], jnp.int32))
    added = np.array([0, 9, 0], np.int32)
    logits, after = extend(model(), tokens[:, length : length + 9], added, cache)
    check(logits[1], 0, length + 9)
    np.testing.assert_array_equal(after.places.source_B, after.places.ring_B)
    own = np.asarray(places.table_BJ[0, :2]), np.asarray(places.ring_B[:1])
    for index, (before, layer) in enumerate(zip(kept, after.layers, strict=True)):
        where = own[1] if CONFIG.window(index) else own[0]
        np.testing.assert_array_equal(before.k_PKHS[where], layer.k_PKHS[where])


def test_rows_without_a_place_write_to_page_zero():
    cache = model().empty_cache(3, CAPACITY)
    nowhere = jax.tree.map(jnp.zeros_like, cache.places)
    tokens = prompts()[:, :9]
    for width, added in ((9, 9), (1, 1)):
        _, after = extend(
            model(),
            tokens[:, :width],
            np.full((3,), added, np.int32),
            dataclasses.replace(cache, places=nowhere),
        )
        for layer in after.layers:
            assert not np.asarray(layer.k_PKHS[1:]).any()
            assert np.asarray(layer.k_PKHS[0]).any()


def test_shapes_of_the_cache():
    cache = model().empty_cache(2, 1000)
    shapes = [layer.k_PKHS.shape for layer in cache.layers]
    heads = (CONFIG.num_kv_heads, CONFIG.head_dim)
    # 63 pages of 16 hold 1000 positions; a ring or a page more is nobody's.
    assert shapes == [(3, *heads, WINDOW), (127, *heads, 16)] * 2
    assert cache.places.table_BJ.shape == (2, 64)
    assert cache.layers[0].v_PKHS.shape == cache.layers[0].k_PKHS.shape
    assert cache.layers[0].k_PKHS.dtype == jnp.float32


@pytest.mark.parametrize("window", [1, 4, 7])
def test_ring_positions(window):
    for length in range(3 * window):
        slots = np.full(window, -1)
        for position in range(length):
            slots[position % window] = position
        actual = np.asarray(kv.ring_positions(jnp.asarray([length]), window))[0]
        np.testing.assert_array_equal(np.maximum(actual, -1), slots)
