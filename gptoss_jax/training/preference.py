"""Direct preference optimisation (https://arxiv.org/abs/2305.18290): the score of pairs."""

import jax
import jax.numpy as jnp

from gptoss_jax.training.objective import Metrics
from gptoss_jax.training.packing import Batch


def pairs(losses_BT: jax.Array, correct_BT: jax.Array, batch: Batch, *, beta: float) -> Metrics:
    """The loss -log sigmoid(beta * margin) of each pair in packed rows.

    A conversation's gain is how much likelier its learned tokens have become, in nats, than they
    are to the reference model; the margin is the chosen one's gain less the rejected one's.

    Args:
      losses_BT: float32, the cross-entropy of each target.
      correct_BT: of no use here.
      batch: of pairs with the reference's log-probabilities.
      beta: what the margin is multiplied by.

    Returns:
      An `objective.Score`'s sums, of weight 1 a pair; "correct_sum" counts margins above 0,
      "margin_sum" and "chosen_gain_sum" are in nats.
    """
    del correct_BT
    gain_BT = -losses_BT * batch.weights_BT - batch.reference_BT
    chosen_BT = batch.segments_BT % 2 == 1
    # Padding, segment 0, falls to a pair of its own, which is left out; any other has two
    # segments of at least one place each.
    pair_BT = (batch.segments_BT + 1) // 2
    most = gain_BT.shape[1] // 2 + 1

    def of_pairs(x_BT: jax.Array) -> jax.Array:
        summed = jax.vmap(lambda x_T, pair_T: jax.ops.segment_sum(x_T, pair_T, most))
        return summed(x_BT, pair_BT)[:, 1:]

    real_BP = of_pairs(jnp.ones_like(gain_BT)) > 0
    margin_BP = of_pairs(jnp.where(chosen_BT, gain_BT, -gain_BT))
    return {
        "loss_sum": jnp.where(real_BP, jax.nn.softplus(-beta * margin_BP), 0.0).sum(),
        "correct_sum": (margin_BP > 0).sum().astype(jnp.float32),
        "weight_sum": real_BP.sum().astype(jnp.float32),
        "margin_sum": margin_BP.sum(),
        "chosen_gain_sum": of_pairs(jnp.where(chosen_BT, gain_BT, 0.0)).sum(),
    }
