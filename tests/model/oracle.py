"""transformers' GptOss with the weights of `sample`: the implementation nobody here wrote."""

import dataclasses

import numpy as np
import sample
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss_jax.model.config import Config

# These models are too small for more, and the test workers share the cores.
torch.set_num_threads(1)


def hf_config(config: Config) -> GptOssConfig:
    """The same network in transformers' terms."""
    return GptOssConfig(
        num_hidden_layers=config.num_layers,
        num_local_experts=config.num_experts,
        num_experts_per_tok=config.experts_per_token,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.expert_width,
        head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        sliding_window=config.sliding_window,
        layer_types=list(config.layer_types),
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.rms_norm_eps,
        swiglu_alpha=config.swiglu_alpha,
        swiglu_limit=config.swiglu_limit,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": config.rope_theta,
            "factor": config.rope_factor,
            "original_max_position_embeddings": config.rope_original_context,
            "beta_fast": config.rope_beta_fast,
            "beta_slow": config.rope_beta_slow,
            "truncate": config.rope_truncate,
        },
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def hf_state(weights: sample.Weights) -> dict[str, torch.Tensor]:
    """Its state dict: experts dequantised, transposed to [E, in, out], still interleaved."""
    state = {}
    for name, x in weights.items():
        if name.endswith("_blocks"):
            name = name.removesuffix("_blocks")
            x = np.swapaxes(sample.dequantise(x, weights[f"{name}_scales"]), -1, -2)
        elif name.endswith("_scales"):
            continue
        state[name] = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    return state


def hf_model(
    config: Config, weights: sample.Weights, dtype: str, experts: str = "eager"
) -> GptOssForCausalLM:
    """The model in float64, float32 or bfloat16, with eager attention."""
    model = GptOssForCausalLM._from_config(
        hf_config(config), attn_implementation="eager", experts_implementation=experts
    )
    model.load_state_dict(hf_state(weights), strict=True)
    rotary = model.model.rotary_emb
    frequencies = rotary.inv_freq.clone()
    model = model.to(getattr(torch, dtype)).eval()
    # `to` rounds this buffer too, which from_pretrained(dtype=...) does not.
    rotary.inv_freq = frequencies
    return model


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run says, in float64."""

    logits: np.ndarray  # [B, T, V]
    router: np.ndarray  # [L, R, E], rows of all prompts one after another


def run(model: GptOssForCausalLM, tokens_BT: np.ndarray) -> Run:
    """Logits and router logits of prompts of one length."""
    tokens = torch.from_numpy(tokens_BT.astype(np.int64))
    with torch.no_grad():
        out = model(tokens, output_router_logits=True, use_cache=False)
    router = torch.stack([x.double() for x in out.router_logits])
    return Run(out.logits.double().numpy(), router.numpy())


def greedy(model: GptOssForCausalLM, tokens_1T: np.ndarray, count: int) -> np.ndarray:
    """The `count` tokens that follow a prompt, each the likeliest."""
    tokens = torch.from_numpy(tokens_1T.astype(np.int64))
    with torch.no_grad():
        out = model.generate(
            tokens, max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True
        )
    return out[0, tokens.shape[1] :].numpy()
