"""Adapters in PEFT's layout: there and back, in PEFT's own hands, and merged."""

import dataclasses
import errno
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from gptoss_jax import convert, mxfp4, sharding
from gptoss_jax.checkpoint import load_model, peft, peft_fields, save_model
from gptoss_jax.checkpoint.adapters import apply_adapter
from gptoss_jax.errors import UserError
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request
from gptoss_jax.loading import load
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import TARGETS, Adapter
from gptoss_jax.model.config import Config
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss, parameter
from gptoss_jax.mxfp4 import MXFP4

# Every pair of widths differs, but for a shape whose experts are as wide as the model, and one
# whose gate_up and down have as many outputs.
CONFIG = Config(
    num_layers=2,
    num_experts=4,
    experts_per_token=2,
    hidden_size=96,
    expert_width=64,
    num_heads=6,
    num_kv_heads=2,
    head_dim=20,
    vocab_size=301,
    sliding_window=16,
    rope_original_context=64,
    rope_factor=8.0,
    max_context=512,
    initializer_range=0.1,
)
SQUARE = dataclasses.replace(CONFIG, expert_width=96)
DOUBLE = dataclasses.replace(CONFIG, hidden_size=128)
IN_PEFT = tuple(target for target in TARGETS if target != "sinks")
# PEFT's ranks and alphas by modules' names.
OF_THEIR_OWN = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 5, "down_proj": 1, "lm_head": 3},
    "alpha_pattern": {r"layers\.\d+\.self_attn\..*_proj": 4, "experts.gate_up_proj": 9.5},
}
IDS = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (1, 40))


@functools.cache
def base(config: Config = CONFIG) -> GptOss:
    float32 = jnp.dtype("float32")
    return GptOss(config, dtype=float32, param_dtype=float32, rngs=nnx.Rngs(3))


@pytest.fixture
def directory(tmp_path):
    save_model(base(), "hf", tmp_path / "base", progress=False)
    return tmp_path / "base"


def trained(config: Config = CONFIG, **fields) -> Trained:
    adapter = Adapter(**{"rank": 3, "alpha": 5.0, "targets": IN_PEFT} | fields)
    rng = np.random.default_rng(0)
    shapes = lora.trained_shapes(base(config), adapter)
    values = {p: rng.normal(0, 0.2, shape).astype(np.float32) for p, shape in shapes.items()}
    return Trained(adapter, values)


def logits(model: GptOss) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, ids: model(ids))(model, jnp.asarray(IDS, jnp.int32)))


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours - theirs).max() <= 1e-5 * np.ptp(theirs)


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


def summed(weight, path: str, adapter: Trained) -> np.ndarray:
    """A weight and its factors' product, float32: the meaning, written once more."""
    a, b = (adapter.values[f"{path}.{factor}"] for factor in "ab")
    form = "erk,ern->ekn" if a.ndim == 3 else "rd,ro->od"
    dense = mxfp4.decode(weight, jnp.dtype("float32")) if isinstance(weight, MXFP4) else weight
    return np.asarray(dense, np.float32) + np.einsum(form, a, b) * np.float32(adapter.adapter.scale)


def check_merged(out: GptOss, before: GptOss, adapter: Trained) -> None:
    """Of each weight that has factors, and of sinks.

    What is packed again is what the encoder makes of base and product. The product is summed in
    another order here, so a code, or a rounding, on the edge between two may differ.
    """
    for path in adapter.values:
        stem, _, field = path.rpartition(".")
        if field == "b":
            continue
        found = parameter(out, path if field != "a" else stem).get_value()
        if field != "a":
            np.testing.assert_array_equal(found, adapter.values[path])
            continue
        expected = summed(parameter(before, stem).get_value(), stem, adapter)
        if isinstance(found, MXFP4):
            packed = mxfp4.encode(jnp.asarray(expected))
            assert (np.asarray(found.blocks) == np.asarray(packed.blocks)).mean() > 0.9999
            np.testing.assert_array_equal(found.scales, packed.scales)
        else:
            expected = jnp.asarray(expected).astype(found.dtype).astype(jnp.float32)
            ulp = 2.0**-7 if found.dtype == jnp.bfloat16 else 2.0**-20
            found = np.asarray(found, np.float32)
            np.testing.assert_allclose(found, expected, rtol=ulp, atol=1e-6, err_msg=stem)
            assert (np.abs(found - expected) <= 1e-6 * np.abs(expected).max()).mean() > 0.999


@pytest.mark.parametrize("layout", ["hf-bf16", "hf", "original"])
def test_merged(tmp_path, directory, layout):
    """Dense layouts compute what the adapter beside the weights does."""
    adapter = trained(targets=TARGETS, layers=(1,))
    peft.save(adapter, CONFIG, "base", tmp_path / "adapter")
    words = [str(directory), str(tmp_path / "out"), "--to", layout]
    assert convert.main([*words, "--adapter", str(tmp_path / "adapter")]) == 0
    out = load_model(tmp_path / "out", dtype=jnp.dtype("float32"), progress=False)
    check_merged(out, base(), adapter)
    if layout == "hf-bf16":
        same(logits(out), logits(apply_adapter(base(), adapter)))
    if layout == "hf":
        first, second = (load_model(d, progress=False) for d in (directory, tmp_path / "out"))
        for path in ("moe.w_gate_up_EDF", "moe.w_down_EFD", "attention.w_v_CD"):
            same_bytes(first.layers[0], second.layers[0], path)


@pytest.mark.parametrize("layout", ["hf-bf16", "hf", "original"])
def test_a_base_of_bfloat16_stays_one(tmp_path, layout):
    bfloat16 = jnp.dtype("bfloat16")
    before = GptOss(CONFIG, dtype=bfloat16, param_dtype=bfloat16, rngs=nnx.Rngs(3))
    save_model(before, "hf", tmp_path / "base", progress=False)
    adapter = trained(targets=IN_PEFT)
    peft.save(adapter, CONFIG, "base", tmp_path / "adapter")
    words = [str(tmp_path / "base"), str(tmp_path / "out"), "--to", layout]
    assert convert.main([*words, "--adapter", str(tmp_path / "adapter")]) == 0
    out = load_model(tmp_path / "out", progress=False)
    assert out.layers[0].attention.w_q_AD.get_value().dtype == bfloat16
    check_merged(out, before, adapter)


def same_bytes(first, second, path):
    part, name = path.split(".")
    arrays = (jax.tree.leaves(getattr(getattr(m, part), name)) for m in (first, second))
    for one, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dense", [False, True], ids=["packed", "dense"])
def test_packing_tells_what_it_costs(tmp_path, capsys, dense):
    """Experts with factors; or all of a base that was not packed, whatever has factors."""
    source, targets = "nano", ("gate_up", "down")
    if dense:
        source, targets = str(tmp_path / "dense"), ("q",)
        assert convert.main(["nano", source, "--to", "hf-bf16"]) == 0
    peft.save(nano_adapter(targets), nano_config(), "nano", tmp_path / "adapter")
    words = [source, str(tmp_path / "out"), "--to", "hf", "--adapter", str(tmp_path / "adapter")]
    assert convert.main(words) == 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("packing the experts: KL ")
    assert 0 < float(line.split("KL ")[1].split(" ")[0]) < 1


def test_what_packing_costs_is_the_same_over_a_mesh(tmp_path, capsys):
    peft.save(nano_adapter(), nano_config(), "nano", tmp_path / "adapter")
    costs = []
    for mesh in ("data=1", "expert=4,tensor=2"):
        words = ["nano", str(tmp_path / mesh), "--to", "original", "--mesh", mesh]
        assert convert.main([*words, "--adapter", str(tmp_path / "adapter")]) == 0
        costs.append(float(capsys.readouterr().err.split("KL ")[1].split(" ")[0]))
    assert costs[0] == pytest.approx(costs[1], rel=0.02)  # three digits are shown
    words = ["nano", str(tmp_path / "third"), "--to", "original", "--mesh", "expert=3"]
    assert convert.main([*words, "--adapter", str(tmp_path / "adapter")]) == 2
    assert "--mesh expert=3: " in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


@functools.cache
def nano_config() -> Config:
    return load("nano", dtype="float32")[0].config


def nano_adapter(targets: tuple[str, ...] = ("gate_up", "down")) -> Trained:
    adapter = Adapter(rank=2, alpha=2.0, targets=targets)
    rng = np.random.default_rng(0)
    shapes = lora.trained_shapes(load("nano", dtype="float32")[0], adapter)
    values = {p: rng.normal(0, 0.02, shape).astype(np.float32) for p, shape in shapes.items()}
    return Trained(adapter, values)


def broken(tmp_path, change):
    peft.save(trained(), CONFIG, "base", tmp_path / "adapter")
    change(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_failure_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    """What failed, and then a try again, into the same two directories."""
    (tmp_path / "empty").mkdir()

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(peft, "write_json", full)
        for name in ("empty", "new"):
            with pytest.raises(OSError, match="no space left"):
                peft.save(trained(), CONFIG, "base", tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    for name in ("empty", "new"):
        peft.save(trained(), CONFIG, "base", tmp_path / name)
        assert peft.load(tmp_path / name, CONFIG).adapter.rank == 3


def spoil(number):
    def change(folder):
        tensors = safetensors.numpy.load_file(folder / peft.WEIGHTS)
        tensors["base_model.model.lm_head.lora_A.weight"][1, 2] = number
        safetensors.numpy.save_file(tensors, folder / peft.WEIGHTS)

    return change


def add(name, shape):
    def change(folder):
        tensors = safetensors.numpy.load_file(folder / peft.WEIGHTS)
        tensors[f"base_model.model.{name}"] = np.zeros(shape, np.float32)
        safetensors.numpy.save_file(tensors, folder / peft.WEIGHTS)

    return change


def without(part):
    def change(folder):
        tensors = safetensors.numpy.load_file(folder / peft.WEIGHTS)
        kept = {name: value for name, value in tensors.items() if part not in name}
        assert len(kept) < len(tensors)
        safetensors.numpy.save_file(kept, folder / peft.WEIGHTS)

    return change


def edit(**fields):
    def change(folder):
        file = folder / peft.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def another(config):
    def change(folder):
        shutil.rmtree(folder)
        peft.save(trained(config), config, "base", folder)

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (edit(use_dora=True), "'use_dora': True is not supported"),
        (edit(peft_type="IA3"), "'peft_type': 'IA3' is not supported"),
        *(
            (edit(init_lora_weights=name), f"'init_lora_weights': '{name}' changes the base's")
            for name in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
        ),
        *(
            (edit(**{name: value}), f"'{name}': .* is not supported")
            for name, value in {
                "alora_invocation_tokens": [5, 6],
                "use_qalora": True,
                "layer_replication": [[0, 1], [0, 2]],
                "use_bdlora": {"nblocks": 2},
                "lora_bias": True,
                "trainable_token_indices": [3],
                "modules_to_save": ["lm_head"],
            }.items()
        ),
        (edit(use_tomorrow=True), "'use_tomorrow': True is of a field that is not known"),
        (edit(r=7), r"'r': 7 for model\.layers\.0\.\S+, but factors of 3"),
        (edit(rank_pattern={"q_proj": 4}), r"'r': 4 for model\.layers\.0\.\S+q_proj, but .* of 3"),
        (edit(rank_pattern={"q_proj": 0}), "'rank_pattern.q_proj': 0 is no whole number from 1"),
        (edit(rank_pattern={"q_(": 3}), r"'rank_pattern.q_\(': no regular expression: "),
        (edit(rank_pattern={"(?i)q": 3}), r"'rank_pattern\.\(\?i\)q': no regular expression: "),
        (edit(alpha_pattern={"q_proj": "x"}), "'alpha_pattern.q_proj': 'x' is no number from 0"),
        (edit(alpha_pattern=[1]), r"'alpha_pattern': \[1\] is no object"),
        (edit(r=[2]), r"'r': \[2\] is no whole number"),
        (edit(target_modules=5), "'target_modules': 5 is neither a text nor a list of texts"),
        (edit(target_parameters=[1]), r"'target_parameters': \[1\] is neither a text nor a list"),
        (without("v_proj"), "no factors of self_attn.v_proj, which adapter_config.json names"),
        (without("1.self_attn.v_proj"), r"no factors of self_attn.v_proj in layer 1 of"),
        (without("mlp.experts.base_layer"), "no factors of mlp.experts.gate_up_proj, which"),
        (edit(r=True), "'r': True is no whole number"),
        (edit(use_rslora="false"), "'use_rslora': 'false' is neither true nor false"),
        (edit(lora_alpha="much"), "'lora_alpha': 'much' is no number from 0"),
        (edit(lora_alpha=math.nan), "'lora_alpha': nan is no number from 0"),
        (edit(lora_alpha=10**400), "'lora_alpha': 10* is no number from 0"),
        (edit(lora_dropout=1), "'lora_dropout': 1.0 must be below 1"),
        (spoil(np.nan), "tensor 'base_model.model.lm_head.lora_A.weight' has values that are not"),
        (spoil(-np.inf), "tensor 'base_model.model.lm_head.lora_A.weight' has values that are"),
        (add("lm_head.base_layer.weight", (302, 96)), r"\[302, 96\] is no factor of a LoRA"),
        (add("model.layers.0.self_attn.q_proj.lora_A.bias", (3,)), r"\[3\] is no factor"),
        (lambda folder: (folder / peft.WEIGHTS).unlink(), "no such file"),
        (lambda folder: (folder / peft.CONFIG).unlink(), "no such file"),
        (another(SQUARE), r"do not fit the model, which takes \[4 r, 64\]"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, change, error):
    with pytest.raises(UserError, match=error) as raised:
        peft.load(broken(tmp_path, change), CONFIG)
    assert "\n" not in str(raised.value)


def as_from_elsewhere(directory):
    """Without what our files say of their base."""
    tensors = safetensors.numpy.load_file(directory / peft.WEIGHTS)
    safetensors.numpy.save_file(tensors, directory / peft.WEIGHTS)


@pytest.mark.parametrize("targets", [("q", "v"), ("unembedding",), ("sinks",)], ids=str)
@pytest.mark.parametrize("other", [{"num_layers": 3, "layer_types": ()}, {"num_experts": 8}])
def test_an_adapter_of_another_base_of_the_same_widths(tmp_path, targets, other):
    peft.save(trained(targets=targets, layers=(1,)), CONFIG, "base", tmp_path / "adapter")
    with pytest.raises(UserError, match="is of a base with 2 layers of 4 experts; this one has"):
        peft.load(tmp_path / "adapter", dataclasses.replace(CONFIG, **other))


def test_factors_of_a_named_layer_may_not_be_missing(tmp_path):
    directory = tmp_path / "adapter"
    peft.save(trained(targets=("q", "v"), layers=(1,)), CONFIG, "base", directory)
    without("v_proj")(directory)
    with pytest.raises(UserError, match=r"no factors of model\.layers\.1\.self_attn\.v_proj"):
        peft.load(directory, CONFIG)


def test_an_adapter_of_fewer_layers(tmp_path):
    """20b's attention is as wide as 120b's; only what says so itself is of some layers."""
    shallow = dataclasses.replace(CONFIG, num_layers=1, layer_types=())
    directory = tmp_path / "adapter"
    peft.save(trained(shallow, targets=("q", "unembedding")), shallow, "base", directory)
    as_from_elsewhere(directory)
    with pytest.raises(
        UserError, match=r"self_attn\.q_proj in layer 1 of the model's 2: it is of another"
    ):
        peft.load(directory, CONFIG)
    config = json.loads((directory / peft.CONFIG).read_text())
    (directory / peft.CONFIG).write_text(json.dumps(config | {"layers_to_transform": [0]}))
    assert peft.load(directory, CONFIG).adapter.layers == (0,)


def test_a_run_s_directory_is_none_of_an_adapter(tmp_path):
    peft.save(trained(targets=("q",)), CONFIG, "base", tmp_path / "export")
    with pytest.raises(UserError, match=r"a run's directory; give its adapter, .*export$"):
        peft.load(tmp_path, CONFIG)


def test_sinks_of_some_layers_beside_the_unembedding(tmp_path):
    """Sinks are in a file of ours, so that PEFT's config cannot say in which layers."""
    given = trained(targets=("sinks", "unembedding"), layers=(1,))
    peft.save(given, CONFIG, "base", tmp_path / "adapter")
    found = peft.load(tmp_path / "adapter", CONFIG)
    assert found.values.keys() == given.values.keys()


def test_names_that_begin_with_a_layer_s_number_choose_layers(tmp_path):
    """PEFT takes modules whose names end so."""
    directory = tmp_path / "adapter"
    peft.save(trained(targets=("gate_up",), layers=(1,)), CONFIG, "base", directory)
    config = json.loads((directory / peft.CONFIG).read_text())
    names = [name.removeprefix("model.layers.") for name in config["target_parameters"]]
    assert names == ["1.mlp.experts.gate_up_proj"]
    (directory / peft.CONFIG).write_text(json.dumps(config | {"target_parameters": names}))
    assert peft.load(directory, CONFIG).adapter.layers == (1,)


def test_an_adapter_of_more_layers(tmp_path):
    deep = dataclasses.replace(CONFIG, num_layers=3, layer_types=())
    peft.save(trained(deep), deep, "base", tmp_path / "adapter")
    as_from_elsewhere(tmp_path / "adapter")
    with pytest.raises(UserError, match="the model has 2 layers"):
        peft.load(tmp_path / "adapter", CONFIG)
