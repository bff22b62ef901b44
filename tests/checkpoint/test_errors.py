import errno
import json
import shutil

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

from gptoss_jax.checkpoint import load_model, orbax_dir, output, save_model
from gptoss_jax.checkpoint.directory import INDEX
from gptoss_jax.errors import UserError

Q = "model.layers.1.self_attn.q_proj.weight"
SCALES = "model.layers.1.mlp.experts.down_proj_scales"
FILE = "model.safetensors"


def edit(change):
    def corrupt(directory):
        tensors = load_file(directory / FILE)
        change(tensors)
        save_file(tensors, directory / FILE)

    return corrupt


def edit_json(name, change):
    def corrupt(directory):
        raw = json.loads((directory / name).read_text())
        change(raw)
        (directory / name).write_text(json.dumps(raw))

    return corrupt


def put(name, change):
    return edit(lambda tensors: tensors.update({name: change(tensors[name])}))


def nan_scale(scales):
    scales = scales.copy()
    scales[3, 7, 1] = 255
    return scales


def cut(file, count):
    def corrupt(directory):
        (directory / file).write_bytes((directory / file).read_bytes()[:-count])

    return corrupt


def rename_all(tensors):
    renamed = {f"transformer.{name}": x for name, x in tensors.items()}
    tensors.clear()
    tensors.update({name.replace("experts", "ffn"): x for name, x in renamed.items()})


# What is done to a directory -> what the message must contain.
SINGLE = {
    "missing": (edit(lambda t: t.pop(Q)), [FILE, f"{Q!r} is missing"]),
    "extra": (edit(lambda t: t.update(surplus=t[Q])), [FILE, "'surplus'", "no place"]),
    "shape": (put(Q, lambda x: x.T.copy()), [FILE, repr(Q), "[96, 192], not [192, 96]"]),
    "dtype": (put(Q, lambda x: x.astype(np.float16)), [FILE, repr(Q), "F16, not BF16"]),
    "mixed": (put(Q, lambda x: x.astype(np.float32)), [FILE, repr(Q), "F32, not BF16"]),
    "scales' dtype": (put(SCALES, lambda x: x.astype(np.int8)), [FILE, repr(SCALES), "I8"]),
    "nan scale": (put(SCALES, nan_scale), [FILE, repr(SCALES), "255"]),
    "truncated": (cut(FILE, 1), [FILE, "truncated within tensor"]),
    "header cut": (cut(FILE, 10**5 * 7 + 60_000), [FILE, "truncated"]),
    "no layout": (edit(rename_all), [FILE, "transformer.", "not a gpt-oss layout"]),
    "no tensors": (edit(lambda t: t.clear()), ["not a gpt-oss layout"]),
    "more layers": (
        edit_json("config.json", lambda c: c.update(num_hidden_layers=4, layer_types=None)),
        [FILE, "'model.layers.3.input_layernorm.weight' is missing (and 18 more)"],
    ),
    "no config": (lambda d: (d / "config.json").unlink(), ["config.json", "no such file"]),
    "no weights": (lambda d: (d / FILE).unlink(), ["holds no model*.safetensors"]),
    "hint": (
        lambda d: ((d / FILE).unlink(), (d / "original").mkdir()),
        ["holds no model*.safetensors", "original/"],
    ),
    "no directory": (shutil.rmtree, ["no such directory"]),
}


@pytest.fixture
def copy(published, tmp_path):
    return shutil.copytree(published, tmp_path / "copy")


def refused(directory):
    with pytest.raises(UserError) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value) or "layout" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SINGLE)
def test_a_broken_directory_is_refused_by_name(copy, name):
    corrupt, expected = SINGLE[name]
    corrupt(copy)
    message = refused(copy)
    for part in expected:
        assert part in message


@pytest.mark.parametrize("name", ["config.json", FILE])
def test_a_file_is_told_from_its_directory(published, name):
    file = published / name
    assert refused(file) == f"{file} is a file; give its directory {published}"


def place(name, file):
    return edit_json(INDEX, lambda index: index["weight_map"].update({name: file}))


def shard(number):
    return f"model-{number:05}-of-00004.safetensors"


def absent_from_index(directory):
    raw = json.loads((directory / INDEX).read_text())
    raw["weight_map"] = {n: f for n, f in raw["weight_map"].items() if f != shard(2)}
    (directory / INDEX).write_text(json.dumps(raw))


def take_out_of_index_and_shard(directory):
    raw = json.loads((directory / INDEX).read_text())
    file = directory / raw["weight_map"].pop(Q)
    (directory / INDEX).write_text(json.dumps(raw))
    save_file({name: x for name, x in load_file(file).items() if name != Q}, file)


SHARDED = {
    "tensor nowhere": (take_out_of_index_and_shard, [INDEX, f"{Q!r} is missing"]),
    "shard missing": (lambda d: (d / shard(2)).unlink(), [shard(2), "no such file", "'model."]),
    "shard absent from the index": (absent_from_index, [shard(2), "absent from", "'model."]),
    "tensor absent from the index": (
        edit_json(INDEX, lambda index: index["weight_map"].pop(Q)),
        ["-of-00004.safetensors: ", repr(Q), "places it nowhere"],
    ),
    "tensor elsewhere": (place(Q, shard(3)), [repr(Q), f"places it in {shard(3)}"]),
    "tensor only in the index": (place("ghost", shard(3)), [shard(3), "'ghost' is missing"]),
    "a path in the index": (place("ghost", "../x.safetensors"), ["x.safetensors", "no such file"]),
    "no weight map": (edit_json(INDEX, dict.clear), [INDEX, "weight_map"]),
    "index no json": (lambda d: (d / INDEX).write_text("{"), [INDEX, "JSON"]),
    "shard truncated": (cut(shard(1), 3), [shard(1), "truncated within tensor"]),
    "tensor twice": (
        lambda d: ((d / INDEX).unlink(), shutil.copy(d / shard(0), d / "model-9.safetensors")),
        ["model-9.safetensors", "is also in"],
    ),
}


@pytest.fixture(scope="module")
def sharded(published, tmp_path_factory):
    target = tmp_path_factory.mktemp("sharded") / "hf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "_HF_SHARD_BYTES", 200_000)
        save_model(load_model(published), "hf", target)
    assert (target / shard(4)).exists()
    return target


@pytest.mark.parametrize("name", SHARDED)
def test_index_and_shards_must_agree(sharded, tmp_path, name):
    corrupt, expected = SHARDED[name]
    copy = shutil.copytree(sharded, tmp_path / "copy")
    corrupt(copy)
    message = refused(copy)
    for part in expected:
        assert part in message


def test_headers_are_refused_before_any_weight_is_read(copy, monkeypatch):
    edit(lambda tensors: tensors.pop(Q))(copy)
    monkeypatch.setattr("gptoss_jax.checkpoint.source.read_rows", None)
    monkeypatch.setattr("gptoss_jax.checkpoint.parameters.aligned_empty", None)
    assert "is missing" in refused(copy)


ORBAX = {
    "missing": ({}, lambda p: p["final_norm"].clear(), "'final_norm.scale_D' is missing"),
    "extra": ({}, lambda p: p.update(surplus=np.ones(3)), "'surplus': config.json has no place"),
    "shape": ({"vocab_size": 201}, None, "shape [200, 96], not [201, 96]"),
    "nan scale": (
        {},
        lambda p: p["layers"]["1"]["moe"]["w_down_EFD"].update(
            scales=np.full((25, 96), 255, np.uint8)
        ),
        "'layers.1.moe.w_down_EFD.scales': a scale byte is 255",
    ),
}


@pytest.mark.parametrize("name", ORBAX)
def test_a_broken_orbax_directory_is_refused_by_name(published, tmp_path, name):
    changes, corrupt, expected = ORBAX[name]
    model, target = load_model(published), tmp_path / "orbax"
    save_model(model, "orbax", target)
    edit_json("config.json", lambda raw: raw.update(changes))(target)
    if corrupt is not None:
        tree = orbax_dir.tree(model)
        corrupt(tree)
        ocp.save(target / "params", tree, overwrite=True)
    assert expected in refused(target)


def test_a_half_written_directory_does_not_load(published, tmp_path, monkeypatch):
    model = load_model(published)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "write_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, "hf", tmp_path / "target")
    refused(tmp_path / "target")


def test_a_directory_that_is_not_empty_is_not_written_to(copy, published):
    with pytest.raises(UserError, match="not empty"):
        save_model(load_model(published), "hf", copy)


def test_unknown_layout(published, tmp_path):
    with pytest.raises(UserError, match="unknown layout 'gguf'"):
        save_model(load_model(published), "gguf", tmp_path / "target")


def test_a_failed_write_names_the_directory(tmp_path):
    """Which the operating system's error alone does not."""
    with (
        pytest.raises(OSError, match=r"File too large: '.*/new'"),
        output.created(tmp_path / "new"),
    ):
        raise OSError(errno.EFBIG, "File too large")
    assert not (tmp_path / "new").exists()
