"""`config.json` in its three dialects, and what is said of a bad one."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import sample

from gptoss_jax.errors import UserError
from gptoss_jax.model.config import PRESETS, Config, read_config, to_hf_json, to_original_json

pytestmark = pytest.mark.fast

CONFIGS = Path(__file__).parent / "configs"
# The published files as they are, where a checkout has them beside it.
PUBLISHED = Path(__file__).parents[3] / "shared" / "data"

SMALL = Config(
    num_layers=3,
    num_experts=8,
    experts_per_token=2,
    hidden_size=96,
    expert_width=64,
    num_heads=6,
    num_kv_heads=2,
    head_dim=20,
    vocab_size=301,
    sliding_window=16,
    rope_theta=50_000.0,
    rope_factor=8.0,
    rope_original_context=64,
    max_context=512,
    swiglu_limit=5.0,
)


def write(path: Path, raw) -> Path:
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return path


@pytest.mark.parametrize("dialect", ["hub", "transformers_v5", "original"])
def test_small_copies_of_each_dialect(dialect):
    assert read_config(CONFIGS / f"{dialect}.json") == SMALL


@pytest.mark.parametrize("size", ["20b", "120b"])
@pytest.mark.parametrize("prefix", ["config", "original_config"])
def test_the_published_files(prefix, size):
    path = PUBLISHED / f"{prefix}.{size}.json"
    if not path.exists():
        pytest.skip("the published files are not beside this checkout")
    assert read_config(path) == PRESETS[size]


def test_presets_are_the_published_sizes():
    for size, layers, experts in (("20b", 24, 32), ("120b", 36, 128)):
        config = PRESETS[size]
        assert (config.num_layers, config.num_experts) == (layers, experts)
        assert (config.hidden_size, config.attention_width, config.kv_width) == (2880, 4096, 512)
        assert config.window(0) == 128
        assert config.window(1) is None
        assert config.max_context == config.rope_factor * config.rope_original_context


def test_a_directory_stands_for_its_config(tmp_path):
    write(tmp_path / "config.json", to_hf_json(SMALL, packed_experts=True))
    assert read_config(tmp_path) == SMALL


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("config", [*PRESETS.values(), SMALL, *sample.SHAPES.values()])
def test_hf_round_trip(tmp_path, config, packed):
    raw = to_hf_json(config, packed_experts=packed)
    assert ("quantization_config" in raw) == packed
    assert read_config(write(tmp_path / "config.json", raw)) == config


def test_the_initializer_range_is_read_and_written(tmp_path):
    config = dataclasses.replace(SMALL, initializer_range=0.05)
    raw = to_hf_json(config, packed_experts=True)
    assert read_config(write(tmp_path / "config.json", raw)) == config
    del raw["initializer_range"]
    assert read_config(write(tmp_path / "config.json", raw)).initializer_range == 0.02


def test_hf_json_says_what_the_published_file_says():
    path = PUBLISHED / "config.20b.json"
    if not path.exists():
        pytest.skip("the published files are not beside this checkout")
    published = json.loads(path.read_text())
    ours = to_hf_json(PRESETS["20b"], packed_experts=True)
    same = published.keys() - {"transformers_version"}
    assert {key: ours.get(key) for key in same} == {key: published[key] for key in same} | {
        "quantization_config": ours["quantization_config"]
    }
    theirs = published["quantization_config"]
    assert ours["quantization_config"]["quant_method"] == theirs["quant_method"]
    assert set(ours["quantization_config"]["modules_to_not_convert"]) == set(
        theirs["modules_to_not_convert"]
    )


def test_a_vocabulary_without_the_padding_token_has_none():
    assert to_hf_json(PRESETS["20b"], packed_experts=True)["pad_token_id"] == 199_999
    for name in ("pad_token_id", "eos_token_id"):
        assert to_hf_json(SMALL, packed_experts=True)[name] is None


def test_original_round_trip(tmp_path):
    for config in (PRESETS["20b"], PRESETS["120b"], SMALL):
        assert read_config(write(tmp_path / "config.json", to_original_json(config))) == config


def test_the_original_layout_of_fewer_experts_than_are_published_active(tmp_path):
    config = dataclasses.replace(SMALL, num_experts=3, experts_per_token=2)
    assert read_config(write(tmp_path / "config.json", to_original_json(config))) == config


UNSAYABLE = {
    "layer_types": ("full_attention",) * 3,
    "rms_norm_eps": 0.5,
    "swiglu_alpha": 0.5,
    "rope_truncate": True,
    "max_context": 511,
}


@pytest.mark.parametrize(("field", "value"), UNSAYABLE.items())
def test_what_the_original_layout_cannot_say(field, value):
    with pytest.raises(UserError, match=field):
        to_original_json(dataclasses.replace(SMALL, **{field: value}))


def test_plain_rope(tmp_path):
    raw = to_hf_json(SMALL, packed_experts=True) | {"rope_scaling": {"rope_type": "default"}}
    config = read_config(write(tmp_path / "config.json", raw))
    # No original context, so none that 512 could be less than.
    assert (config.rope_factor, config.max_context) == (1.0, 512)
    raw = to_hf_json(config, packed_experts=True)
    assert read_config(write(tmp_path / "config.json", raw)) == config


def test_what_yarn_would_do_anyway_may_be_said(tmp_path):
    for said in (
        {"attention_factor": None, "mscale": None, "mscale_all_dim": None},
        {"attention_factor": 0.1 * math.log(8) + 1 + 5e-7},
        {"mscale": 1.0, "mscale_all_dim": 0},
    ):
        raw = json.loads((CONFIGS / "hub.json").read_text())
        raw["rope_scaling"] |= said
        raw["quantization_config"] = None
        assert read_config(write(tmp_path / "config.json", raw)) == SMALL


def test_rope_scaling_adds_to_rope_parameters(tmp_path):
    raw = bad("transformers_v5", rope_parameters__truncate=..., rope_scaling={"truncate": False})
    assert read_config(write(tmp_path / "config.json", raw)) == SMALL


@pytest.mark.parametrize("name", ["small", *sample.SHAPES])
def test_what_transformers_writes(tmp_path, name):
    pytest.importorskip("torch", reason="needs the oracle extra")
    pytest.importorskip("transformers", reason="needs the oracle extra")
    import oracle  # noqa: PLC0415 - needs torch and transformers

    config = SMALL if name == "small" else sample.SHAPES[name]
    oracle.hf_config(config).save_pretrained(tmp_path)
    assert read_config(tmp_path) == config


def test_transformers_reads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the oracle extra")
    write(tmp_path / "config.json", to_hf_json(SMALL, packed_experts=False))
    theirs = transformers.GptOssConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again") == SMALL


def bad(dialect: str, **changes):
    """A dialect's file with keys replaced (or removed, where ...); `a__b` is key b inside a."""
    raw = copy.deepcopy(json.loads((CONFIGS / f"{dialect}.json").read_text()))
    for path, value in changes.items():
        *parents, key = path.split("__")
        inside = raw
        for parent in parents:
            inside = inside[parent]
        if value is ...:
            del inside[key]
        else:
            inside[key] = value
    return raw


BAD = {
    "missing": (bad("hub", num_hidden_layers=...), "num_hidden_layers"),
    "missing_in_original": (bad("original", head_dim=...), "head_dim"),
    "missing_rope": (bad("hub", rope_scaling=...), "rope_scaling"),
    "null_rope": (bad("hub", rope_scaling=None), "rope_scaling"),
    "missing_theta": (bad("hub", rope_theta=...), "rope_theta"),
    "missing_factor": (bad("hub", rope_scaling__factor=...), "rope_scaling.factor"),
    "missing_v5": (
        bad("transformers_v5", rope_parameters__beta_fast=...),
        "rope_parameters.beta_fast",
    ),
    "rope_type": (bad("hub", rope_scaling__rope_type="linear"), "rope_scaling.rope_type"),
    "string": (bad("hub", hidden_size="2880"), "hidden_size"),
    "null": (bad("hub", hidden_size=None), "hidden_size"),
    "bool": (bad("hub", hidden_size=True), "hidden_size"),
    "fraction": (bad("hub", head_dim=20.5), "head_dim"),
    "odd_head": (bad("hub", head_dim=21), "head_dim"),
    "zero": (bad("hub", sliding_window=0), "sliding_window"),
    "negative": (bad("original", num_experts=-1), "num_experts"),
    "heads": (bad("hub", num_attention_heads=7), "num_attention_heads"),
    "active": (bad("hub", num_experts_per_tok=9), "num_experts_per_tok"),
    "group": (bad("hub", hidden_size=90), "hidden_size"),
    "width": (bad("original", intermediate_size=65), "intermediate_size"),
    "layers": (bad("hub", layer_types=["full_attention"]), "layer_types"),
    "layer_name": (bad("hub", layer_types=["full_attention"] * 2 + ["chunked"]), "layer_types"),
    "layers_no_list": (bad("hub", layer_types=5), "layer_types"),
    "layers_nested": (bad("hub", layer_types=[["full_attention"]] * 3), "layer_types"),
    "nan": (bad("hub", rope_theta=float("nan")), "rope_theta"),
    "infinite": (bad("hub", num_hidden_layers=float("inf")), "num_hidden_layers"),
    "theta_of_one": (bad("hub", rope_theta=1), "rope_theta"),
    "tied": (bad("hub", tie_word_embeddings=True), "tie_word_embeddings"),
    "no_bias": (bad("hub", attention_bias=False), "attention_bias"),
    "architecture": (bad("hub", architectures=["LlamaForCausalLM"]), "architectures"),
    "model_type": (bad("hub", model_type="llama"), "'model_type': 'llama'"),
    "neither": (bad("hub", architectures=[], model_type=None), "architectures"),
    "activation": (bad("hub", hidden_act="gelu"), "'hidden_act': 'gelu'"),
    "two_numbers_active": (
        bad("hub", experts_per_token=3),
        "'num_experts_per_tok' and 'experts_per_token' differ: 2 and 3",
    ),
    "two_numbers_of_experts": (
        bad("original", num_local_experts=9),
        "'num_experts' and 'num_local_experts' differ: 8 and 9",
    ),
    "two_contexts": (
        bad("hub", initial_context_length=128),
        "'rope_scaling.original_max_position_embeddings' and 'initial_context_length' differ",
    ),
    "two_thetas": (
        bad("transformers_v5", rope_theta=10_000),
        "'rope_parameters.rope_theta' and 'rope_theta' differ",
    ),
    "two_ropes": (
        bad("transformers_v5", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "'rope_parameters.factor' and 'rope_scaling.factor' differ: 8.0 and 4.0",
    ),
    "no_architecture": ({"hidden_size": 96}, "architectures"),
    "attention_factor": (
        bad("hub", rope_scaling__attention_factor=1.5),
        "'rope_scaling.attention_factor': 1.5 is not YaRN's 1.207944",
    ),
    "attention_factor_v5": (
        bad("transformers_v5", rope_parameters__attention_factor=1),
        "rope_parameters.attention_factor",
    ),
    "attention_factor_beside_v5": (
        bad("transformers_v5", rope_scaling={"attention_factor": 1}),
        "rope_parameters.attention_factor",
    ),
    "attention_factor_string": (
        bad("hub", rope_scaling__attention_factor="1.2"),
        "'rope_scaling.attention_factor': '1.2' is not a number",
    ),
    "attention_factor_and_bad_factor": (
        bad("hub", rope_scaling__factor=-1, rope_scaling__attention_factor=1),
        "rope_scaling.factor",
    ),
    "mscale": (bad("hub", rope_scaling__mscale=0.707), "'rope_scaling.mscale': 0.707"),
    "mscale_all_dim": (
        bad("hub", rope_scaling__mscale=1, rope_scaling__mscale_all_dim=1),
        "'rope_scaling.mscale_all_dim': 1",
    ),
    "truncate": (bad("hub", rope_scaling__truncate="false"), "'rope_scaling.truncate': 'false'"),
    "truncate_null": (bad("hub", rope_scaling__truncate=None), "rope_scaling.truncate"),
    "betas": (bad("hub", rope_scaling__beta_fast=1.0), "'rope_scaling.beta_fast': 1.0"),
    "betas_in_original": (bad("original", rope_ntk_alpha=33), "'rope_ntk_beta': 32.0"),
    "shrinking": (bad("hub", rope_scaling__factor=0.5), "'rope_scaling.factor': 0.5"),
    "shrinking_in_original": (bad("original", rope_scaling_factor=0.5), "'rope_scaling_factor'"),
    "short": (
        bad("hub", max_position_embeddings=63),
        "'max_position_embeddings': 63 is less than the original context, 64",
    ),
    "other_quantization": (
        bad("hub", quantization_config={"quant_method": "awq"}),
        "'quantization_config.quant_method': 'awq'",
    ),
    "quantization_no_object": (bad("hub", quantization_config="mxfp4"), "quantization_config"),
    "huge_integer": (bad("hub", rope_theta=10**400), "rope_theta"),
    "huge_context": (bad("original", rope_scaling_factor=1e308), "rope_scaling_factor"),
    "limit": (bad("hub", swiglu_limit="7"), "swiglu_limit"),
    "not_json": ("{", "JSON"),
    "deep": ('{"a":' + "[" * 200_000, "JSON"),
    "digits": ('{"vocab_size": ' + "9" * 5000 + "}", "JSON"),
    "not_object": ("[1, 2]", "list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line_that_names_file_and_key(tmp_path, name):
    raw, named = BAD[name]
    path = write(tmp_path / "config.json", raw)
    with pytest.raises(UserError) as caught:
        read_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert named in message.replace(str(path), "")
    assert "\n" not in message


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_config(tmp_path / "absent.json")
