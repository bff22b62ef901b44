"""The packed weight type against the OCP standard, written out here a second time in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_jax import mxfp4
from gptoss_jax.mxfp4 import MXFP4

pytestmark = pytest.mark.fast

# OCP Microscaling Formats v1.0, table 5: e2m1 by code.
E2M1 = np.array(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
)
# Scale bytes whose every product is a normal bfloat16: 0.5 * 2^-125 = 2^-126, 6 * 2^125 < 2^128.
EXACT_SCALES = np.arange(2, 253)
FLOATS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

decode = jax.jit(mxfp4.decode, static_argnames="dtype")
encode = jax.jit(mxfp4.encode)
from_published = jax.jit(mxfp4.from_published)
to_published = jax.jit(mxfp4.to_published)


def expected_values(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float64 [..., K, N] of published blocks [..., N, K/32, 16] and scales [..., N, K/32]."""
    values = np.empty((*blocks.shape[:-1], 32))
    values[..., 0::2] = E2M1[blocks & 15]
    values[..., 1::2] = E2M1[blocks >> 4]
    values *= np.exp2(scales.astype(np.float64) - 127)[..., None]
    return np.swapaxes(values.reshape(*blocks.shape[:-2], -1), -1, -2)


def nearest_code(x: float) -> int:
    """The e2m1 code nearest to x, ties to the even code, beyond 6 saturated."""
    distance = np.abs(E2M1[:8] - abs(x))
    best = np.flatnonzero(distance == distance.min())
    magnitude = next((code for code in best if code % 2 == 0), best[0])
    return int(magnitude) | (8 if np.signbit(x) else 0)


def bits(x) -> np.ndarray:
    """Equal bits tell -0 from 0 and are what bit-exact means."""
    x = np.asarray(x)
    return x.view({2: np.uint16, 4: np.uint32}[x.dtype.itemsize])


def random_blocks(seed: int, *shape: int, codes: int = 16) -> np.ndarray:
    """Published blocks of random codes below `codes`, either sign."""
    rng = np.random.default_rng(seed)
    low, high = rng.integers(0, min(codes, 8), (2, *shape), np.uint8)
    sign_low, sign_high = rng.integers(0, 2, (2, *shape), np.uint8) << 3
    return low | sign_low | ((high | sign_high) << 4)


def every_byte(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks [256, S, 16] that hold every byte everywhere under each of S scales."""
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, len(scales), 16))
    return blocks, np.broadcast_to(scales.astype(np.uint8)[None], (256, len(scales)))


@pytest.mark.parametrize("name", FLOATS)
def test_every_byte_under_every_exact_scale(name):
    blocks, scales = every_byte(EXACT_SCALES)
    actual = decode(from_published(blocks, scales), dtype=jnp.dtype(name))
    expected = expected_values(blocks, scales)
    assert (expected.astype(FLOATS[name]).astype(np.float64) == expected).all()
    np.testing.assert_array_equal(bits(actual), bits(expected.astype(FLOATS[name])))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("scale", [253, 254])
def test_large_scales_overflow_as_ieee_says(name, scale):
    blocks, scales = every_byte(np.array([scale]))
    with np.errstate(over="ignore"):
        expected = expected_values(blocks, scales).astype(FLOATS[name])
    assert np.isinf(expected).any()
    actual = decode(from_published(blocks, scales), dtype=jnp.dtype(name))
    np.testing.assert_array_equal(bits(actual), bits(expected))


@pytest.mark.parametrize("name", FLOATS)
def test_scale_1_flushes_only_what_is_subnormal(name):
    blocks, scales = every_byte(np.array([1]))
    expected = expected_values(blocks, scales)
    expected = np.where(np.abs(expected) < 2.0**-126, 0.0, expected)
    assert len(np.unique(np.abs(expected))) == 7  # all but 0.5 * 2^-126
    actual = np.asarray(decode(from_published(blocks, scales), dtype=jnp.dtype(name)))
    np.testing.assert_array_equal(actual.astype(np.float64), expected)


@pytest.mark.parametrize("name", FLOATS)
def test_scale_0_reads_as_zero(name):
    blocks, scales = every_byte(np.array([0]))
    actual = np.asarray(decode(from_published(blocks, scales), dtype=jnp.dtype(name)))
    np.testing.assert_array_equal(actual.astype(np.float64), np.zeros((32, 256)))


def test_scale_255_is_never_a_number():
    blocks, scales = every_byte(np.array([255]))
    assert not np.isfinite(np.asarray(decode(from_published(blocks, scales)), np.float32)).any()


def test_published_nibble_order_by_hand():
    # 0x21: element 0 is code 1 (0.5), element 1 is code 2 (1.0); 0xF7: 6.0 then -6.0.
    blocks = np.zeros((1, 1, 16), np.uint8)
    blocks[0, 0, 0], blocks[0, 0, 15] = 0x21, 0xF7
    values = np.asarray(decode(from_published(blocks, np.array([[128]], np.uint8))), np.float32)
    expected = np.zeros((32, 1))
    expected[[0, 1, 30, 31], 0] = [1.0, 2.0, 12.0, -12.0]
    np.testing.assert_array_equal(values, expected)


def test_order_in_memory_by_hand():
    # Byte j: element j low, element j + 16 high. Element i of the group has code i % 16.
    codes = np.arange(32) % 16
    published = (codes[0::2] | (codes[1::2] << 4)).astype(np.uint8)[None, None]
    packed = from_published(published, np.array([[127]], np.uint8))
    np.testing.assert_array_equal(np.asarray(packed.blocks)[:, 0], np.arange(16) * 0x11)
    # Rows 16 g + j of the output-minor array belong to group g, whose scale is row g.
    two = from_published(
        np.concatenate([published, 0 * published], axis=1), np.array([[7, 9]], np.uint8)
    )
    assert np.asarray(two.blocks)[16:].max() == 0
    np.testing.assert_array_equal(two.scales, [[7], [9]])


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 3), (2, 7, 5)])
def test_recoding_is_a_bijection(shape):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (*shape, 16), np.uint8)
    scales = rng.integers(0, 256, shape, np.uint8)
    packed = from_published(blocks, scales)
    assert packed.shape == (*shape[:-2], 32 * shape[-1], shape[-2])
    assert packed.nbytes == blocks.nbytes + scales.nbytes
    abstract = MXFP4.abstract(*packed.shape)
    assert (abstract.blocks.shape, abstract.scales.shape) == (
        packed.blocks.shape,
        packed.scales.shape,
    )
    back = to_published(packed)
    np.testing.assert_array_equal(back[0], blocks)
    np.testing.assert_array_equal(back[1], scales)
    # And the other way: every packed byte pattern is some published one.
    again = from_published(*to_published(MXFP4(packed.blocks[..., ::-1, :], packed.scales)))
    np.testing.assert_array_equal(again.blocks, packed.blocks[..., ::-1, :])


@pytest.mark.parametrize("groups", [1, 3, 45])
def test_decode_follows_the_published_meaning(groups):
    blocks = random_blocks(1, 2, 6, groups, 16)
    scales = np.random.default_rng(2).integers(110, 140, (2, 6, groups)).astype(np.uint8)
    actual = decode(from_published(blocks, scales), dtype=jnp.dtype("float32"))
    np.testing.assert_array_equal(actual, expected_values(blocks, scales))


def check_fixed_point(blocks: np.ndarray, scales: np.ndarray) -> None:
    """decode(encode(decode(b))) == decode(b); equal bytes where the largest is 4 or 6."""
    packed = from_published(blocks, scales)
    for dtype in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
        values = decode(packed, dtype=dtype)
        again = encode(values)
        np.testing.assert_array_equal(bits(decode(again, dtype=dtype)), bits(values))
        new_blocks, new_scales = (np.asarray(x) for x in to_published(again))
        codes = np.maximum((blocks & 7).max(-1), ((blocks >> 4) & 7).max(-1))
        np.testing.assert_array_equal(new_blocks[codes >= 6], blocks[codes >= 6])
        np.testing.assert_array_equal(new_scales[codes >= 6], scales[codes >= 6])


@pytest.mark.parametrize("largest_code", range(8))
def test_encode_keeps_what_was_decoded_at_every_scale(largest_code):
    blocks = random_blocks(largest_code, 20, 251, 16, codes=largest_code + 1)
    blocks[:, :, 5] = (blocks[:, :, 5] & 0xF8) | largest_code
    check_fixed_point(blocks, np.broadcast_to(EXACT_SCALES.astype(np.uint8), (20, 251)))


@given(
    st.lists(st.binary(min_size=16, max_size=16), min_size=6, max_size=6),
    st.lists(st.integers(2, 252), min_size=6, max_size=6),
)
def test_encode_keeps_what_was_decoded(rows, scales):
    blocks = np.frombuffer(b"".join(rows), np.uint8).reshape(2, 3, 16)
    check_fixed_point(blocks, np.array(scales, np.uint8).reshape(2, 3))


@given(
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=64, max_size=64
    )
)
def test_encode_follows_the_ocp_rule(values):
    # What lies below the smallest normal scale's grid is not the rule's business.
    x = np.where(np.abs(np.array(values)) < 2.0**-100, 0.0, values).astype(np.float32)
    blocks, scales = (np.asarray(y) for y in to_published(encode(x.reshape(64, 1))))
    for group, x_group in enumerate(x.reshape(2, 32).astype(np.float64)):
        largest = np.abs(x_group).max()
        exponent = int(np.floor(np.log2(largest))) - 2 if largest else 0
        assert scales[0, group] == exponent + 127
        codes = [nearest_code(v) for v in x_group / 2.0**exponent]
        np.testing.assert_array_equal(blocks[0, group] & 15, codes[0::2])
        np.testing.assert_array_equal(blocks[0, group] >> 4, codes[1::2])


# A table, several values a line: not one each.
TIES = {
    0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0,
    # Just beside a tie the nearer one wins.
    0.2499: 0.0, 0.2501: 0.5, 0.7499: 0.5, 1.2501: 1.5, 1.7499: 1.5, 2.4999: 2.0, 2.5001: 3.0,
    3.4999: 3.0, 3.5001: 4.0, 4.9999: 4.0, 5.0001: 6.0,
    # Up to the next power of two the largest magnitude saturates.
    6.0: 6.0, 7.0: 6.0, 7.9999: 6.0,
}  # fmt: skip


@pytest.mark.parametrize(("value", "rounded"), TIES.items())
@pytest.mark.parametrize("exponent", [-40, 0, 13])
def test_ties_go_to_the_even_code(value, rounded, exponent):
    x = np.zeros((32, 2), np.float32)
    x[0], x[3, 0], x[3, 1] = 4.0, value, -value  # 4 fixes the shared exponent at 0
    packed = encode(np.ldexp(x, exponent))
    actual = np.ldexp(np.asarray(decode(packed, dtype=jnp.dtype("float32"))), -exponent)
    np.testing.assert_array_equal(actual[3], [rounded, -rounded])
    np.testing.assert_array_equal(packed.scales, [[127 + exponent] * 2])


def test_encode_zero_and_its_sign():
    x = np.zeros((64, 1), np.float32)
    x[1], x[32], x[33], x[34], x[35] = -0.0, 4.0, -0.0, -0.1, 0.1
    packed = encode(x)
    np.testing.assert_array_equal(np.asarray(packed.scales)[:, 0], [127, 127])
    values = np.asarray(decode(packed, dtype=jnp.dtype("float32")))[:, 0]
    np.testing.assert_array_equal(np.signbit(values[[0, 1, 32, 33, 34, 35]]), [0, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(np.delete(values, 32), np.zeros(63))


def test_encode_saturates_the_scale_not_the_exponent_field():
    # The largest float32 is just under 2^128: exponent 127, less 2, plus 127.
    x = np.full((32, 1), np.finfo(np.float32).max)
    packed = encode(x)
    np.testing.assert_array_equal(packed.scales, [[252]])
    assert np.asarray(decode(packed, dtype=jnp.dtype("float32")))[0, 0] == 6 * 2.0**125
    # The smallest normal ones have no scale of their own below byte 1.
    packed = encode(np.full((32, 1), 2.0**-126, np.float32))
    np.testing.assert_array_equal(packed.scales, [[1]])
    assert np.asarray(decode(packed, dtype=jnp.dtype("float32")))[0, 0] == 2.0**-126


def test_random_weights_are_near_normal():
    values = np.asarray(
        decode(mxfp4.random(jax.random.key(0), 3, 96, 40, scale=0.5), dtype=jnp.dtype("float32"))
    )
    assert values.shape == (3, 96, 40)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 0.5) < 0.03
