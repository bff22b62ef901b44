"""What the expert kernels take: the weights of one layer's experts and the activation between."""

import dataclasses

import jax
import jax.numpy as jnp

from gptoss_jax.kernels.low_rank import LowRank, base_of
from gptoss_jax.mxfp4 import MXFP4

ExpertWeight = MXFP4 | jax.Array | LowRank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experts:
    """One layer's experts.

    Attributes:
      w_gate_up: [E, D, 2F], packed or a float array, perhaps with factors; the gates' columns,
        then the ups'.
      b_gate_up: [E, 2F], in the same order.
      w_down: [E, F, D], packed or a float array, perhaps with factors.
      b_down: [E, D].
      alpha: swiglu's slope (1.702).
      limit: swiglu's clamp (7.0).
    """

    w_gate_up: ExpertWeight
    b_gate_up: jax.Array
    w_down: ExpertWeight
    b_down: jax.Array
    alpha: float = dataclasses.field(metadata={"static": True})
    limit: float = dataclasses.field(metadata={"static": True})

    @property
    def num_experts(self) -> int:
        """E."""
        return self.b_down.shape[0]

    @property
    def packed(self) -> bool:
        """Whether the weights are MXFP4."""
        return isinstance(base_of(self.w_down), MXFP4)


def swiglu(gate_up: jax.Array, alpha: float, limit: float) -> jax.Array:
    """gpt-oss's activation: [..., 2F] -> [..., F], in the input's dtype.

    The gate is clamped above only, the up both ways; the + 1 lets a zero up pass the gate through
    (gpt-oss `model.py`, `swiglu`).
    """
    gate, up = jnp.split(gate_up, 2, axis=-1)
    gate = jnp.minimum(gate, limit)
    up = jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)
