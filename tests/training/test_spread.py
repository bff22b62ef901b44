"""Training over a mesh: the numbers of one device, and whose part is whose."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax import sharding
from gptoss_jax.checkpoint import load_model
from gptoss_jax.errors import UserError
from gptoss_jax.model.adapter import TARGETS
from gptoss_jax.model.config import read_config
from gptoss_jax.training import settings, spread
from gptoss_jax.training.feed import Feed
from gptoss_jax.training.sources import open_sources
from gptoss_jax.training.step import Trainer, compiled, in_parts

MESHES = ("data=2", "fsdp=4", "fsdp=2,expert=2", "data=2,expert=2,tensor=2")
# All but the sinks, which are trained themselves.
FACTORED = {
    *("w_q_AD", "w_k_CD", "w_v_CD", "w_o_DA", "w_gate_up_EDF", "w_down_EFD", "w_router_ED"),
    "unembedding_VD",
}


@pytest.fixture
def sizes(config, tokenizer):
    config.batch_size, config.accumulation = 8, 2
    return settings.model_config(config, tokenizer.vocab_size)


@pytest.fixture
def quick_compilation():
    """Compiling is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def stepped(config, sizes, rows, mesh):
    """(state, metrics) after one step, and where the state's parameters lie."""
    trainer = Trainer(config, sizes, mesh)
    where = jax.tree.map(lambda x: x.sharding, trainer.abstract_state())
    state = jax.jit(trainer.init, out_shardings=where)()
    batch = spread.placed(in_parts(rows, 2), sizes, mesh)

    def step(state, batch):
        return trainer.train_step(state, None, batch, qat=True)

    return compiled(step, state, batch, donate=(0,))(state, batch)


def assert_same_step(over, alone, text):
    """Metrics and gradients of two (state, metrics), one of them over a mesh."""
    (state, metrics), (expected_state, expected_metrics) = over, alone
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=f"{text} {name}")
    for path, expected in expected_state.optimizer[1][0].mu.items():
        got = np.asarray(state.optimizer[1][0].mu[path])
        # Adam's mean after one step is a tenth of the gradient, clipped.
        far = np.abs(got - expected).max() / np.ptp(expected)
        assert far <= 1e-5, (text, path, far)


@pytest.mark.usefixtures("quick_compilation")
def test_a_step_is_that_of_one_device(config, tokenizer, sizes):
    source = open_sources(config, tokenizer).train
    rows = Feed(source, rows=8, length=128, open_rows=2, seed=0).batch()
    alone, metrics = stepped(config, sizes, rows, None)
    for text in MESHES:
        mesh = sharding.make_mesh(sizes, sharding.parse(text), jax.devices())
        over, its = stepped(config, sizes, rows, mesh)
        assert_same_step((over, its), (alone, metrics), text)
        if "fsdp" in text:
            held = over.params["layers.0.attention.w_q_AD"].addressable_shards[0].data.size
            assert held < alone.params["layers.0.attention.w_q_AD"].size


def stepped_adapter(config, base_path, rows, mesh):
    """As `stepped`, of factors that are all somewhere in the middle of their training."""
    base = load_model(base_path, dtype=jnp.dtype("float32"), mesh=mesh, progress=False)
    trainer = Trainer(config, base.config, mesh, base)
    where = jax.tree.map(lambda x: x.sharding, trainer.abstract_state())
    state = jax.jit(trainer.begin_from, out_shardings=where)(base)
    rng = np.random.default_rng(0)
    params = {
        path: jax.device_put(rng.normal(0, 0.1, x.shape).astype(np.float32), x.sharding)
        for path, x in state.params.items()
    }
    state = dataclasses.replace(state, params=params)
    batch = spread.placed(in_parts(rows, 2), base.config, mesh)
    step = functools.partial(trainer.train_step, qat=False)
    return compiled(step, state, base, batch, donate=(0,))(state, base, batch)


@pytest.mark.usefixtures("quick_compilation", "sizes")
def test_a_step_of_an_adapter_is_that_of_one_device(config, tokenizer, base_path):
    config.lora.targets, config.lora.rank = TARGETS, 2
    source = open_sources(config, tokenizer).train
    rows = Feed(source, rows=8, length=128, open_rows=2, seed=0).batch()
    alone, metrics = stepped_adapter(config, base_path, rows, None)
    assert {path.split(".")[-2] for path in alone.params if path.endswith(".a")} == FACTORED
    for text in MESHES[2:]:
        mesh = sharding.make_mesh(read_config(base_path), sharding.parse(text), jax.devices())
        over, its = stepped_adapter(config, base_path, rows, mesh)
        assert_same_step((over, its), (alone, metrics), text)


def test_the_default_takes_the_devices_that_rows_and_experts_divide_by(config, sizes):
    assert spread.default_shape(config, sizes, 8) == {"fsdp": 4}
    assert spread.default_shape(config, sizes, 3) == {"fsdp": 2}
    assert spread.default_shape(config, sizes, 1) == {}
    config.batch_size = 4  # two rows at a time
    assert spread.default_shape(config, sizes, 8) == {"fsdp": 2, "expert": 2}


@pytest.mark.parametrize(
    ("mesh", "error"),
    [
        ("data=8", r"8 parts of the batch \(data x fsdp\) do not divide its 4 rows"),
        ("fsdp=8", "fsdp=8 does not divide both a width of 32 and 4 experts"),
        ("context=2", "context is for long prompts"),
        ("expert=3", "expert=3 does not divide 4 experts"),
    ],
)
def test_a_mesh_without_a_use_is_refused(config, sizes, mesh, error):
    with pytest.raises(UserError, match=error):
        spread.choose_mesh(config, sizes, mesh)


def test_one_process_feeds_all_rows(sizes):
    mesh = sharding.make_mesh(sizes, {"fsdp": 4}, jax.devices())
    assert spread.own_part(8, sizes, mesh) == (0, 1)
    assert spread.from_all({"a": [1]}) == [{"a": [1]}]
    assert spread.any_of(True) and not spread.any_of(False)


def test_parts_of_hosts_whose_rows_are_no_neighbours():
    """As a v5e:4x4's four hosts have them when 16 devices in a ring share 16 rows."""
    hosts = ({0, 1, 6, 15}, {2, 3, 4, 5}, {7, 12, 13, 14}, {8, 9, 10, 11})
    held = {i: tuple((row, row + 1) for row in sorted(rows)) for i, rows in enumerate(hosts)}
    assert [spread.part_of(held, i) for i in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [spread.offset(held[0], row) for row in (0, 1, 6, 15)] == [0, 1, 2, 3]
    assert [spread.offset(((4, 8), (12, 16)), row) for row in (4, 6, 12, 14)] == [0, 2, 4, 6]
    twins = {0: ((0, 2),), 1: ((0, 2),), 2: ((2, 4),), 3: ((2, 4),)}
    assert [spread.part_of(twins, i) for i in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_hosts_that_share_some_rows_and_not_others_are_refused():
    with pytest.raises(UserError, match="some rows of a batch in common"):
        spread.part_of({0: ((0, 2), (2, 4)), 1: ((2, 4), (4, 6))}, 0)
