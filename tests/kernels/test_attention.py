"""Attention with sinks: the blocked forms against the reference, the reference against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.kernels.attention import packed, reference, xla

pytestmark = pytest.mark.fast

BATCH, HEADS, KV_HEADS, HEAD_DIM = 3, 6, 2, 10
# float32 sums in another order; bfloat16 weights rounded before or after the division.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


def make(queries: int, keys: int, dtype: str = "float32", seed: int = 0):
    """(q, k, v, sinks), with sinks as large as the scores."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.dtype(dtype))

    return (
        normal(BATCH, queries, HEADS, HEAD_DIM),
        normal(BATCH, KV_HEADS, HEAD_DIM, keys),
        normal(BATCH, KV_HEADS, HEAD_DIM, keys),
        normal(HEADS) + 1,
    )


def aligned_mask(queries: int, keys: int, window: int | None, first_key_BT) -> np.ndarray:
    """bool [B, T, S], key by key."""
    mask = np.zeros((BATCH, queries, keys), bool)
    for b, t, s in np.ndindex(mask.shape):
        stands_at = keys - queries + t
        near = window is None or stands_at - s < window
        mask[b, t, s] = first_key_BT[b, t] <= s <= stands_at and near
    return mask


expected_attend = jax.jit(reference.attend)


def check(actual, expected, dtype: str) -> None:
    assert actual.dtype == expected.dtype == jnp.dtype(dtype)
    actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype])


def test_reference_is_softmax_with_a_sink():
    q, k, v, sinks = (np.asarray(x, np.float64) for x in make(4, 7))
    mask = np.random.default_rng(1).random((BATCH, 4, 7)) < 0.6
    mask[1, 2] = False
    actual = expected_attend(*make(4, 7), jnp.asarray(mask))
    for b, t, n in np.ndindex(BATCH, 4, HEADS):
        kv_head = n // (HEADS // KV_HEADS)
        scores = q[b, t, n] @ k[b, kv_head] / np.sqrt(HEAD_DIM)
        weights = np.exp(scores) * mask[b, t]
        expected = v[b, kv_head] @ weights / (weights.sum() + np.exp(sinks[n]))
        np.testing.assert_allclose(actual[b, t, n], expected, rtol=0, atol=1e-6)
    assert not np.asarray(actual[1, 2]).any()


def test_a_large_sink_takes_everything_and_overflows_nothing():
    q, k, v, sinks = make(4, 7)
    mask = jnp.ones((BATCH, 4, 7), bool)
    assert not np.asarray(expected_attend(q, k, v, sinks + 1000, mask)).any()
    np.testing.assert_allclose(
        expected_attend(q, k, v, sinks - 1000, mask),
        expected_attend(q, k, v, jnp.full_like(sinks, -jnp.inf), mask),
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 queries (the least), 3 spans, 2 pages a block: small cases go through all."""
    monkeypatch.setattr(xla, "_MAX_SCORES", 1)
    monkeypatch.setattr(xla, "_SPANS", 3)
    monkeypatch.setattr(xla, "_PAGES_A_BLOCK", 2 * BATCH)


# A table, several cases a line: not one each.
ALIGNED = [
    # Queries, keys, window; a table, several cases a line.
    (1, 1, None), (7, 7, None), (8, 8, None), (9, 9, None), (16, 16, None), (37, 37, None),
    (64, 64, None), (61, 70, None), (5, 40, None),
    (1, 1, 4), (7, 7, 4), (9, 9, 1), (37, 37, 4), (37, 37, 5), (37, 37, 8), (37, 37, 9),
    (37, 37, 36), (37, 37, 37), (37, 37, 38), (33, 38, 5), (64, 96, 32), (10, 42, 32), (3, 35, 32),
]  # fmt: skip


@pytest.mark.parametrize(("queries", "keys", "window"), ALIGNED)
def test_aligned(small_blocks, queries, keys, window):
    check_aligned(queries, keys, window, "float32")


@pytest.mark.parametrize(
    ("queries", "keys", "window"), [(7, 7, None), (37, 37, None), (37, 37, 5), (3, 35, 32)]
)
def test_aligned_in_bfloat16(small_blocks, queries, keys, window):
    check_aligned(queries, keys, window, "bfloat16")


def check_aligned(queries, keys, window, dtype):
    args = make(queries, keys, dtype)
    attend = jax.jit(functools.partial(xla.attend_aligned, window=window))
    packed = np.arange(queries) // 7 * 7 + keys - queries  # segments of 7 queries
    for first in ([0, 0, 0], [0, 1, (keys - queries) or 2], [0, packed, packed // 2]):
        first_key_BT = np.stack([np.broadcast_to(row, queries) for row in first]).astype(np.int32)
        mask = aligned_mask(queries, keys, window, first_key_BT)
        actual = attend(*args, first_key_BT=jnp.asarray(first_key_BT))
        check(actual, expected_attend(*args, jnp.asarray(mask)), dtype)


@pytest.mark.parametrize(("queries", "window"), [(300, None), (300, 128), (300, 257), (513, 129)])
def test_aligned_in_blocks_as_shipped(queries, window):
    """Blocks of 256 queries, cut by their own rule."""
    args = make(queries, queries)
    mask = aligned_mask(queries, queries, window, np.zeros((BATCH, queries)))
    actual = jax.jit(functools.partial(xla.attend_aligned, window=window))(*args)
    check(actual, expected_attend(*args, jnp.asarray(mask)), "float32")


@pytest.mark.parametrize(("queries", "keys", "window"), [(37, 37, None), (37, 37, 5), (20, 31, 4)])
def test_gradient_of_aligned(small_blocks, queries, keys, window):
    args = make(queries, keys)
    mask = jnp.asarray(aligned_mask(queries, keys, window, np.zeros((BATCH, queries))))
    mix = jnp.asarray(np.random.default_rng(2).normal(size=args[0].shape), jnp.float32)

    def gradients(function):
        return jax.jit(jax.grad(lambda x: (function(*x) * mix).sum()))(args)

    actual = gradients(functools.partial(xla.attend_aligned, window=window))
    expected = gradients(lambda *x: reference.attend(*x, mask))
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(e).max() > 0.1
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * float(np.abs(e).max()))


def paged(k_BKHS, v_BKHS, size: int):
    """Keys and values as a cache holds them: (pools [P, K, H, size], table [B, J]), pages mixed.

    Page 0, of no sequence, and the rest of the last pages are not numbers.
    """
    batch, kv_heads, head_dim, keys = k_BKHS.shape
    pages = -(-keys // size)
    table_BJ = 1 + np.random.default_rng(8).permutation(batch * pages).reshape(batch, pages)

    def pool(x):
        padding = ((0, 0), (0, 0), (0, 0), (0, pages * size - keys))
        x = np.pad(np.asarray(x, np.float32), padding, constant_values=np.nan)
        x = x.reshape(batch, kv_heads, head_dim, pages, size).transpose(0, 3, 1, 2, 4)
        whole = np.full((1 + batch * pages, kv_heads, head_dim, size), np.nan, np.float32)
        whole[table_BJ] = x
        return jnp.asarray(whole, k_BKHS.dtype)

    one_more = np.pad(table_BJ, ((0, 0), (0, 1)))
    return pool(k_BKHS), pool(v_BKHS), jnp.asarray(one_more, jnp.int32)


def attend_paged(q, k, v, sinks, position_BT, size: int):
    k_PKHS, v_PKHS, table_BJ = paged(k, v, size)
    # What no query sees is garbage, but a product with it is zero.
    k_PKHS, v_PKHS = (jnp.nan_to_num(x, nan=3.0) for x in (k_PKHS, v_PKHS))
    position_BT = jnp.asarray(position_BT, jnp.int32)
    return jax.jit(xla.attend_cache)(q, k_PKHS, v_PKHS, sinks, table_BJ, position_BT)


@pytest.mark.parametrize(
    ("queries", "keys", "dtype"),
    [
        *((1, keys, "float32") for keys in (5, 8, 9, 16, 30)),
        *((4, keys, dtype) for keys in (9, 30) for dtype in TOLERANCE),
    ],
)
def test_cache(small_blocks, queries, keys, dtype):
    q, k, v, sinks = make(queries, keys, dtype)
    rng = np.random.default_rng(3)
    for last in {0, 3, 4, 7, 8, 9, 15, 16, 23, 24, 25, keys - 1}:
        if last >= keys:
            continue
        position = rng.integers(0, last + 1, (BATCH, queries))
        position[1, -1] = last
        mask = np.arange(keys)[None, None] <= position[..., None]
        actual = attend_paged(q, k, v, sinks, position, 4)
        check(actual, expected_attend(q, k, v, sinks, jnp.asarray(mask)), dtype)


def test_cache_reads_no_pages_past_the_last_position(small_blocks):
    q, k, v, sinks = make(2, 40)
    position = jnp.full((BATCH, 2), 13, jnp.int32)
    poison = jnp.where(jnp.arange(40) < 16, 0.0, jnp.nan).astype(jnp.float32)[None, None, None]
    k_PKHS, v_PKHS, table_BJ = paged(k + poison, v + poison, 4)
    actual = jax.jit(xla.attend_cache)(q, k_PKHS, v_PKHS, sinks, table_BJ, position)
    mask = jnp.broadcast_to(jnp.arange(40)[None, None] <= 13, (BATCH, 2, 40))
    check(actual, expected_attend(q, k, v, sinks, mask), "float32")


@pytest.mark.parametrize("batch", [16, 17])
def test_many_sequences_of_unequal_lengths(batch):
    """On a CPU a few of them at a time, those of like lengths together."""
    parts = [make(2, 40, seed=seed) for seed in range(-(-batch // BATCH))]
    q, k, v = (jnp.concatenate([p[i] for p in parts])[:batch] for i in range(3))
    sinks = parts[0][3]
    rng = np.random.default_rng(4)
    last_B = rng.permutation(np.linspace(1, 39, batch).astype(int))
    position = np.stack([last_B - 1, last_B], axis=1)
    mask = jnp.asarray(np.arange(40)[None, None] <= position[..., None])
    actual = attend_paged(q, k, v, sinks, position, 4)
    check(actual, expected_attend(q, k, v, sinks, mask), "float32")


def test_cache_in_blocks_as_shipped():
    q, k, v, sinks = make(3, 1100)
    position = jnp.asarray([[0, 511, 512], [1023, 1024, 1099], [7, 700, 1098]], jnp.int32)
    mask = jnp.arange(1100)[None, None] <= position[..., None]
    actual = attend_paged(q, k, v, sinks, position, 128)
    check(actual, expected_attend(q, k, v, sinks, mask), "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("queries", "segment"), [(300, 300), (300, 50), (700, 400), (256, 1)])
def test_packed(queries, segment, dtype):
    """Segments within one block, over several, and longer than what a near block reads."""
    args = make(queries, queries, dtype)
    lengths = [segment, max(1, segment // 3), queries]
    starts = [np.arange(queries) // length * length for length in lengths]
    first_key_BT = jnp.asarray(np.stack(starts), jnp.int32)
    mask = jnp.asarray(aligned_mask(queries, queries, None, np.asarray(first_key_BT)))
    actual = jax.jit(packed.attend_packed)(*args, first_key_BT)
    check(actual, expected_attend(*args, mask), dtype)


def test_gradients_of_packed():
    args = make(300, 300)
    first_key_BT = jnp.asarray(np.stack([np.arange(300) // n * n for n in (300, 40, 7)]), jnp.int32)
    mask = jnp.asarray(aligned_mask(300, 300, None, np.asarray(first_key_BT)))

    def gradients(attend, where):
        total = lambda *args: (attend(*args, where) ** 2).sum()  # noqa: E731 - a name for grad
        return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*args)

    ours, theirs = gradients(packed.attend_packed, first_key_BT), gradients(reference.attend, mask)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * float(jnp.abs(b).max()))
