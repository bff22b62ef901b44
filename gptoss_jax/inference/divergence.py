"""How far two models' next-token distributions are apart on the same text."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from gptoss_jax import sharding
from gptoss_jax.inference.completion import render_chat
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import Tokenizer

# Ordinary questions, none of them anyone's data.
PROMPTS = (
    "What is 347 + 586?",
    "Reverse the word planet",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "Name three uses of copper and say why it suits each.",
    "Translate 'good morning' into French.",
)


def log_probabilities(
    model: GptOss, tokenizer: Tokenizer, prompts: Sequence[str] = PROMPTS
) -> list[np.ndarray]:
    """float32 [T, V] of each prompt, rendered as a conversation that the model is to answer.

    The model is on one device, or over a mesh.
    """

    def of(model: GptOss, tokens_BT: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model(tokens_BT)[0], axis=-1)

    if (mesh := sharding.mesh_of(model.embedding_VD[...])) is not None:
        specs = sharding.parameter_specs(model, sharding.split_of(model.config, dict(mesh.shape)))
        of = jax.shard_map(of, mesh=mesh, in_specs=(specs, P()), out_specs=P(), check_vma=False)
    compiled = jax.jit(of)
    rendered = [render_chat(tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    found = []
    for ids in rendered:
        # All of one length, so that one program does; no token sees those behind it.
        tokens_BT = np.zeros((1, max(map(len, rendered))), np.int32)
        tokens_BT[0, : len(ids)] = ids
        found.append(np.asarray(compiled(model, tokens_BT))[: len(ids)])
    return found


def divergence(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """The mean over tokens of KL(first || second), in nats."""
    pairs = zip(first, second, strict=True)
    each = [(np.exp(p) * (p - q)).sum(-1, dtype=np.float64) for p, q in pairs]
    return float(np.concatenate(each).mean())
