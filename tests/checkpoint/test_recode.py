import ml_dtypes
import numpy as np
import pytest

from gptoss_jax import mxfp4
from gptoss_jax.checkpoint import recode


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("outputs", [2, 320, 390, 770])  # below, between and above whole tiles
def test_recode_is_mxfp4_from_published(outputs, interleaved):
    rng = np.random.default_rng(outputs)
    blocks = rng.integers(0, 256, (2, outputs, 3, 16), np.uint8)
    scales = rng.integers(0, 255, (2, outputs, 3), np.uint8)
    order = np.arange(outputs)
    if interleaved:
        order = np.concatenate([order[0::2], order[1::2]])
    expected = mxfp4.from_published(blocks[:, order], scales[:, order])
    our_blocks = np.empty((2, 48, outputs), np.uint8)
    our_scales = np.empty((2, 3, outputs), np.uint8)
    recode.recode_blocks(blocks, our_blocks, interleaved=interleaved)
    recode.recode_scales(scales, our_scales, interleaved=interleaved)
    np.testing.assert_array_equal(our_blocks, expected.blocks)
    np.testing.assert_array_equal(our_scales.reshape(-1, outputs), expected.scales)
    back = recode.publish_blocks(our_blocks, interleaved=interleaved)
    np.testing.assert_array_equal(back, blocks)
    back = recode.publish_scales(our_scales, interleaved=interleaved)
    np.testing.assert_array_equal(back, scales)


def test_gates_first_and_back():
    x = np.arange(2 * 3 * 8).astype(ml_dtypes.bfloat16).reshape(2, 3, 8)
    out = np.empty_like(x)
    recode.gates_first(x, out)
    assert out[0, 0].astype(int).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_array_equal(recode.interleave(out), x)
