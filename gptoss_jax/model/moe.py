"""The router and its experts."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gptoss_jax import mxfp4, sharding
from gptoss_jax.kernels.dense import dense
from gptoss_jax.kernels.moe import Experts, moe
from gptoss_jax.model.attention import normal
from gptoss_jax.model.config import Config
from gptoss_jax.model.dispatch import dispatch

_encode = jax.jit(mxfp4.encode)  # traced once for all layers


class MoE(nnx.Module):
    """Top-k experts a token.

    The experts' weights are `MXFP4` (packed) or float arrays [E, K, N]; nothing here knows which.
    """

    def __init__(
        self, config: Config, dtype: jnp.dtype, *, packed_experts: bool = True, rngs: nnx.Rngs
    ):
        num_experts, hidden, width = config.num_experts, config.hidden_size, config.expert_width

        def weight(inputs: int, outputs: int) -> nnx.Param:
            w = normal(config, rngs, (num_experts, inputs, outputs), dtype)
            return nnx.Param(_encode(w[...])) if packed_experts else w

        self.w_router_ED = normal(config, rngs, (num_experts, hidden), dtype)
        self.b_router_E = nnx.Param(jnp.zeros((num_experts,), dtype))
        # Columns: the gates' F, then the ups' F (checkpoints interleave them).
        self.w_gate_up_EDF = weight(hidden, 2 * width)
        self.b_gate_up_EF = nnx.Param(jnp.zeros((num_experts, 2 * width), dtype))
        self.w_down_EFD = weight(width, hidden)
        self.b_down_ED = nnx.Param(jnp.zeros((num_experts, hidden), dtype))
        self.config = config

    def route(self, x_RD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(router logits float32 [R, E], chosen ids int32 [R, X], their weights float32 [R, X]).

        The weights are a softmax over the chosen logits.
        """
        logits_RE = dense(x_RD, self.w_router_ED.get_value(), self.b_router_E[...])
        best_RX, chosen_RX = jax.lax.top_k(logits_RE, self.config.experts_per_token)
        return logits_RE, chosen_RX, jax.nn.softmax(best_RX, axis=-1)

    def __call__(
        self, x_BTD: jax.Array, real_BT: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The experts' weighted sum, [B, T, D] in x's dtype, and the router logits [B * T, E].

        Rows that are not real cost no expert and yield zero.
        """
        x_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_RE, chosen_RX, weight_RX = self.route(x_RD)
        split = sharding.current(self.config)
        # Rows are exchanged over axes that split them too; over the others they are everywhere.
        rows = tuple(axis for axis in split.experts if axis in split.batch)
        rest = tuple(axis for axis in split.experts if axis not in split.batch)
        held = self.config.num_experts // sharding.parts(split.experts)
        holder_RX = chosen_RX // held
        is_here = holder_RX % sharding.parts(rest) == sharding.place(rest)
        if real_BT is not None:
            is_here &= real_BT.reshape(-1, 1)
        # Ids among the experts that this device's exchange reaches; the first beyond: none of them.
        reached = holder_RX // sharding.parts(rest) * held + chosen_RX % held
        reached = jnp.where(is_here, reached, held * sharding.parts(rows))
        mixture = functools.partial(moe, experts=self._experts())
        if rows:
            y_RD = dispatch(x_RD, reached, weight_RX, mixture, held=held, axes=rows)
        else:
            y_RD = mixture(x_RD, reached, weight_RX)
        y_RD = sharding.total(y_RD, rest)
        return y_RD.astype(x_BTD.dtype).reshape(x_BTD.shape), logits_RE

    def _experts(self) -> Experts:
        return Experts(
            self.w_gate_up_EDF.get_value(),
            self.b_gate_up_EF[...],
            self.w_down_EFD.get_value(),
            self.b_down_ED[...],
            alpha=self.config.swiglu_alpha,
            limit=self.config.swiglu_limit,
        )
