"""Small random checkpoints in the published names, made by NumPy alone, and our model of them.

Nothing here uses `gptoss_jax.checkpoint` or our own encoder: expert weights are put on the MXFP4
grid by a second implementation, and the mapping of names to parameters is written out once more.
"""

import hashlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from gptoss_jax import mxfp4
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss, abstract

Weights = dict[str, np.ndarray]

# Every pair of widths differs, so that no transposed or mixed-up axis can pass; prompts of 129
# tokens pass each window, and each original context.
SHAPES = {
    "narrow": Config(
        num_layers=4,
        num_experts=8,
        experts_per_token=3,
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
    ),
    "one_kv_head": Config(
        num_layers=3,
        num_experts=5,
        experts_per_token=2,
        hidden_size=64,
        expert_width=160,
        num_heads=8,
        num_kv_heads=1,
        head_dim=12,
        vocab_size=199,
        sliding_window=32,
        layer_types=("full_attention", "sliding_attention", "sliding_attention"),
        rope_theta=10_000.0,
        rope_original_context=128,
        rope_factor=40.0,
        rope_truncate=True,
        max_context=5120,
        swiglu_limit=5.0,
    ),
    "no_groups": Config(
        num_layers=2,
        num_experts=16,
        experts_per_token=4,
        hidden_size=160,
        expert_width=96,
        num_heads=3,
        num_kv_heads=3,
        head_dim=32,
        vocab_size=257,
        sliding_window=128,
        rope_original_context=128,
        rope_factor=32.0,
        max_context=4096,
    ),
    # Cheap in attention, for 4,500 tokens.
    "long": Config(
        num_layers=2,
        num_experts=6,
        experts_per_token=2,
        hidden_size=64,
        expert_width=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
        vocab_size=150,
        sliding_window=32,
        rope_original_context=64,
        rope_factor=128.0,
        max_context=8192,
    ),
}
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Published (blocks [..., K/32, 16], scales [..., K/32]) near x [..., K]."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    exponent = np.floor(np.log2(np.abs(groups).max(-1))).astype(int) - 2
    scaled = np.abs(groups) / np.exp2(exponent)[..., None]
    codes = np.abs(scaled[..., None] - E2M1).argmin(-1) | np.where(groups < 0, 8, 0)
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8), (exponent + 127).astype(
        np.uint8
    )


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values [..., K] of published blocks and scales, float64."""
    table = np.concatenate([E2M1, -E2M1])
    pairs = np.stack([table[blocks & 15], table[blocks >> 4]], axis=-1)
    values = pairs.reshape(*blocks.shape[:-1], 32) * np.exp2(scales - 127.0)[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


def make_weights(config: Config, seed: int) -> Weights:
    """A checkpoint in which everything matters: float32 arrays whose values bfloat16 holds.

    Scores, sinks and router logits spread over a few units; gates and ups pass the clamp.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> np.ndarray:
        x = rng.normal(mean, std, shape)
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)

    def scale() -> np.ndarray:
        return rng.uniform(0.5, 1.5, config.hidden_size).astype(ml_dtypes.bfloat16).astype("f4")

    hidden, width, experts = config.hidden_size, config.expert_width, config.num_experts
    attention, kv, per_input = config.attention_width, config.kv_width, hidden**-0.5
    weights = {
        "model.embed_tokens.weight": normal(config.vocab_size, hidden, std=1.0),
        "model.norm.weight": scale(),
        "lm_head.weight": normal(config.vocab_size, hidden, std=2 * per_input),
    }
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.input_layernorm.weight": scale(),
            f"{at}.post_attention_layernorm.weight": scale(),
            f"{at}.self_attn.q_proj.weight": normal(attention, hidden, std=1.2 * per_input),
            f"{at}.self_attn.q_proj.bias": normal(attention, std=0.3),
            f"{at}.self_attn.k_proj.weight": normal(kv, hidden, std=1.2 * per_input),
            f"{at}.self_attn.k_proj.bias": normal(kv, std=0.3),
            f"{at}.self_attn.v_proj.weight": normal(kv, hidden, std=2 * per_input),
            f"{at}.self_attn.v_proj.bias": normal(kv, std=0.3),
            f"{at}.self_attn.o_proj.weight": normal(hidden, attention, std=attention**-0.5),
            f"{at}.self_attn.o_proj.bias": normal(hidden, std=0.3),
            f"{at}.self_attn.sinks": normal(config.num_heads, std=1.5, mean=1.0),
            f"{at}.mlp.router.weight": normal(experts, hidden, std=1.5 * per_input),
            f"{at}.mlp.router.bias": normal(experts, std=0.5),
            f"{at}.mlp.experts.gate_up_proj_bias": normal(experts, 2 * width, std=1.0),
            f"{at}.mlp.experts.down_proj_bias": normal(experts, hidden, std=0.3),
        }
        gate_up = rng.normal(0, 4 * per_input, (experts, 2 * width, hidden))
        down = rng.normal(0, 0.1 * width**-0.5, (experts, hidden, width))
        for name, x in {"gate_up_proj": gate_up, "down_proj": down}.items():
            blocks, scales = quantise(x)
            weights[f"{at}.mlp.experts.{name}_blocks"] = blocks
            weights[f"{at}.mlp.experts.{name}_scales"] = scales
    return weights


def checksum(weights: Weights) -> str:
    """SHA-256 of all arrays in order."""
    digest = hashlib.sha256()
    for name, x in weights.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def apart(interleaved: np.ndarray, axis: int) -> np.ndarray:
    """Gates (even) first, then ups (odd), along an axis that interleaves them."""
    even, odd = (
        np.take(interleaved, np.arange(i, interleaved.shape[axis], 2), axis) for i in (0, 1)
    )
    return np.concatenate([even, odd], axis)


def make_model(
    config: Config,
    weights: Weights,
    *,
    dtype: str = "float32",
    param_dtype: str = "bfloat16",
    packed_experts: bool = True,
) -> GptOss:
    """Our network with these weights."""
    model = abstract(
        config,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(param_dtype),
        packed_experts=packed_experts,
    )

    def put(param, x: np.ndarray) -> None:
        assert x.shape == param.get_value().shape
        param.set_value(jnp.asarray(x, jnp.dtype(param_dtype)))

    def put_experts(param, at: str, gate_up: bool) -> None:
        blocks, scales = weights[f"{at}_blocks"], weights[f"{at}_scales"]
        if gate_up:
            blocks, scales = apart(blocks, 1), apart(scales, 1)
        if not packed_experts:
            put(param, np.swapaxes(dequantise(blocks, scales), -1, -2))
            return
        packed = mxfp4.from_published(jnp.asarray(blocks), jnp.asarray(scales))
        assert packed.shape == param.get_value().shape
        param.set_value(packed)

    put(model.embedding_VD, weights["model.embed_tokens.weight"])
    put(model.final_norm.scale_D, weights["model.norm.weight"])
    put(model.unembedding_VD, weights["lm_head.weight"])
    for index, layer in enumerate(model.layers):
        at = f"model.layers.{index}"
        put(layer.attention_norm.scale_D, weights[f"{at}.input_layernorm.weight"])
        put(layer.moe_norm.scale_D, weights[f"{at}.post_attention_layernorm.weight"])
        attention, moe = layer.attention, layer.moe
        put(attention.w_q_AD, weights[f"{at}.self_attn.q_proj.weight"])
        put(attention.b_q_A, weights[f"{at}.self_attn.q_proj.bias"])
        put(attention.w_k_CD, weights[f"{at}.self_attn.k_proj.weight"])
        put(attention.b_k_C, weights[f"{at}.self_attn.k_proj.bias"])
        put(attention.w_v_CD, weights[f"{at}.self_attn.v_proj.weight"])
        put(attention.b_v_C, weights[f"{at}.self_attn.v_proj.bias"])
        put(attention.w_o_DA, weights[f"{at}.self_attn.o_proj.weight"])
        put(attention.b_o_D, weights[f"{at}.self_attn.o_proj.bias"])
        put(attention.sinks_N, weights[f"{at}.self_attn.sinks"])
        put(moe.w_router_ED, weights[f"{at}.mlp.router.weight"])
        put(moe.b_router_E, weights[f"{at}.mlp.router.bias"])
        gate_up_bias = weights[f"{at}.mlp.experts.gate_up_proj_bias"]
        put(moe.b_gate_up_EF, apart(gate_up_bias, 1))
        put(moe.b_down_ED, weights[f"{at}.mlp.experts.down_proj_bias"])
        put_experts(moe.w_gate_up_EDF, f"{at}.mlp.experts.gate_up_proj", gate_up=True)
        put_experts(moe.w_down_EFD, f"{at}.mlp.experts.down_proj", gate_up=False)
    return model


def prompt(config: Config, length: int, seed: int = 0) -> np.ndarray:
    """Random tokens, int32 [1, length]."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (1, length), np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """KL(expected || actual) in nats of each position's logits [..., V]."""
    expected, actual = log_softmax(expected), log_softmax(actual)
    return (np.exp(expected) * (expected - actual)).sum(-1)


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest difference of logits over their range."""
    return float(np.abs(expected - actual).max() / (expected.max() - expected.min()))
