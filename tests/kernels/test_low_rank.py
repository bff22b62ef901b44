"""Factors of which each row takes its own, beside each adapter alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax import mxfp4
from gptoss_jax.kernels.dense import dense
from gptoss_jax.kernels.low_rank import Chosen, LowRank
from gptoss_jax.kernels.moe import Experts, moe, reference, xla

EXPERTS, WIDTH, INNER, OUTPUTS = 5, 64, 96, 48
SLOTS, RANK = 3, 2
SCALES = (0.0, 0.5, 1.5, 0.7)
rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32)


def slot_of(weight: LowRank, slot: int) -> LowRank | jax.Array | mxfp4.MXFP4:
    """What rows of a slot meet."""
    if slot == 0:
        return weight.base
    first = (slot - 1) * RANK
    a, b = (factor[..., first : first + RANK, :] for factor in (weight.a, weight.b))
    return LowRank(weight.base, a, b, scale=SCALES[slot])


def chosen(rows: int) -> Chosen:
    slot_R = np.random.default_rng(1).integers(0, SLOTS + 1, rows).astype(np.int32)
    return Chosen(jnp.asarray(slot_R), jnp.asarray(SCALES, jnp.float32)[slot_R], RANK)


def test_a_matrix():
    weight = LowRank(
        normal(OUTPUTS, WIDTH), normal(SLOTS * RANK, WIDTH), normal(SLOTS * RANK, OUTPUTS)
    )
    x_RD, rows = normal(17, WIDTH), chosen(17)
    together = dense(x_RD, dataclasses.replace(weight, rows=rows), normal(OUTPUTS) * 0)
    for slot in range(SLOTS + 1):
        mine = np.asarray(rows.slot_R) == slot
        assert mine.any()
        apart = dense(x_RD, slot_of(weight, slot))
        np.testing.assert_allclose(together[mine], apart[mine], rtol=1e-5, atol=1e-5)


def weight_of(inputs: int, outputs: int, packed: bool) -> LowRank:
    base = normal(EXPERTS, inputs, outputs)
    ranks = SLOTS * RANK
    factors = normal(EXPERTS, ranks, inputs), normal(EXPERTS, ranks, outputs)
    return LowRank(mxfp4.encode(base) if packed else base, *factors)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("count", [9, 40, 200], ids=["few", "many", "blocks"])
def test_experts(monkeypatch, count, packed):
    """In all forms: every expert on all rows, tiles of sorted rows, and blocks of rows."""
    monkeypatch.setattr(xla, "_MAX_ROWS", 64)
    fixed = {"alpha": 1.702, "limit": 7.0}
    biases = normal(EXPERTS, 2 * INNER), normal(EXPERTS, WIDTH)
    up, down = weight_of(WIDTH, 2 * INNER, packed), weight_of(INNER, WIDTH, packed)
    rows, x_RD = chosen(count), normal(count, WIDTH)
    ids = np.stack([np.random.default_rng(row).permutation(EXPERTS)[:2] for row in range(count)])
    ids[::7, 0] = EXPERTS  # no expert
    operands = x_RD, jnp.asarray(ids, jnp.int32), jnp.abs(normal(count, 2))

    def experts(first, second):
        return Experts(first, biases[0], second, biases[1], **fixed)

    with_rows = (dataclasses.replace(weight, rows=rows) for weight in (up, down))
    together = jax.jit(moe)(*operands, experts(*with_rows))
    for slot in range(SLOTS + 1):
        mine = np.asarray(rows.slot_R) == slot
        assert mine.any()
        apart = reference.moe(*operands, experts(slot_of(up, slot), slot_of(down, slot)))
        assert np.abs(together[mine] - apart[mine]).max() <= 1e-5 * np.ptp(apart)
