"""All of a packed base trained on, as `configs/qat_20b.py` does, over a mesh."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax import mxfp4, sharding
from gptoss_jax.checkpoint import load_model
from gptoss_jax.loading import load
from gptoss_jax.model.transformer import parameter
from gptoss_jax.mxfp4 import MXFP4
from gptoss_jax.training import settings
from gptoss_jax.training.step import Trainer

CONFIG = """
from gptoss_jax.training.settings import defaults

def get_config():
    config = defaults()
    config.base, config.tokenizer = {base!r}, {tokenizer!r}
    config.steps, config.batch_size, config.qat_start = 8, 2, 0
    config.log_every, config.eval_every, config.checkpoint_every = 1, 8, 2
    config.balance_coefficient = 0.0
    config.data.paths = ({chats!r},)
    config.data.sequence_length = 320
    config.optimizer.warmup_steps = 1
    return config
"""
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def config_path(base_path, tokenizer_path, chats_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "full.py"
    text = CONFIG.format(base=str(base_path), tokenizer=str(tokenizer_path), chats=str(chats_path))
    path.write_text(text)
    return path


@pytest.mark.parametrize("shape", [None, {"fsdp": 2}, {"expert": 2}])
def test_it_begins_with_the_weights_that_the_base_has_packed(config_path, base_path, shape):
    float32 = jnp.dtype("float32")
    alone = load_model(base_path, dtype=float32, progress=False)
    mesh = shape and sharding.make_mesh(alone.config, shape, jax.devices())
    base = load_model(base_path, dtype=float32, mesh=mesh, progress=False)
    trainer = Trainer(settings.load(config_path), base.config, mesh, base)
    like = trainer.abstract_state()
    where = jax.tree.map(lambda x: x.sharding, like)
    state = jax.jit(trainer.begin_from, out_shardings=where)(base)
    for path, found in state.params.items():
        weight = parameter(alone, path).get_value()
        if isinstance(weight, MXFP4):
            weight = mxfp4.decode(weight, float32)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(weight), err_msg=path)
    # And the experts packed of them are the base's own: nothing is lost before the first step.
    packed = jax.jit(trainer.packed)(state.params)
    for one, other in zip(jax.tree.leaves(packed), jax.tree.leaves(alone), strict=True):
        if one.dtype == jnp.uint8:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_killed_run_ends_with_the_same_bytes(config_path, base_path, launch, tmp_path):
    def run(workdir):
        return launch(config_path, tmp_path / workdir, "--mesh", "fsdp=2")

    whole = run("whole")
    shown = whole.communicate()[1]
    assert whole.returncode == 0, shown
    killed = run("killed")
    with killed:
        for line in killed.stderr:
            if line.startswith("step 6/"):
                killed.send_signal(signal.SIGKILL)
    ended = run("killed")
    shown = ended.communicate()[1]
    assert ended.returncode == 0, shown
    # That of step 4 is only written once the checkpoint of step 2 is whole.
    assert int(shown.split("resumed after step ")[1].split("\n")[0]) >= 2
    exports = [tmp_path / name / "export" for name in ("whole", "killed")]
    one, other = ((directory / WEIGHTS).read_bytes() for directory in exports)
    assert one == other

    tuned, tokenizer = load(exports[0])
    assert tokenizer is not None
    base = load_model(base_path, progress=False)
    for path in ("layers.0.moe.w_down_EFD", "layers.1.moe.w_gate_up_EDF"):
        now, before = (parameter(model, path).get_value() for model in (tuned, base))
        assert isinstance(now, MXFP4)
        assert (np.asarray(now.blocks) != np.asarray(before.blocks)).any()
    now, before = (parameter(m, "layers.1.attention.w_q_AD")[...] for m in (tuned, base))
    assert not np.array_equal(np.asarray(now), np.asarray(before))
