"""The objective against plain formulas, and quantisation-aware parameters."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sample

from gptoss_jax import mxfp4
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import Adapter
from gptoss_jax.training import objective, qat
from gptoss_jax.training.packing import Batch

CONFIG = sample.SHAPES["no_groups"]  # two layers: gradients take long to compile
ROWS, LENGTH = 3, 40


@functools.cache
def model():
    weights = sample.make_weights(CONFIG, seed=2)
    stored = sample.make_model(CONFIG, weights, packed_experts=False)
    return jax.tree.map(lambda w: w.astype(jnp.float32), stored)


@functools.cache
def batch() -> Batch:
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, CONFIG.vocab_size, (2, ROWS, LENGTH), np.int32)
    real = np.arange(LENGTH)[None] < np.array([40, 33, 17])[:, None]
    weights = (rng.random((ROWS, LENGTH)) < 0.4) & real
    positions = np.where(real, np.arange(LENGTH), 0).astype(np.int32)
    arrays = (tokens, targets, weights.astype(np.float32), real.astype(np.int32), positions)
    return Batch(*map(jnp.asarray, arrays))


@functools.partial(jax.jit, static_argnames=("balance_coefficient", "qat"))
def run(model, batch, balance_coefficient=0.0, qat=False):
    return objective.loss(
        model, batch, balance_coefficient=balance_coefficient, qat=qat, remat=False
    )


@pytest.mark.parametrize("block", [2**24, 7 * CONFIG.vocab_size])
def test_cross_entropy_is_that_of_the_weighted_targets(monkeypatch, block):
    monkeypatch.setattr(objective, "_BLOCK", block)  # 7 rows a block: the last one is padded
    b = batch()
    logits = np.asarray(jax.jit(lambda m, t: m(t))(model(), b.tokens_BT), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.take_along_axis(logp, np.asarray(b.targets_BT)[..., None], -1)[..., 0]
    weights = np.asarray(b.weights_BT)
    fresh = jax.jit(functools.partial(run.__wrapped__))  # not the other block's program
    total, metrics = fresh(model(), b)
    np.testing.assert_allclose(total, -(rows * weights).sum(), rtol=1e-5)
    correct = (logits.argmax(-1) == np.asarray(b.targets_BT)) * weights
    assert float(metrics["correct_sum"]) == correct.sum()
    assert float(metrics["weight_sum"]) == weights.sum()


def test_logits_are_never_whole(monkeypatch):
    """Neither of the loss nor for its gradient: no array of the program has more than a block."""
    vocab = CONFIG.vocab_size
    monkeypatch.setattr(objective, "_BLOCK", 7 * vocab)

    def loss(model):
        given = {"balance_coefficient": 0.0, "qat": False, "remat": False}
        return objective.loss(model, batch(), **given)[0]

    text = str(jax.make_jaxpr(jax.grad(loss))(model()))
    shapes = re.findall(rf"f32\[((?:\d+,)+{vocab})\]", text)
    assert {math.prod(map(int, shape.split(","))) for shape in shapes} == {7 * vocab}


def test_blocks_drop_other_inputs_of_the_unembedding(monkeypatch):
    """The same row and target everywhere: without dropout one loss, with it each row's own."""
    monkeypatch.setattr(objective, "_BLOCK", CONFIG.vocab_size)  # a row a block
    adapter = Adapter(rank=2, alpha=4.0, dropout=0.5, targets=("unembedding",))
    rng = np.random.default_rng(1)
    shapes = lora.trained_shapes(model(), adapter)
    given = {p: jnp.asarray(rng.normal(size=shape), jnp.float32) for p, shape in shapes.items()}
    adapted = lora.attach(model(), adapter, given)
    x_BTD = jnp.ones((1, 8, CONFIG.hidden_size))

    def losses(model):
        return np.asarray(objective._cross_entropy(model, x_BTD, jnp.zeros((1, 8), jnp.int32))[0])

    assert len(set(losses(adapted)[0].tolist())) == 1
    assert len(set(losses(lora.with_dropout(adapted, jax.random.key(0)))[0].tolist())) == 8


def test_balance_counts_real_tokens_only():
    num_experts, active = 4, 2
    logits = jnp.log(jnp.asarray([[8.0, 4, 2, 2], [8, 4, 2, 2], [1, 1, 1, 97]]))
    real = jnp.asarray([True, True, False])
    share, term = objective.balance(logits, real, active)
    np.testing.assert_allclose(share, [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(term, num_experts * (0.5 * 0.5 + 0.5 * 0.25), rtol=1e-6)
    even = objective.balance(jnp.zeros((3, num_experts)), jnp.ones(3, bool), num_experts)[1]
    np.testing.assert_allclose(even, 1.0, rtol=1e-6)


def test_the_balance_term_counts_once_a_weighted_token():
    plain, metrics = run(model(), batch())
    more, _ = run(model(), batch(), balance_coefficient=0.5)
    expected = 0.5 * metrics["balance"] * metrics["weight_sum"]
    np.testing.assert_allclose(more - plain, expected, rtol=1e-3)
    assert metrics["expert_use_LE"].shape == (CONFIG.num_layers, CONFIG.num_experts)
    np.testing.assert_allclose(metrics["expert_use_LE"].sum(-1), 1.0, rtol=1e-6)


def off_grid():
    """A model no weight of which is what its packed form holds."""
    rng = np.random.default_rng(1)

    def off(w):
        return w * jnp.asarray(1 + 0.01 * rng.normal(size=w.shape), w.dtype)

    return jax.tree.map(off, model())


def test_quantised_parameters_are_the_packed_ones():
    shipped, packed = jax.jit(qat.as_shipped)(off_grid()), qat.pack(off_grid())
    for ours, theirs in zip(shipped.layers, packed.layers, strict=True):
        for name in ("w_gate_up_EDF", "w_down_EFD"):
            held = mxfp4.decode(getattr(theirs.moe, name).get_value(), jnp.dtype("float32"))
            np.testing.assert_array_equal(getattr(ours.moe, name)[...], held)
        np.testing.assert_array_equal(
            ours.attention.w_q_AD[...], theirs.attention.w_q_AD[...].astype(jnp.float32)
        )


def test_packing_leaves_the_model_alone():
    before = off_grid()
    after = jax.tree.map(lambda x: x, before)
    qat.pack(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_pass_straight_through():
    """They are those of the rounded model in its own parameters."""
    gradient = jax.jit(
        jax.grad(lambda m, quantise: run(m, batch(), qat=quantise)[0]), static_argnums=1
    )
    through = gradient(off_grid(), True)
    rounded = gradient(jax.jit(qat.as_shipped)(off_grid()), False)
    for a, b in zip(jax.tree.leaves(through), jax.tree.leaves(rounded), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1e-6, np.abs(b).max()))
        assert np.abs(a).max() > 0
