"""Adapters that do not fit, and failures while one is written."""

import dataclasses
import errno
import json
import math
import shutil

import numpy as np
import pytest
import safetensors.numpy
from peft_cases import CONFIG, SQUARE, trained

from gptoss_jax.checkpoint import peft
from gptoss_jax.errors import UserError


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
