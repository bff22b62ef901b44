"""Adapters merged into their base's weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peft_cases import CONFIG, IN_PEFT, base, logits, same, trained

from gptoss_jax import convert, mxfp4
from gptoss_jax.checkpoint import load_model, peft, save_model
from gptoss_jax.checkpoint.adapters import apply_adapter
from gptoss_jax.loading import load
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import TARGETS, Adapter
from gptoss_jax.model.config import Config
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss, parameter
from gptoss_jax.mxfp4 import MXFP4


@functools.cache
def nano_config() -> Config:
    return load("nano", dtype="float32")[0].config


def nano_adapter(targets: tuple[str, ...] = ("gate_up", "down")) -> Trained:
    adapter = Adapter(rank=2, alpha=2.0, targets=targets)
    rng = np.random.default_rng(0)
    shapes = lora.trained_shapes(load("nano", dtype="float32")[0], adapter)
    values = {p: rng.normal(0, 0.02, shape).astype(np.float32) for p, shape in shapes.items()}
    return Trained(adapter, values)


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
