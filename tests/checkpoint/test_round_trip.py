import json

import jax
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from gptoss_jax.checkpoint import (
    load_model,
    orbax_dir,
    output,
    parameters,
    safetensors_file,
    save_model,
    source,
    weights,
)
from gptoss_jax.checkpoint.directory import INDEX, SAFETENSORS_LAYOUTS
from gptoss_jax.checkpoint.load import open_source
from gptoss_jax.checkpoint.save import save_source

# MXFP4 (OCP Microscaling Formats v1.0), written out here on purpose.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Tensors of the small model come in several chunks, the last one shorter."""
    for module in (weights, source):
        monkeypatch.setattr(module, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(orbax_dir, "_STORED_CHUNK", 20_000)


def tensors(directory):
    return {
        name: (x.dtype.name, x.shape, x.tobytes())
        for file in directory.glob("model*.safetensors")
        for name, x in load_file(file).items()
    }


def leaves(model):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(model)}


def assert_same_model(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def through(start, *layouts, tmp_path):
    for number, layout in enumerate(layouts):
        target = tmp_path / f"{number}-{layout}"
        save_model(load_model(start), layout, target, source=start)
        start = target
    return start


@pytest.mark.parametrize(
    "layouts", [("hf",), ("orbax", "hf"), ("original", "hf"), ("orbax", "original", "orbax", "hf")]
)
def test_packed_round_trips_are_byte_identical(published, layouts, tmp_path):
    assert tensors(through(published, *layouts, tmp_path=tmp_path)) == tensors(published)


@pytest.mark.parametrize("layouts", [("hf-bf16",), ("orbax", "hf-bf16")])
def test_dense_round_trips_are_byte_identical(published, layouts, tmp_path):
    dense = through(published, "hf-bf16", tmp_path=tmp_path / "dense")
    assert tensors(through(dense, *layouts, tmp_path=tmp_path)) == tensors(dense)


def files(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("start", ["hf", "hf-bf16", "original", "orbax"])
@pytest.mark.parametrize("layout", SAFETENSORS_LAYOUTS)
def test_a_checkpoint_streams_to_what_its_model_is_saved_as(published, start, layout, tmp_path):
    origin = through(published, start, tmp_path=tmp_path / "origin")
    (origin / "tokenizer.json").write_text("a tokenizer")
    save_source(open_source(origin), layout, tmp_path / "streamed")
    assert files(tmp_path / "streamed") == files(through(origin, layout, tmp_path=tmp_path))


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_streaming_reads_every_byte_once(published, layout, tmp_path, monkeypatch):
    counts = []

    def read_rows(entry, first, out, columns=None):
        counts.append(out.nbytes)
        safetensors_file.read_rows(entry, first, out, columns)

    monkeypatch.setattr(source, "read_rows", read_rows)
    save_source(open_source(published), layout, tmp_path / "target")
    assert sum(counts) == sum(len(x[2]) for x in tensors(published).values())


def test_memory_holds_what_the_files_say(published, config):
    model, raw = load_model(published), load_file(published / "model.safetensors")
    width = config.expert_width
    at = "model.layers.1.mlp.experts.gate_up_proj_bias"
    bias_EF = np.asarray(model.layers[1].moe.b_gate_up_EF.get_value())
    np.testing.assert_array_equal(bias_EF[:, :width], raw[at][:, 0::2])
    np.testing.assert_array_equal(bias_EF[:, width:], raw[at][:, 1::2])
    q_AD = np.asarray(model.layers[2].attention.w_q_AD.get_value())
    np.testing.assert_array_equal(q_AD, raw["model.layers.2.self_attn.q_proj.weight"])


def dequantise(blocks, scales):
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = E2M1[codes] * np.exp2(scales.astype(np.float32) - 127)[..., None]
    return values.reshape(*blocks.shape[:2], -1)


def test_hf_bf16_is_the_transposed_dequantisation(published, tmp_path):
    packed = load_file(published / "model.safetensors")
    dense = load_file(through(published, "hf-bf16", tmp_path=tmp_path) / "model.safetensors")
    for kind in ("gate_up_proj", "down_proj"):
        at = f"model.layers.2.mlp.experts.{kind}"
        expected = dequantise(packed.pop(f"{at}_blocks"), packed.pop(f"{at}_scales"))
        np.testing.assert_array_equal(
            dense.pop(at).astype(np.float32), expected.transpose(0, 2, 1), err_msg=kind
        )
    at = "model.layers.0.self_attn.v_proj.weight"
    assert dense[at].tobytes() == packed[at].tobytes()


def test_original_fuses_q_k_v(published, tmp_path):
    hf = load_file(published / "model.safetensors")
    fused = load_file(through(published, "original", tmp_path=tmp_path) / "model.safetensors")
    parts = [hf[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv"]
    np.testing.assert_array_equal(fused["block.1.attn.qkv.weight"], np.concatenate(parts))
    at = "model.layers.1.mlp.experts.gate_up_proj_blocks"
    np.testing.assert_array_equal(fused["block.1.mlp.mlp1_weight.blocks"], hf[at])


def test_dense_experts_quantise_to_the_same_values(published, tmp_path):
    dense = through(published, "hf-bf16", tmp_path=tmp_path / "a")
    again = through(dense, "hf", "hf-bf16", tmp_path=tmp_path / "b")
    assert tensors(again) == tensors(dense)


def test_orbax_reads_its_own(published, tmp_path):
    target = through(published, "orbax", tmp_path=tmp_path)
    expected = orbax_dir.tree(load_model(published))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), expected
    )
    restored = ocp.load(target / "params", abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_several_shards(published, layout, tmp_path, monkeypatch):
    for limit in ("_HF_SHARD_BYTES", "_ORIGINAL_SHARD_BYTES", "_ORIGINAL_SINGLE_BYTES"):
        monkeypatch.setattr(output, limit, 200_000)
    target = through(published, layout, tmp_path=tmp_path)
    files = sorted(file.name for file in target.glob("*.safetensors"))
    index = json.loads((target / INDEX).read_text())
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(len(x[2]) for x in tensors(target).values())
    assert_same_model(load_model(target), load_model(published))
    (target / INDEX).unlink()  # shards alone say all there is to say
    assert_same_model(load_model(target), load_model(published))


def test_other_folders_and_files_are_ignored(published, tmp_path):
    target = through(published, "hf", tmp_path=tmp_path)
    for folder in ("original", "metal"):
        (target / folder).mkdir()
        (target / folder / "model.safetensors").write_bytes(b"broken")
    assert_same_model(load_model(target), load_model(published))


def test_the_way_to_an_accelerator_gives_the_same_model(published, monkeypatch):
    """Chunks placed one by one into the device's array; on the CPU platform one buffer is it."""
    expected = load_model(published)
    monkeypatch.setattr(parameters, "_on_cpu", lambda sharding: False)
    assert_same_model(load_model(published), expected)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_mesh_gets_the_model_replicated(published, monkeypatch, on_cpu):
    expected = load_model(published)
    if not on_cpu:
        monkeypatch.setattr(parameters, "_on_cpu", lambda sharding: False)
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    model = load_model(published, mesh=mesh)
    for leaf in jax.tree.leaves(model):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.is_fully_replicated
    assert_same_model(model, expected)


def test_the_host_buffer_becomes_the_array():
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = parameters.Target(jax.ShapeDtypeStruct((64, 1000), np.uint8), where, 64)
    buffer = target.slice(0, 64)
    buffer[...] = 7
    target.write(0, buffer)
    assert target.finish().unsafe_buffer_pointer() == buffer.ctypes.data


def test_chunks_are_written_in_place():
    like = jax.ShapeDtypeStruct((64, 1000), np.uint8)
    chunk = jax.ShapeDtypeStruct((8, 1000), np.uint8)
    first = jax.ShapeDtypeStruct((), np.int32)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    program = parameters._updater(where).lower(like, chunk, first).compile()
    memory = program.memory_analysis()
    assert (memory.alias_size_in_bytes, memory.temp_size_in_bytes) == (64_000, 0)


def test_chunks_keep_the_layout_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(parameters, "_on_cpu", lambda where: False)
    where = Format(Layout((1, 0)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    target = parameters.Target(jax.ShapeDtypeStruct((64, 1000), np.uint8), where, 64)
    expected = np.random.default_rng(0).integers(0, 256, (64, 1000), np.uint8)
    for first in range(0, 64, 16):
        buffer = target.slice(first, 16)
        buffer[...] = expected[first : first + 16]
        target.write(first, buffer)
    array = target.finish()
    assert array.format.layout.major_to_minor == (1, 0)
    np.testing.assert_array_equal(array, expected)


def test_tokenizer_files_and_generation_config_go_along(published, tmp_path):
    origin = through(published, "hf", tmp_path=tmp_path / "a")
    for name in ("tokenizer.json", "chat_template.jinja", "spiece.model", "generation_config.json"):
        (origin / name).write_text(f'"{name}"')
    (origin / "README.md").write_text("not this")
    target = through(origin, "orbax", "original", tmp_path=tmp_path / "b")
    copied = {
        file.name: file.read_text() for file in target.iterdir() if file.suffix != ".safetensors"
    }
    assert copied.pop("config.json")
    assert copied == {name: f'"{name}"' for name in copied}
    assert len(copied) == 4
