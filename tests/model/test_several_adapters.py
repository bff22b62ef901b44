"""Rows of one call with adapters of their own, beside the model with each adapter alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import several

from gptoss_jax.kernels.low_rank import Chosen

# Of rows one has no adapter, and one adapter has two rows.
SLOTS = (3, 1, 0, 8, 2, 5, 7, 4, 6, 3)
WIDTHS = {"few": 1, "many": 24}  # rows of the experts: up to 16, and sorted into tiles


@jax.jit
def extended(model, tokens_BT, chosen=None):
    cache = model.empty_cache(tokens_BT.shape[0], 64)
    whole = jnp.full(tokens_BT.shape[:1], tokens_BT.shape[1], jnp.int32)
    logits, cache = model.extend(tokens_BT, whole, cache, chosen)
    token = logits.argmax(-1)[:, None].astype(jnp.int32)
    after, _ = model.extend(token, jnp.ones_like(whole), cache, chosen)
    return logits, after, token


def tokens(width: int) -> jax.Array:
    drawn = np.random.default_rng(4).integers(0, several.CONFIG.vocab_size, (len(SLOTS), width))
    return jnp.asarray(drawn, jnp.int32)


def chosen() -> Chosen:
    scales = [several.trained(slot - 1).adapter.scale if slot else 0.0 for slot in SLOTS]
    return Chosen(jnp.asarray(SLOTS, jnp.int32), jnp.asarray(scales, jnp.float32), several.RANK)


@pytest.mark.parametrize("rows", WIDTHS)
def test_each_row_is_as_with_its_adapter_alone(rows):
    ids = tokens(WIDTHS[rows])
    together = extended(several.beside(), ids, chosen())
    without = extended(several.base(), ids)
    for slot in range(1, several.COUNT + 1):
        apart = extended(several.alone(slot - 1), ids)
        mine = [row for row, other in enumerate(SLOTS) if other == slot]
        np.testing.assert_array_equal(together[2][jnp.asarray(mine)], apart[2][jnp.asarray(mine)])
        for row in mine:
            for ours, theirs, plain in zip(together[:2], apart[:2], without[:2], strict=True):
                span = float(jnp.ptp(theirs[row]))
                assert float(jnp.abs(ours[row] - theirs[row]).max()) <= 1e-5 * span
                assert float(jnp.abs(plain[row] - theirs[row]).max()) > 1e-2 * span


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", WIDTHS)
def test_a_row_without_an_adapter_is_the_model_bit_for_bit(rows, dtype):
    ids = tokens(WIDTHS[rows])
    together = extended(several.beside(dtype), ids, chosen())
    without = extended(several.base(dtype), ids)
    row = SLOTS.index(0)
    for ours, theirs in zip(together, without, strict=True):
        np.testing.assert_array_equal(ours[row], theirs[row])
