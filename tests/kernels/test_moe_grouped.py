"""The grouped form and its kernel for Hopper, in Mosaic GPU's interpret mode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_interpreter import interpreted
from moe_cases import ACTIVE, EXPERTS, check, make_experts, make_rows, reference_moe, routing

from gptoss_jax import mxfp4
from gptoss_jax.kernels import hopper
from gptoss_jax.kernels.low_rank import Chosen, LowRank
from gptoss_jax.kernels.moe import dispatch, grouped, mosaic_gpu, xla

HIDDEN, WIDTH = 128, 64


def experts_of(kind: str = "packed"):
    return make_experts(kind, hidden=HIDDEN, width=WIDTH)


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        (1, "spread"),
        (7, "all_padded"),
        (9, "first_and_last_empty"),
        (16, "one_set"),
        (33, "partly_none"),
        (70, "skewed"),  # one expert takes every row: two tiles
        (70, "padded"),
    ],
)
def test_routing_patterns(rows, pattern):
    x, weight = make_rows(rows, "bfloat16", HIDDEN)
    chosen = routing(pattern, rows)
    actual = interpreted(grouped.moe, x, chosen, weight, experts_of())
    # The sums of float32 products: what differs is their order.
    check(actual, reference_moe(x, chosen, weight, experts_of()), "float32")
    assert not actual[(chosen >= EXPERTS).all(-1)].any()


@pytest.mark.parametrize(
    ("shape", "rows", "programs"),
    [
        ((2, 448, 64), 16, 1),  # seven steps: stages are filled again
        ((3, 128, 320), 3, 1),  # columns that 128 does not divide
        ((2, 384, 192), 8, 4),  # two parts of K
    ],
)
def test_tiles_of_rows(monkeypatch, shape, rows, programs):
    monkeypatch.setattr(mosaic_gpu, "_PROGRAMS", programs)
    rng = np.random.default_rng(0)
    w = mxfp4.encode(jnp.asarray(rng.normal(size=shape), jnp.float32))
    expert = np.array([1, 0, 0], np.int32)
    x = jnp.asarray(rng.normal(size=(3, rows, shape[1])), jnp.bfloat16)

    def two_tiles(x, w):
        return mosaic_gpu.matmul(x, w, expert_T=jnp.asarray(expert), tiles=jnp.asarray(2))

    dense = np.asarray(mxfp4.decode(w, jnp.dtype("float32")), np.float64)
    expected = np.asarray(x, np.float64) @ dense[expert]
    actual = interpreted(two_tiles, x, w)
    check(actual[:2], expected[:2], "float32")
    assert np.isnan(actual[2]).all()  # never written


def factors(weight, ranks: int, seed: int) -> LowRank:
    rng = np.random.default_rng(seed)
    experts, *widths = weight.shape
    a, b = (jnp.asarray(rng.normal(0, 0.2, (experts, ranks, w)), jnp.bfloat16) for w in widths)
    return LowRank(weight, a, b, scale=0.5)


def adapted(ranks: int = 6, rows: Chosen | None = None):
    weights = {"w_gate_up": experts_of().w_gate_up, "w_down": experts_of().w_down}
    given = {name: factors(w, ranks, seed) for seed, (name, w) in enumerate(weights.items())}
    given = {name: dataclasses.replace(w, rows=rows) for name, w in given.items()}
    return dataclasses.replace(experts_of(), **given)


def of_slot(weight: LowRank, slot: int) -> LowRank | mxfp4.MXFP4:
    first = 2 * (slot - 1)
    a, b = (x[:, first : first + 2] for x in (weight.a, weight.b))
    return LowRank(weight.base, a, b, scale=0.5) if slot else weight.base


def test_factors():
    x, weight = make_rows(33, "bfloat16", HIDDEN)
    chosen = routing("partly_none", 33)
    actual = interpreted(grouped.moe, x, chosen, weight, adapted())
    check(actual, xla.moe(x, chosen, weight, adapted()), "bfloat16")
    plain = interpreted(grouped.moe, x, chosen, weight, experts_of())
    assert np.abs(actual - plain).max() > 0.1 * np.abs(plain).max()


def test_factors_that_rows_choose():
    """Three slots of rank 2, and rows without."""
    x, weight = make_rows(33, "bfloat16", HIDDEN)
    chosen = routing("partly_none", 33)
    slot_R = np.random.default_rng(3).integers(0, 4, 33).astype(np.int32)
    rows = Chosen(jnp.asarray(slot_R), jnp.where(slot_R > 0, 0.5, 0.0), 2)
    actual = interpreted(grouped.moe, x, chosen, weight, adapted(rows=rows))
    for slot in range(4):
        whole = adapted()
        alone = dataclasses.replace(
            whole, w_gate_up=of_slot(whole.w_gate_up, slot), w_down=of_slot(whole.w_down, slot)
        )
        expected = interpreted(grouped.moe, x, chosen, weight, alone)
        mine = slot_R == slot
        assert mine.sum() > 3
        if slot:
            check(actual[mine], expected[mine], "bfloat16")
        else:
            np.testing.assert_array_equal(actual[mine], expected[mine])


def test_every_code_in_every_place_is_exact():
    scales = np.array([2, 24, 127, 252], np.uint8)
    bytes_ = np.tile(np.arange(256, dtype=np.uint8), len(scales))
    w = mxfp4.MXFP4(
        jnp.asarray(np.broadcast_to(bytes_, (1, 32, bytes_.size))),
        jnp.asarray(np.broadcast_to(np.repeat(scales, 256), (2, bytes_.size))),
    )
    one_hot = jnp.eye(64, dtype=jnp.bfloat16)[None]
    only = {"expert_T": jnp.zeros((1,), jnp.int32), "tiles": jnp.asarray(1)}
    actual = interpreted(lambda x, w: mosaic_gpu.matmul(x, w, **only), one_hot, w)
    np.testing.assert_array_equal(actual, mxfp4.decode(w, jnp.dtype("float32")))


def test_a_row_does_not_depend_on_the_others():
    rows = 5
    x, weight = make_rows(rows, "bfloat16", HIDDEN)
    chosen = routing("spread", rows)
    first = interpreted(grouped.moe, x, chosen, weight, experts_of())
    kept = np.arange(rows) % 2 == 0
    others = jnp.where(kept[:, None], x, x[::-1] * 5 + 1)
    rerouted = np.where(kept[:, None], chosen, (chosen + 1) % EXPERTS)
    second = interpreted(grouped.moe, others, rerouted, weight, experts_of())
    np.testing.assert_array_equal(first[kept], second[kept])
    assert (first[~kept] != second[~kept]).any(-1).all()


@pytest.mark.parametrize(
    ("rows", "experts", "size"),
    [(1, 32, 8), (8, 128, 8), (16, 32, 8), (64, 32, 16), (64, 4, 64), (512, 128, 32)],
)
def test_tile_size(rows, experts, size):
    assert grouped.tile_size(rows, 4, experts) == size


@pytest.mark.parametrize("size", [8, 16, 64])
def test_no_routing_has_more_tiles(size):
    rng = np.random.default_rng(size)
    for rows in (1, 3, size, size + 1, 100):
        most = grouped.most_tiles(rows, ACTIVE, EXPERTS, size)
        for _ in range(50):
            few = rng.integers(ACTIVE, EXPERTS + 1)
            chosen = np.stack([rng.permutation(few)[:ACTIVE] for _ in range(rows)])
            counts = np.bincount(chosen.reshape(-1), minlength=EXPERTS)
            assert (-(-counts // size)).sum() <= most


def test_who_takes_the_kernel(monkeypatch):
    x, weight = make_rows(3, "bfloat16", HIDDEN)
    assert not grouped.takes(x, experts_of())  # no Hopper here
    monkeypatch.setattr(hopper, "is_target", lambda: True)
    assert grouped.takes(x, experts_of())
    assert not grouped.takes(x.astype(jnp.float32), experts_of())
    assert not grouped.takes(jnp.tile(x, (171, 1)), experts_of())  # 513 rows
    assert not grouped.takes(x, experts_of("arrays"))
    assert grouped.takes(x, adapted())
    assert not grouped.takes(*(make_rows(3, "bfloat16")[:1]), make_experts("packed"))  # 96 inputs
    # Compiled for this platform all the same, the other form runs.
    chosen = routing("spread", 3)
    actual = jax.jit(dispatch.moe)(x, chosen, weight, experts_of())
    check(actual, reference_moe(x, chosen, weight, experts_of()), "bfloat16")
