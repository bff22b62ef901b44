import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gptoss_jax.checkpoint import load_model, progress, write_synthetic
from gptoss_jax.checkpoint.output import GENERATION_FILE
from gptoss_jax.checkpoint.synthetic import resize
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import PRESETS, read_config


def test_bytes_depend_on_the_seed_alone(config, published, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "WORKERS", 7)
    write_synthetic(config, tmp_path / "same")
    write_synthetic(config, tmp_path / "other", seed=1)
    same, other, first = (
        (directory / "model.safetensors").read_bytes()
        for directory in (tmp_path / "same", tmp_path / "other", published)
    )
    assert same == first
    assert other != first


def test_config_and_generation_config(config, published):
    assert read_config(published) == config
    assert json.loads((published / GENERATION_FILE).read_text()) == {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": 199999,
    }


def test_layers(config):
    assert resize("120b", 3) == dataclasses.replace(PRESETS["120b"], num_layers=3, layer_types=())
    assert resize(config, None) is config
    with pytest.raises(UserError, match="unknown size '7b'"):
        resize("7b", None)
    with pytest.raises(UserError, match="num_layers"):
        resize("20b", 0)


def test_weights_are_of_a_sane_scale(published):
    raw = load_file(published / "model.safetensors")
    deviation = {name: np.std(x.astype(np.float32)) for name, x in raw.items()}
    assert deviation["model.layers.0.self_attn.o_proj.weight"] == pytest.approx(0.02, rel=0.05)
    norm = raw["model.norm.weight"].astype(np.float32)
    assert abs(norm.mean() - 1) < 0.05
    assert set(np.unique(raw["model.layers.0.mlp.experts.down_proj_scales"])) == {119, 120}
    rows = raw["model.embed_tokens.weight"]
    assert len(np.unique(rows.view(np.uint16), axis=0)) == len(rows)


def test_logits_are_finite_and_neither_flat_nor_peaked(tmp_path):
    """At the real width, where the scale of sums is that of the published sizes."""
    config = dataclasses.replace(
        PRESETS["20b"],
        num_layers=3,
        layer_types=(),
        num_experts=3,
        experts_per_token=2,
        vocab_size=1024,
        num_heads=8,
        num_kv_heads=2,
    )
    write_synthetic(config, tmp_path / "wide")
    tokens_BT = jnp.arange(24, dtype=jnp.int32)[None] * 37
    logits = np.asarray(load_model(tmp_path / "wide")(tokens_BT))[0]
    assert np.isfinite(logits).all()
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1)
    assert 1 < entropy.min() < entropy.max() < np.log(1024) - 0.5
    assert len(set(logits.argmax(-1).tolist())) > 12
