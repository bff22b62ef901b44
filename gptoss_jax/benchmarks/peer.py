"""The same two layers in HF transformers, in float32 on the CPU: the mark to compare with."""

import importlib.util

from gptoss_jax.benchmarks.layers import LAYERS, seconds, small
from gptoss_jax.model.config import Config, to_hf_json


def installed() -> bool:
    """Whether torch and transformers are there to compare with."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def measure(preset: Config, prompt: int, repeats: int = 3) -> dict[str, float]:
    """As `layers.measure`, for transformers' GptOss with dequantised float32 experts."""
    import torch
    import transformers

    raw = to_hf_json(small(preset), packed_experts=False)
    # An id of the published vocabulary, which this one is too small for.
    raw |= {"eos_token_id": None, "dtype": "float32"}
    config = transformers.GptOssConfig(**raw)
    with torch.no_grad():
        model = transformers.GptOssModel(config).eval()
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
        tokens = torch.randint(0, raw["vocab_size"], (1, prompt))

        def prefill():
            return model(tokens, use_cache=True).past_key_values

        prefill_s = seconds(prefill, repeats)
        cache = prefill()
        decode_s = seconds(lambda: model(tokens[:, :1], past_key_values=cache), 8 * repeats)
    return {
        "decode_ms": decode_s * 1e3 / LAYERS,
        "prefill_ms": prefill_s * 1e3 / LAYERS / prompt,
    }
