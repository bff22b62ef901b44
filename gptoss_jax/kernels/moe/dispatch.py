"""Which form of the mixture of experts runs where."""

import jax
from jax import lax

from gptoss_jax.kernels.moe import grouped, xla
from gptoss_jax.kernels.moe.experts import Experts


def moe(x_RD: jax.Array, chosen_RX: jax.Array, weight_RX: jax.Array, experts: Experts) -> jax.Array:
    """As `reference.moe`."""
    operands = (x_RD, chosen_RX, weight_RX, experts)
    if not grouped.takes(x_RD, experts):
        return xla.moe(*operands)
    return lax.platform_dependent(*operands, cuda=grouped.moe, default=xla.moe)
