"""OpenAI's own layout, the hub repositories' `original/` folder: q, k and v are fused."""

from collections.abc import Iterator

from gptoss_jax.checkpoint.rules import Part, Rule, packed, whole
from gptoss_jax.checkpoint.safetensors_file import Tensor
from gptoss_jax.model.config import Config


def rules(config: Config, dtype: str) -> list[Rule]:
    """Every tensor of the layout; `dtype` is that of everything that is not packed."""
    vocabulary = (config.vocab_size, config.hidden_size)
    return [
        whole(Tensor("embedding.weight", vocabulary, dtype), "embedding_VD"),
        *(rule for layer in range(config.num_layers) for rule in _layer(config, dtype, layer)),
        whole(Tensor("norm.scale", (config.hidden_size,), dtype), "final_norm.scale_D"),
        whole(Tensor("unembedding.weight", vocabulary, dtype), "unembedding_VD"),
    ]


def _layer(config: Config, dtype: str, layer: int) -> Iterator[Rule]:
    d, f, e = config.hidden_size, config.expert_width, config.num_experts
    a, c = config.attention_width, config.kv_width

    def tensor(name: str, *shape: int) -> Tensor:
        return Tensor(f"block.{layer}.{name}", shape, dtype)

    def dense(name: str, path: str, *shape: int, interleaved: bool = False) -> Rule:
        return whole(tensor(name, *shape), f"layers.{layer}.{path}", interleaved=interleaved)

    def qkv(q: str, k: str, v: str) -> tuple[Part, ...]:
        at = f"layers.{layer}.attention"
        return Part(f"{at}.{q}", 0, a), Part(f"{at}.{k}", a, c), Part(f"{at}.{v}", a + c, c)

    def expert(name: str, path: str, *shape: int, interleaved: bool = False) -> Rule:
        full = f"block.{layer}.{name}"
        path = f"layers.{layer}.{path}"
        return packed(f"{full}.blocks", f"{full}.scales", path, shape, interleaved)

    yield dense("attn.norm.scale", "attention_norm.scale_D", d)
    yield Rule((tensor("attn.qkv.weight", a + 2 * c, d),), qkv("w_q_AD", "w_k_CD", "w_v_CD"))
    yield Rule((tensor("attn.qkv.bias", a + 2 * c),), qkv("b_q_A", "b_k_C", "b_v_C"))
    yield dense("attn.sinks", "attention.sinks_N", config.num_heads)
    yield dense("attn.out.weight", "attention.w_o_DA", d, a)
    yield dense("attn.out.bias", "attention.b_o_D", d)
    yield dense("mlp.norm.scale", "moe_norm.scale_D", d)
    yield dense("mlp.gate.weight", "moe.w_router_ED", e, d)
    yield dense("mlp.gate.bias", "moe.b_router_E", e)
    yield expert("mlp.mlp1_weight", "moe.w_gate_up_EDF", e, d, 2 * f, interleaved=True)
    yield dense("mlp.mlp1_bias", "moe.b_gate_up_EF", e, 2 * f, interleaved=True)
    yield expert("mlp.mlp2_weight", "moe.w_down_EFD", e, f, d)
    yield dense("mlp.mlp2_bias", "moe.b_down_ED", e, d)
