import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.checkpoint import load_model, save_model
from gptoss_jax.model.config import to_hf_json

torch = pytest.importorskip("torch", reason="needs the oracle extra")
transformers = pytest.importorskip("transformers", reason="needs the oracle extra")


@pytest.fixture(params=["bfloat16", "float32"])
def theirs(request, config, tmp_path):
    """A random model saved by transformers, and where."""
    torch.manual_seed(0)
    raw = to_hf_json(config, packed_experts=False)
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**raw))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    model = model.to(getattr(torch, request.param))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="300KB")
    return model, tmp_path / "theirs"


def state(model):
    return {name: x.float().numpy() for name, x in model.state_dict().items()}


def assert_same_state(a, b):
    a, b = state(a), state(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_what_transformers_writes_loads_and_goes_back_unchanged(theirs, tmp_path):
    model, directory = theirs
    assert len(list(directory.glob("*.safetensors"))) > 2
    ours = load_model(directory)
    w_gate_up = np.asarray(ours.layers[1].moe.w_gate_up_EDF.get_value()).astype(np.float32)
    expected = state(model)["model.layers.1.mlp.experts.gate_up_proj"]
    np.testing.assert_array_equal(w_gate_up[..., : w_gate_up.shape[-1] // 2], expected[..., 0::2])
    save_model(ours, "hf-bf16", tmp_path / "ours")
    again = transformers.GptOssForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == model.dtype
    assert_same_state(again, model)


def test_transformers_dequantises_our_packed_directory_to_our_dense_one(published, tmp_path):
    model = load_model(published)
    save_model(model, "hf", tmp_path / "hf")
    save_model(model, "hf-bf16", tmp_path / "dense")
    quantisation = transformers.Mxfp4Config(dequantize=True)
    packed = transformers.GptOssForCausalLM.from_pretrained(
        tmp_path / "hf", quantization_config=quantisation, dtype=torch.bfloat16
    )
    dense = transformers.GptOssForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    assert_same_state(packed, dense)


@pytest.mark.parametrize("theirs", ["float32"], indirect=True)
def test_same_logits_as_transformers(theirs):
    model, directory = theirs
    tokens = np.arange(20)[None] * 7
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        ours = load_model(directory, dtype=jnp.float32)(jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(np.asarray(ours), expected, atol=1e-4)
