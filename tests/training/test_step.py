"""The optimizer and the step: what decays, how fast, and that microbatches change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptoss_jax.training import settings
from gptoss_jax.training.feed import Feed
from gptoss_jax.training.optimizer import decays, optimizer, schedule
from gptoss_jax.training.sources import open_sources
from gptoss_jax.training.step import Trainer, compiled, in_parts


def rates(config, steps):
    return [float(schedule(config)(step)) for step in steps]


def test_cosine_schedule():
    config = settings.defaults()
    config.steps = 101
    config.optimizer.update(lr=2.0, warmup_steps=4, final_fraction=0.1)
    assert rates(config, [0, 1, 3]) == pytest.approx([0.5, 1.0, 2.0])
    middle = 2.0 * (0.1 + 0.9 * 0.5)
    assert rates(config, [52, 100, 200]) == pytest.approx([middle, 0.2, 0.2])


def test_wsd_schedule():
    config = settings.defaults()
    config.steps = 101
    config.optimizer.update(lr=2.0, warmup_steps=4, final_fraction=0.5, schedule="wsd")
    config.optimizer.decay_steps = 20
    assert rates(config, [0, 3, 50, 80]) == pytest.approx([0.5, 2.0, 2.0, 2.0])
    assert rates(config, [90, 100, 101]) == pytest.approx([1.5, 1.0, 1.0])


def test_a_run_shorter_than_its_warm_up():
    config = settings.defaults()
    config.steps = 1
    assert np.isfinite(rates(config, [0, 1])).all()


@pytest.fixture
def trainer(config, tokenizer):
    return Trainer(config, settings.model_config(config, tokenizer.vocab_size))


def test_weights_begin_as_wide_as_the_config_says(config, tokenizer):
    config.model.initializer_range = 0.05
    wide = Trainer(config, settings.model_config(config, tokenizer.vocab_size))
    params = jax.jit(wide.init)().params
    for path in filter(decays, wide.paths):
        assert float(params[path].std()) == pytest.approx(0.05, rel=0.1), path


def test_matrices_decay_and_nothing_else(trainer):
    kept = {path.rpartition(".")[2] for path in trainer.paths if not decays(path)}
    assert kept == {
        *("scale_D", "sinks_N", "b_q_A", "b_k_C", "b_v_C", "b_o_D"),
        *("b_router_E", "b_gate_up_EF", "b_down_ED"),
    }


def test_decay_reaches_the_update(config, trainer):
    """Without a gradient only what decays moves, by rate times decay."""
    config.optimizer.weight_decay = 0.5
    shapes = jax.eval_shape(trainer.init).params
    params = {path: np.ones(like.shape, np.float32) for path, like in shapes.items()}
    chain = optimizer(config, trainer.paths)

    @jax.jit
    def updates_of(params):
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)[0]

    updates = updates_of(params)
    rate = rates(config, [0])[0]
    for path, update in updates.items():
        np.testing.assert_allclose(update, -0.5 * rate if decays(path) else 0.0, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm(config):
    config.optimizer.update(clip=0.01, weight_decay=0.0, eps=1.0, b1=0.0, b2=0.0)
    chain = optimizer(config, ["w_a", "b_b"])
    params = {"w_a": np.zeros(3, np.float32), "b_b": np.zeros(2, np.float32)}
    gradient = {"w_a": np.full(3, 3.0, np.float32), "b_b": np.full(2, 4.0, np.float32)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = chain.update(gradient, chain.init(params), params)
    clipped = 3.0 * 0.01 / float(optax.tree.norm(gradient))
    rate = rates(config, [0])[0]
    np.testing.assert_allclose(updates["w_a"], -rate * clipped / (clipped + 1), rtol=1e-5)


@pytest.fixture
def quick_compilation():
    """Compiling is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("quick_compilation")
def test_microbatches_give_the_gradient_of_the_whole(config, tokenizer, trainer):
    """Normalised by all trained tokens: the parts hold very different numbers of them."""
    config.balance_coefficient = 0.0  # the one term that is not a sum over tokens
    source = open_sources(config, tokenizer).train
    rows = Feed(source, rows=2, length=256, open_rows=2, seed=0).batch()
    rows.weights_BT[0, np.flatnonzero(rows.weights_BT[0])[2:]] = 0
    state = jax.jit(trainer.init)()
    one, two = in_parts(rows, 1), in_parts(rows, 2)
    assert two.weights_BT.sum((1, 2)).tolist() != [two.weights_BT.sum() / 2] * 2

    def step(state, batches):
        return trainer.train_step(state, None, batches, qat=False)

    at_once = compiled(step, state, one)
    whole, metrics = at_once(state, one)
    # An infinite second moment makes the update 0: only the optimizer's state shows it.
    clip, (adam, *rest) = state.optimizer
    adam = adam._replace(nu=adam.nu | {trainer.paths[0]: adam.nu[trainer.paths[0]] + jnp.inf})
    _, broken = at_once(dataclasses.replace(state, optimizer=(clip, (adam, *rest))), one)
    assert metrics["finite"] and not broken["finite"]
    assert np.isfinite(broken["loss"]) and np.isfinite(broken["gradient_norm"])
    program = compiled(step, state, two, donate=(0,))
    parts, metrics_2 = program(state, two)
    for name in ("loss", "gradient_norm", "accuracy", "weight_sum"):
        np.testing.assert_allclose(metrics_2[name], metrics[name], rtol=2e-5)
    for path, expected in whole.params.items():
        # Adam's first step is the gradient's sign times the rate, where it is not near zero.
        np.testing.assert_allclose(
            parts.optimizer[1][0].mu[path], whole.optimizer[1][0].mu[path], rtol=1e-3, atol=2e-6
        )
        assert parts.params[path].dtype == expected.dtype == np.float32
    assert int(parts.step) == 1
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(state.step)  # donated
    with pytest.raises(TypeError):  # another shape is no silent compilation
        program(parts, one)
