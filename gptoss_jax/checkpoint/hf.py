"""The layouts Hugging Face publishes and transformers writes: MXFP4 and dense experts."""

from collections.abc import Iterator

from gptoss_jax.checkpoint.rules import Rule, packed, whole
from gptoss_jax.checkpoint.safetensors_file import Tensor
from gptoss_jax.model.config import Config


def rules(config: Config, dtype: str, *, packed_experts: bool) -> list[Rule]:
    """Every tensor of the layout, in the published index's order.

    Args:
      config: the network.
      dtype: the safetensors dtype of everything that is not packed.
      packed_experts: MXFP4 experts, else dense ones as [E, in, out].
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    # The published order of layers is that of their names: 0, 1, 10, 11, ... 2, 20, ...
    layers = sorted(range(config.num_layers), key=str)
    return [
        *(rule for layer in layers for rule in _layer(config, dtype, layer, packed_experts)),
        whole(Tensor("model.embed_tokens.weight", vocabulary, dtype), "embedding_VD"),
        whole(Tensor("model.norm.weight", (config.hidden_size,), dtype), "final_norm.scale_D"),
        whole(Tensor("lm_head.weight", vocabulary, dtype), "unembedding_VD"),
    ]


def _layer(config: Config, dtype: str, layer: int, packed_experts: bool) -> Iterator[Rule]:
    def dense(name: str, path: str, *shape: int, interleaved: bool = False) -> Rule:
        tensor = Tensor(f"model.layers.{layer}.{name}", shape, dtype)
        return whole(tensor, f"layers.{layer}.{path}", interleaved=interleaved)

    def expert(name: str, path: str, *shape: int, interleaved: bool = False) -> Rule:
        name = f"mlp.experts.{name}"
        if not packed_experts:
            return dense(name, path, *shape, interleaved=interleaved)
        full = f"model.layers.{layer}.{name}"
        path = f"layers.{layer}.{path}"
        return packed(f"{full}_blocks", f"{full}_scales", path, shape, interleaved)

    d, f, e = config.hidden_size, config.expert_width, config.num_experts
    a, c = config.attention_width, config.kv_width
    yield dense("input_layernorm.weight", "attention_norm.scale_D", d)
    yield dense("self_attn.o_proj.bias", "attention.b_o_D", d)
    yield dense("self_attn.o_proj.weight", "attention.w_o_DA", d, a)
    yield dense("self_attn.q_proj.bias", "attention.b_q_A", a)
    yield dense("self_attn.k_proj.bias", "attention.b_k_C", c)
    yield dense("self_attn.v_proj.bias", "attention.b_v_C", c)
    yield dense("self_attn.q_proj.weight", "attention.w_q_AD", a, d)
    yield dense("self_attn.k_proj.weight", "attention.w_k_CD", c, d)
    yield dense("self_attn.v_proj.weight", "attention.w_v_CD", c, d)
    yield dense("self_attn.sinks", "attention.sinks_N", config.num_heads)
    yield dense("mlp.router.bias", "moe.b_router_E", e)
    yield dense("mlp.router.weight", "moe.w_router_ED", e, d)
    gate_up_bias = "mlp.experts.gate_up_proj_bias"
    yield dense(gate_up_bias, "moe.b_gate_up_EF", e, 2 * f, interleaved=True)
    yield expert("gate_up_proj", "moe.w_gate_up_EDF", e, d, 2 * f, interleaved=True)
    yield dense("mlp.experts.down_proj_bias", "moe.b_down_ED", e, d)
    yield expert("down_proj", "moe.w_down_EFD", e, f, d)
    yield dense("post_attention_layernorm.weight", "moe_norm.scale_D", d)
