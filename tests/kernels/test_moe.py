"""Mixture of experts: forms and expert matmuls against the reference, that against NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moe_cases import (
    ACTIVE,
    EXPERTS,
    HIDDEN,
    PATTERNS,
    TOLERANCE,
    WIDTH,
    check,
    make_experts,
    make_rows,
    reference_moe,
    routing,
)

from gptoss_jax import mxfp4
from gptoss_jax.kernels.moe import expert_matmul, gradient, pairs, reference, xla
from gptoss_jax.kernels.moe.experts import swiglu

pytestmark = pytest.mark.fast

FORMS = {"few": xla.few_rows, "many": xla.many_rows, "chosen": xla.moe}
jitted = {name: jax.jit(form) for name, form in FORMS.items()}


def test_reference_is_the_published_formula():
    experts, (x, weight), chosen = make_experts("packed"), make_rows(7), routing("padded", 7)
    w_gate_up, w_down = (
        np.asarray(mxfp4.decode(w), np.float64) for w in (experts.w_gate_up, experts.w_down)
    )
    seen = []
    for r in range(7):
        expected = np.zeros(HIDDEN)
        for e, share in zip(chosen[r], np.asarray(weight)[r], strict=True):
            if e >= EXPERTS:
                continue
            h = np.asarray(x, np.float64)[r] @ w_gate_up[e] + np.asarray(experts.b_gate_up)[e]
            gate, up = np.minimum(h[:WIDTH], 7.0), np.clip(h[WIDTH:], -7.0, 7.0)
            seen.extend(h)
            a = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            expected += share * (a @ w_down[e] + np.asarray(experts.b_down)[e])
        check(reference_moe(x, chosen, weight, experts)[r], expected, "float32")
    assert min(seen) < -7.5
    assert max(seen) > 7.5


def test_swiglu_clamps_the_gate_above_only():
    gate = np.array([-20.0, -8.0, -7.0, 0.0, 3.0, 7.0, 8.0, 50.0])
    up = np.array([-50.0, -7.5, -7.0, -1.0, 0.0, 6.5, 7.0, 90.0])
    gate, up = (x.reshape(-1) for x in np.meshgrid(gate, up))
    clamped = np.where(gate > 7, 7.0, gate)
    expected = clamped / (1 + np.exp(-1.702 * clamped)) * (np.clip(up, -7, 7) + 1)
    actual = swiglu(jnp.asarray(np.concatenate([gate, up]), jnp.float32), 1.702, 7.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rows", [1, xla.FEW_ROWS, 45])
@pytest.mark.parametrize("form", ["few", "many"])
def test_routing_patterns(form, rows, pattern):
    experts, (x, weight), chosen = make_experts("packed"), make_rows(rows), routing(pattern, rows)
    actual = jitted[form](x, chosen, weight, experts)
    check(actual, reference_moe(x, chosen, weight, experts), "float32")
    nowhere = (chosen >= EXPERTS).all(-1)
    assert not np.asarray(actual)[nowhere].any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["packed", "arrays"])
@pytest.mark.parametrize("rows", [2, xla.FEW_ROWS - 1, xla.FEW_ROWS, xla.FEW_ROWS + 1, 70])
def test_weights_and_dtypes(rows, kind, dtype):
    experts, (x, weight) = make_experts(kind, dtype), make_rows(rows, dtype)
    chosen = routing("spread", rows)
    actual = jitted["chosen"](x, chosen, weight, experts)
    check(actual, reference_moe(x, chosen, weight, make_experts("packed")), dtype)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17, 40])
def test_ragged_tails_of_one_expert(rows):
    """Groups just under, at and over whole tiles, the last of which runs past the sorted rows."""
    experts, (x, weight) = make_experts("packed"), make_rows(rows)
    assert pairs.tile_size(rows * ACTIVE, EXPERTS) in (8, 16, 32)
    chosen = np.tile(np.array([[5, 6, 7]], np.int32), (rows, 1))  # the last expert only
    actual = jitted["many"](x, chosen, weight, experts)
    check(actual, reference_moe(x, chosen, weight, experts), "float32")


@pytest.mark.parametrize(
    ("num_pairs", "experts", "expected"),
    [(1, 32, 8), (119, 32, 8), (256, 32, 16), (320, 32, 32), (8192, 32, 288), (10**6, 32, 512)],
)
def test_tile_size(num_pairs, experts, expected):
    assert pairs.tile_size(num_pairs, experts) == expected


def test_weights_that_need_no_decoding_come_in_smaller_tiles():
    chosen = np.zeros((4096, 2), np.int32)
    sizes = [pairs.sort_pairs(chosen, 8, packed=packed).size for packed in (True, False)]
    assert sizes == [512, 256]


@pytest.mark.parametrize(("form", "rows"), [("few", 12), ("many", 50)])
def test_a_row_does_not_depend_on_the_others(form, rows):
    """Bit for bit, so that a batch cannot change a sequence: other values and other experts."""
    experts, (x, weight), chosen = make_experts("packed"), make_rows(rows), routing("spread", rows)
    first = np.asarray(jitted[form](x, chosen, weight, experts))
    kept = np.arange(rows) % 3 == 0
    others = jnp.asarray(np.where(kept[:, None], np.asarray(x), np.asarray(x)[::-1] * 5 + 1))
    rerouted = np.where(kept[:, None], chosen, (chosen + 1) % EXPERTS)
    second = np.asarray(jitted[form](others, rerouted, weight, experts))
    np.testing.assert_array_equal(first[kept], second[kept])
    assert (first[~kept] != second[~kept]).any(-1).all()


def gradients(form, kind: str, rows: int, pattern: str):
    """Of the sum of squares, in the rows, their weights and what is float of the experts."""
    experts, (x, weight), chosen = make_experts(kind), make_rows(rows), routing(pattern, rows)
    leaves, treedef = jax.tree.flatten(experts)
    floats = [leaf if leaf.dtype == jnp.float32 else None for leaf in leaves]

    def total(x, weight, floats):
        merged = [f if f is not None else leaf for f, leaf in zip(floats, leaves, strict=True)]
        return (form(x, chosen, weight, jax.tree.unflatten(treedef, merged)) ** 2).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(x, weight, floats)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rows", [1, 45])
@pytest.mark.parametrize("kind", ["packed", "arrays"])
def test_gradients(kind, rows, pattern):
    actual = gradients(gradient.moe, kind, rows, pattern)
    expected = gradients(reference.moe, kind, rows, pattern)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["packed", "arrays"])
def test_gradients_of_bfloat16(kind):
    """Dtypes of the arguments; the rest is what rounding leaves."""
    experts, (x, weight), chosen = (
        make_experts(kind),
        make_rows(45, "bfloat16"),
        routing("spread", 45),
    )
    ours, theirs = (
        jax.jit(jax.grad(lambda x, form=form: form(x, chosen, weight, experts).sum()))(x)
        for form in (gradient.moe, reference.moe)
    )
    assert ours.dtype == jnp.bfloat16
    scale = float(jnp.abs(theirs).max())
    difference = ours.astype(jnp.float32) - theirs.astype(jnp.float32)
    assert float(jnp.abs(difference).max()) < 0.02 * scale


@pytest.mark.parametrize("rows", [41, 60, 79])
def test_blocks_of_rows(monkeypatch, rows):
    """The last block of 41 and 79 rows is moved back over the one before."""
    experts, (x, weight), chosen = make_experts("packed"), make_rows(rows), routing("padded", rows)
    expected = jitted["many"](x, chosen, weight, experts)
    monkeypatch.setattr(xla, "_MAX_ROWS", 20)
    actual = jax.jit(lambda *args: xla.moe(*args))(x, chosen, weight, experts)
    check(actual, expected, "float32")


def test_a_padded_row_may_hold_anything():
    experts, (x, weight), chosen = make_experts("packed"), make_rows(40), routing("padded", 40)
    nowhere = (chosen >= EXPERTS).all(-1)
    poisoned = jnp.where(jnp.asarray(nowhere)[:, None], jnp.float32(np.inf), x)
    # Of many rows: few rows are all computed and what is nowhere is multiplied by zero.
    actual = np.asarray(jitted["many"](poisoned, chosen, weight, experts))
    expected = np.asarray(reference_moe(x, chosen, weight, experts))
    check(actual[~nowhere], expected[~nowhere], "float32")


MATMULS = {
    "dispatched": expert_matmul.expert_matmul,
    "planes": expert_matmul._packed_planes,
    "cpu": expert_matmul._packed_cpu,
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 3, 19])
@pytest.mark.parametrize("name", MATMULS)
def test_expert_matmul(name, rows, dtype):
    w = make_experts("packed").w_gate_up
    x, _ = make_rows(rows, dtype)
    dense = np.asarray(mxfp4.decode(w, jnp.dtype("float32")), np.float64)
    matmul = jax.jit(MATMULS[name.split()[0]])
    for expert in (0, EXPERTS - 1):
        expected = np.asarray(x, np.float64) @ dense[expert]
        # Products are exact in either dtype: one tolerance.
        check(matmul(x, w, jnp.asarray(expert)), expected, "float32")


@pytest.mark.parametrize("rows", [1, 19])
def test_expert_matmul_in_tiles(rows, monkeypatch):
    monkeypatch.setattr(expert_matmul, "_TILE_BYTES", 2 * 16 * 64)
    rng = np.random.default_rng(0)
    w = mxfp4.encode(jnp.asarray(rng.normal(size=(3, 192, 64)), jnp.float32))
    x = jnp.asarray(rng.normal(size=(rows, 192)), jnp.float32)
    text = jax.jit(expert_matmul._packed_tiles).lower(x, w, jnp.asarray(2)).as_text(debug_info=True)
    assert "rounds_3" in text
    dense = np.asarray(mxfp4.decode(w, jnp.dtype("float32")), np.float64)
    for expert in (0, 2):
        actual = jax.jit(expert_matmul._packed_tiles)(x, w, jnp.asarray(expert))
        check(actual, np.asarray(x, np.float64) @ dense[expert], "float32")


@pytest.mark.parametrize("bytes_a_tile", [2 * 16 * 64, 3 << 20])
def test_the_transposed_product_decodes_no_more_than_a_tile(bytes_a_tile, monkeypatch):
    monkeypatch.setattr(expert_matmul, "_TILE_BYTES", bytes_a_tile)
    rng = np.random.default_rng(0)
    w = mxfp4.encode(jnp.asarray(rng.normal(size=(3, 192, 64)), jnp.float32))
    g = jnp.asarray(rng.normal(size=(5, 64)), jnp.float32)
    # Its own function: a program that was traced with another size would be found.
    transposed = jax.jit(lambda *given: expert_matmul.expert_matmul_transposed(*given))
    dense = np.asarray(mxfp4.decode(w, jnp.dtype("float32")), np.float64)
    for expert in (0, 2):
        actual = transposed(g, w, jnp.asarray(expert))
        check(actual, np.asarray(g, np.float64) @ dense[expert].T, "float32")
    text = str(jax.make_jaxpr(transposed)(g, w, jnp.asarray(2)))
    decoded = {int(rows) for rows in re.findall(r"f32\[(\d+),64\]", text)} - {5}
    assert max(decoded) == min(96, bytes_a_tile // 64)


@pytest.mark.parametrize(
    ("groups", "n", "tile"),
    [(90, 5760, 30), (90, 2880, 30), (4, 256, 4), (3, 10**6, 3), (45, 10**6, 45), (128, 2880, 64)],
)
def test_tiles_of_whole_groups(groups, n, tile):
    assert expert_matmul._groups_a_tile(groups, n) == tile


@pytest.mark.parametrize("rows", [1, 19])
def test_expert_matmul_of_an_array(rows):
    w = make_experts("arrays").w_down
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, WIDTH)), jnp.float32)
    actual = jax.jit(expert_matmul.expert_matmul)(x, w, jnp.asarray(2))
    check(actual, np.asarray(x, np.float64) @ np.asarray(w, np.float64)[2], "float32")


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_are_fused_with_decoding_a_weight_of_several_tiles(monkeypatch, rows):
    monkeypatch.setattr(expert_matmul, "_TILE", 64 * HIDDEN)
    monkeypatch.setattr(expert_matmul, "_SMALL", 0)
    w = make_experts("packed").w_gate_up
    x, _ = make_rows(rows)
    program = jax.jit(lambda *args: expert_matmul._packed_cpu(*args))
    assert "dot_general" not in program.lower(x, w, jnp.asarray(3)).as_text()
    dense = np.asarray(mxfp4.decode(w, jnp.dtype("float32")), np.float64)
    actual = program(x, w, jnp.asarray(3))
    check(actual, np.asarray(x, np.float64) @ dense[3], "float32")


@pytest.mark.parametrize("columns", [64, 128, 192, 320])
def test_expert_matmul_tiles_that_overlap_or_do_not(monkeypatch, columns):
    monkeypatch.setattr(expert_matmul, "_TILE", columns * HIDDEN)
    w = make_experts("packed").w_gate_up  # 320 columns
    x, _ = make_rows(5)
    dense = np.asarray(mxfp4.decode(w, jnp.dtype("float32")), np.float64)
    actual = jax.jit(lambda *args: expert_matmul._packed_cpu(*args))(x, w, jnp.asarray(3))
    check(actual, np.asarray(x, np.float64) @ dense[3], "float32")


def every_code(scales: np.ndarray) -> mxfp4.MXFP4:
    """[2, 32, 256 S]: every byte in every place, under each scale."""
    blocks = np.tile(np.arange(256, dtype=np.uint8), len(scales))
    scales = np.repeat(scales.astype(np.uint8), 256)
    return mxfp4.MXFP4(
        jnp.asarray(np.broadcast_to(blocks, (2, 16, blocks.size))),
        jnp.asarray(np.broadcast_to(scales, (2, scales.size))),
    )


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["planes", "cpu", "cpu fused"])
def test_expert_matmul_of_every_code_is_exact(monkeypatch, name, rows):
    """One-hot rows read single weights: subnormals of the decoding tricks must not be flushed."""
    if name == "cpu fused":
        monkeypatch.setattr(expert_matmul, "_TILE", 1)
    w = every_code(np.array([24, 100, 127, 150, 230]))
    dense = np.asarray(mxfp4.decode(w, jnp.dtype("float32")))[1]
    matmul = jax.jit(MATMULS[name.split()[0]])
    for k in range(0, 32, rows):
        picked = np.arange(k, k + rows) % 32
        x = jnp.asarray(np.eye(32, dtype=np.float32)[picked])
        np.testing.assert_array_equal(matmul(x, w, jnp.asarray(1)), dense[picked])
