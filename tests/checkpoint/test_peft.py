"""Adapters in PEFT's layout: there and back, and in PEFT's own hands."""

import dataclasses

import jax
import numpy as np
import pytest
from peft_cases import CONFIG, DOUBLE, IDS, SQUARE, base, logits, same, trained

from gptoss_jax import convert, sharding
from gptoss_jax.checkpoint import peft, peft_fields, save_model
from gptoss_jax.checkpoint.adapters import apply_adapter
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request
from gptoss_jax.loading import load
from gptoss_jax.model.adapter import TARGETS
from gptoss_jax.model.lora import Trained

# PEFT's ranks and alphas by modules' names.
OF_THEIR_OWN = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 5, "down_proj": 1, "lm_head": 3},
    "alpha_pattern": {r"layers\.\d+\.self_attn\..*_proj": 4, "experts.gate_up_proj": 9.5},
}


@pytest.mark.parametrize("config", [CONFIG, DOUBLE], ids=["wide", "double"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"targets": TARGETS},
        {"targets": ("sinks",), "layers": (1,)},
        {"targets": ("router",)},
        {"targets": ("down",)},
        {"targets": ("gate_up",)},
        {"targets": ("down", "q"), "layers": (1,)},
        {"rslora": True, "targets": ("unembedding", "sinks")},
    ],
    ids=str,
)
def test_there_and_back(tmp_path, config, fields):
    before = trained(config, **fields)
    peft.save(before, config, "base", tmp_path / "adapter")
    after = peft.load(tmp_path / "adapter", config)
    assert before.values.keys() == after.values.keys()
    for path, value in before.values.items():
        np.testing.assert_array_equal(after.values[path], value)
    assert after.adapter.scale == before.adapter.scale
    assert set(after.adapter.targets) == set(before.adapter.targets)


def in_peft(directory, adapter):
    """transformers' model with an adapter as PEFT loads it, and its logits."""
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    hf_peft = pytest.importorskip("peft", reason="the oracle extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the oracle extra is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    ).eval()
    if adapter is not None:
        model = hf_peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return model, model(torch.tensor(IDS)).logits.float().numpy()


@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (CONFIG, {}),
        (SQUARE, {}),
        (DOUBLE, {}),
        (CONFIG, {"targets": ("down",)}),
        (CONFIG, {"targets": ("router",)}),
        (CONFIG, {"targets": ("gate_up", "router"), "layers": (1,)}),
        (CONFIG, {"targets": ("q", "router"), "dropout": 0.1}),
        (CONFIG, {"rslora": True, "targets": ("q", "k", "v", "o"), "layers": (0,)}),
    ],
    ids=["all", "square", "double", "down", "router", "layer1", "dropout", "rslora"],
)
def test_peft_gives_our_logits(tmp_path, config, fields):
    save_model(base(config), "hf", tmp_path / "base", progress=False)
    adapter = trained(config, **fields)
    peft.save(adapter, config, str(tmp_path / "base"), tmp_path / "adapter")
    _, theirs = in_peft(tmp_path / "base", tmp_path / "adapter")
    ours = logits(apply_adapter(base(config), adapter))
    same(ours, theirs)
    assert np.abs(ours - logits(base(config))).max() > 0.01 * np.ptp(theirs)


@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
def test_layers_may_have_different_targets(tmp_path):
    whole = trained(dropout=0.1)
    gone = ("layers.0.attention.w_q_AD", "layers.1.moe.w_down_EFD", "layers.1.attention.w_o_DA")
    kept = {path: value for path, value in whole.values.items() if not path.startswith(gone)}
    some = Trained(whole.adapter, kept)
    save_model(base(), "hf", tmp_path / "base", progress=False)
    peft.save(some, CONFIG, str(tmp_path / "base"), tmp_path / "adapter")
    assert peft.load(tmp_path / "adapter", CONFIG).values.keys() == kept.keys()
    _, theirs = in_peft(tmp_path / "base", tmp_path / "adapter")
    same(logits(apply_adapter(base(), some)), theirs)


def test_what_peft_cannot_hold_is_named(tmp_path, directory, capsys):
    """Beside it: the dropout of matrices' factors, which PEFT can hold."""
    everything = trained(targets=TARGETS, dropout=0.1)
    sinks, dropout = peft.not_held(everything)
    assert "trained sinks: they are in sinks.safetensors" in sinks
    assert "no dropout of experts' and router's factors" in dropout
    assert peft.not_held(trained(dropout=0.1, targets=("q", "unembedding"))) == []
    for number, targets in enumerate([("q", "unembedding"), ("q", "down"), ("q", "router")]):
        some = trained(dropout=0.1, targets=targets)
        peft.save(some, CONFIG, "b", tmp_path / str(number))
        assert peft.load(tmp_path / str(number), CONFIG).adapter.dropout == (0.0, 0.1)[not number]
        assert len(peft.not_held(some)) == (number > 0)
    peft.save(everything, CONFIG, "base", tmp_path / "adapter")
    words = ["--adapter", str(tmp_path / "adapter"), "--to", "peft"]
    assert convert.main([str(directory), str(tmp_path / "again"), *words]) == 0
    assert capsys.readouterr().err == f"note: {sinks}\n"


@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
@pytest.mark.parametrize(
    ("config", "patterns"),
    [
        (CONFIG, {}),
        (SQUARE, {}),
        (DOUBLE, {}),
        (CONFIG, OF_THEIR_OWN),
        (CONFIG, OF_THEIR_OWN | {"use_rslora": True}),
    ],
    ids=["wide", "square", "double", "patterns", "rslora"],
)
def test_an_adapter_that_peft_wrote(tmp_path, config, patterns):
    hf_peft = pytest.importorskip("peft", reason="the oracle extra is not installed")
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    save_model(base(config), "hf", tmp_path / "base", progress=False)
    model, _ = in_peft(tmp_path / "base", None)
    settings = hf_peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "o_proj", "lm_head"],
        target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
        **patterns,
    )
    model = hf_peft.get_peft_model(model, settings).eval()
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        theirs = model(torch.tensor(IDS)).logits.float().numpy()
    read = peft.load(tmp_path / "theirs", config)
    same(logits(apply_adapter(base(config), read)), theirs)

    model.half().save_pretrained(tmp_path / "half")
    for path, value in peft.load(tmp_path / "half", config).values.items():
        np.testing.assert_allclose(value, read.values[path], rtol=5e-4, atol=1e-7)


def test_every_field_of_pefts_is_known():
    hf_peft = pytest.importorskip("peft", reason="the oracle extra is not installed")
    known = {*peft_fields._PLAIN, *peft_fields.READ, *peft_fields.HARMLESS}
    for field in dataclasses.fields(hf_peft.LoraConfig):
        assert field.name in known
        if field.name in peft_fields._PLAIN.keys() - {"peft_type"}:
            assert getattr(hf_peft.LoraConfig(), field.name) == peft_fields._PLAIN[field.name]


def test_a_mesh_gives_the_same(tmp_path, directory):
    peft.save(trained(), CONFIG, "base", tmp_path / "adapter")

    def said(text):
        mesh = text and sharding.make_mesh(CONFIG, sharding.parse(text), jax.devices())
        model, _ = load(directory, dtype="float32", adapter=tmp_path / "adapter", mesh=mesh)
        engine = Engine(model, [], np.array([], np.int32), max_sequences=1)
        asked = [Request(IDS[0].tolist(), 12, temperature=0.0)]
        return [token for _, new in engine.run(asked) for token in new]

    assert said("expert=4,tensor=2") == said(None)
