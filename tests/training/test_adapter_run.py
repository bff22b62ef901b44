"""Runs that train an adapter, in processes of their own: what they say, leave and resume from."""

import signal

import numpy as np
import pytest

from gptoss_jax import train
from gptoss_jax.checkpoint import load_model, peft
from gptoss_jax.model import lora
from gptoss_jax.model.config import read_config
from gptoss_jax.training import settings

CONFIG = """
from gptoss_jax.training.settings import defaults

def get_config():
    config = defaults()
    config.base, config.tokenizer = {base!r}, {tokenizer!r}
    config.steps, config.batch_size = 12, 2
    config.log_every, config.eval_every, config.checkpoint_every = 1, 12, 4
    config.lora.targets = ("q", "k", "v", "o", "gate_up", "down", "router", "sinks", "unembedding")
    config.lora.rank, config.lora.dropout = 2, 0.1
    config.data.paths = ({chats!r},)
    config.data.sequence_length = 320
    config.optimizer.warmup_steps = 4
    return config
"""


@pytest.fixture(scope="module")
def config_path(base_path, tokenizer_path, chats_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "adapter.py"
    text = CONFIG.format(base=str(base_path), tokenizer=str(tokenizer_path), chats=str(chats_path))
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def start(config_path, launch):
    return lambda workdir, *words: launch(config_path, workdir, *words)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """An uninterrupted run on one device: (its directory, stderr)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    process = start(workdir, "--mesh", "data=1")
    shown = process.communicate()[1]
    assert process.returncode == 0, shown
    return workdir, shown


@pytest.fixture(scope="module")
def adapter_of(base_path):
    """What a run trained."""
    sizes = read_config(base_path)
    return lambda workdir: peft.load(workdir / "export", sizes).values


def test_it_says_what_is_trained_before_the_first_step(whole):
    lines = [line for line in whole[1].splitlines() if line.startswith("trained: ")]
    counts = {line.split()[1]: int(line.split()[2].replace(",", "")) for line in lines}
    assert counts["q"] == 2 * 2 * (32 + 64)
    assert counts["gate_up"] == 2 * 4 * 2 * (32 + 128)
    assert counts["sinks"] == 2 * 4
    assert counts["all"] == sum(counts.values()) - counts["all"]
    assert whole[1].index("trained: ") < whole[1].index("step 1/")


def test_every_factor_has_moved(whole, config_path, base_path, adapter_of):
    config = settings.load(config_path)
    base = load_model(base_path, progress=False)
    adapter = settings.adapter_of(config)
    assert adapter is not None
    begun = lora.begin(base, adapter, config.seed)
    ended = adapter_of(whole[0])
    assert ended.keys() == begun.keys()
    assert all(np.abs(ended[path] - begun[path]).max() > 1e-4 for path in begun)


def killed(process, line):
    with process:
        for text in process.stderr:
            if text.startswith(line):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_ends_with_the_same_bytes(start, whole, tmp_path, killed_at_random):
    # That of step 8 is only written once the checkpoint of step 4 is whole.
    killed_at_random(start(tmp_path, "--mesh", "data=1"), 11, first=9)
    ended = start(tmp_path, "--mesh", "data=1")
    shown = ended.communicate()[1]
    assert ended.returncode == 0, shown
    assert int(shown.split("resumed after step ")[1].split("\n")[0]) >= 4
    assert shown.count("compiled the train step in") == ("resumed after step 12" not in shown)
    for name in (peft.WEIGHTS, peft.SINKS):
        one, other = ((folder / "export" / name).read_bytes() for folder in (whole[0], tmp_path))
        assert one == other


def test_a_run_goes_on_over_another_mesh(start, adapter_of, tmp_path):
    """Experts over two devices, then rows: the end is that of one device, as far as sums are."""
    undropped = "--config.lora.dropout=0"
    expected = tmp_path / "expected"
    process = start(expected, "--mesh", "data=1", undropped)
    killed(start(tmp_path / "run", "--mesh", "expert=2", undropped), "step 7/")
    ended = start(tmp_path / "run", "--mesh", "fsdp=2", undropped)
    for one in (process, ended):
        shown = one.communicate()[1]
        assert one.returncode == 0, shown
    assert "resumed after step 4" in shown
    expected = adapter_of(expected)
    for path, value in adapter_of(tmp_path / "run").items():
        np.testing.assert_allclose(value, expected[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--config.lora.rank=0"], "error: config.lora.rank: 0 must be at least 1"),
        (["--config.lora.targets=q,qkv"], "error: config.lora.targets: 'qkv' is none of q, k"),
        (["--config.lora.layers=0-5"], "error: config.lora.layers: 2 is none of the 2 layers"),
        (["--config.lora.layers=one"], "error: config.lora.layers: 'one' is neither"),
        (["--config.lora.layers=1-"], "error: config.lora.layers: '1-' is neither"),
        (["--config.lora.layers=1-0"], "error: config.lora.layers: '1-0' is backwards; give 0-1"),
        (["--config.base="], "error: config.base: empty; name the checkpoint"),
        (["--config.base=/nowhere"], "error: config.base: /nowhere: no such directory"),
        (["--config.data.sequence_length=600"], "error: config.data.sequence_length: 600 is more"),
    ],
)
def test_a_mistake_is_one_line_before_any_step(config_path, tmp_path, capsys, words, error):
    code = train.main(["--config", str(config_path), "--workdir", str(tmp_path / "run"), *words])
    shown = capsys.readouterr().err.splitlines()[-1]
    assert code in (1, 2)
    assert shown.startswith(error), shown
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_shipped_configs_are_configs():
    for name in ("lora_nano", "lora_20b", "lora_120b", "dpo_20b", "qat_20b", "sft_nano"):
        config = settings.load(f"configs/{name}.py")
        assert (settings.adapter_of(config) is not None) == name.startswith(("lora_", "dpo_"))
