"""An adapter of nano that is trained here, in the hands of others: PEFT's and transformers'."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptoss_jax.nano
from gptoss_jax import convert, train
from gptoss_jax.checkpoint.safetensors_file import read_header
from gptoss_jax.loading import load

torch = pytest.importorskip("torch", reason="needs the oracle extra")
hf_peft = pytest.importorskip("peft", reason="needs the oracle extra")
transformers = pytest.importorskip("transformers", reason="needs the oracle extra")

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are not ours

NANO = Path(gptoss_jax.nano.__file__).parent
IDS = np.random.default_rng(5).integers(0, 510, (1, 90))  # beyond the sliding window
FEW_STEPS = (
    *("--config.steps=6", "--config.eval_every=7", "--config.checkpoint_every=6"),
    *("--config.batch_size=1", "--config.optimizer.lr=0.01", "--config.optimizer.warmup_steps=1"),
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The second layer's attention and experts."""
    workdir = tmp_path_factory.mktemp("nano") / "run"
    chosen = ("--config.lora.targets=q,o,gate_up,down", "--config.lora.layers=1")
    words = ["--config", "configs/lora_nano.py", "--workdir", str(workdir), "--mesh", "data=1"]
    assert train.main([*words, *FEW_STEPS, *chosen]) == 0
    return workdir / "export"


@pytest.fixture(scope="module")
def merged(adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "nano"
    assert convert.main(["nano", str(out), "--to", "hf", "--adapter", str(adapter)]) == 0
    return out


def ours(name, adapter=None) -> np.ndarray:
    model, _ = load(name, dtype="float32", adapter=adapter)
    with jax.default_matmul_precision("highest"):
        return np.asarray(model(jnp.asarray(IDS, jnp.int32)))


def theirs(directory, adapter=None) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    if adapter is not None:
        model = hf_peft.PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


def alike(one: np.ndarray, other: np.ndarray) -> None:
    assert np.abs(one - other).max() <= 1e-5 * np.ptp(other)


def test_peft_gives_our_logits(adapter):
    tuned = ours("nano", adapter)
    assert np.abs(tuned - ours("nano")).max() > 0.01 * np.ptp(tuned)
    alike(tuned, theirs(NANO, adapter))


def test_both_load_what_was_merged_and_packed_again(merged):
    alike(ours(merged), theirs(merged))


def test_what_the_adapter_leaves_alone_has_the_same_bytes_in_the_file(merged):
    before, after = (read_header(path / "model.safetensors") for path in (NANO, merged))
    assert before.keys() == after.keys()
    touched = {name for name in before if stored(before[name]) != stored(after[name])}
    assert all(name.startswith("model.layers.1.") for name in touched)
    kinds = ("q_proj.weight", "o_proj.weight", "gate_up_proj_blocks", "down_proj_blocks")
    assert {kind for kind in kinds for name in touched if name.endswith(kind)} == set(kinds)
    assert not [name for name in touched if "router" in name or "k_proj" in name or "bias" in name]


def stored(entry) -> tuple:
    with Path(entry.file).open("rb") as file:
        file.seek(entry.offset)
        return entry.dtype, entry.shape, file.read(entry.nbytes)
