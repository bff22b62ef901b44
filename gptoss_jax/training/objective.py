"""What training minimises: a score of the learned tokens, and the routers' load balance."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptoss_jax import sharding
from gptoss_jax.kernels.low_rank import for_block
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.training.packing import Batch
from gptoss_jax.training.qat import as_shipped

# Logits of one block of positions, in float32 elements: 64 MiB. All of 2,048 positions of the
# published vocabulary would take 1.6 GB.
_BLOCK = 2**24

Metrics = dict[str, jax.Array]
# Of (losses_BT, correct_BT, batch): sums over the rows, "loss_sum" to be minimised, "weight_sum"
# what it is divided by, "correct_sum" the part of that which is as wanted; further ones are shown.
Score = Callable[[jax.Array, jax.Array, Batch], Metrics]


def learned_tokens(losses_BT: jax.Array, correct_BT: jax.Array, batch: Batch) -> Metrics:
    """The cross-entropy of the weighted targets; correct are those with the highest logit."""
    weights_BT = batch.weights_BT
    return {
        "loss_sum": (losses_BT * weights_BT).sum(),
        "correct_sum": (correct_BT * weights_BT).sum(),
        "weight_sum": weights_BT.sum(),
    }


def loss(
    model: GptOss,
    batch: Batch,
    *,
    balance_coefficient: float,
    qat: bool,
    remat: bool,
    score: Score = learned_tokens,
) -> tuple[jax.Array, Metrics]:
    """The summed loss of a batch, to be divided by the weights of all batches of a step.

    Inside a shard_map each device has its rows of the batch, and all get the same results.

    Args:
      model: with float experts, or packed ones that nothing trains.
      batch: packed rows.
      balance_coefficient: of the load-balance term, which counts once a unit of weight.
      qat: parameters are used as `qat.pack` holds them, gradients pass straight through.
      remat: see `GptOss.hidden`.
      score: of the tokens' losses.

    Returns:
      (float32 scalar, sums and means over the batch: the score's, "balance" mean over layers,
      "expert_use_LE" the share of assignments each expert of a layer took).
    """
    model = as_shipped(model) if qat else model
    real_BT = batch.segments_BT > 0
    x_BTD, routers = model.hidden(batch.tokens_BT, batch.positions_BT, real_BT, remat=remat)
    sums = score(*_cross_entropy(model, x_BTD, batch.targets_BT), batch)
    active = model.config.experts_per_token
    axes = sharding.current(model.config).batch
    real_R = real_BT.reshape(-1)
    uses, terms = zip(*(balance(x, real_R, active, axes) for x in routers), strict=True)
    sums = {name: sharding.total(x, axes) for name, x in sums.items()}
    term = jnp.stack(terms).mean()
    balanced = balance_coefficient * term * sums["weight_sum"]
    return sums["loss_sum"] + balanced, sums | {
        "balance": term,
        "expert_use_LE": jnp.stack(uses),
    }


def log_probabilities(model: GptOss, batch: Batch) -> jax.Array:
    """Of the targets, float32 [B, T]; 0 for those that are not learned."""
    x_BTD, _ = model.hidden(batch.tokens_BT, batch.positions_BT, batch.segments_BT > 0)
    losses_BT, _ = _cross_entropy(model, x_BTD, batch.targets_BT)
    return -losses_BT * batch.weights_BT


def balance(
    logits_RE: jax.Array, real_R: jax.Array, active: int, axes: sharding.Axes = ()
) -> tuple[jax.Array, jax.Array]:
    """(share of assignments of each expert [E], the load-balance term) of one router.

    Of the rows of all devices along the mesh axes `axes`.

    E times the sum over experts of share of assignments times mean probability (Switch
    Transformer, arXiv 2101.03961, eq. 4, for top-k assignments): 1 where both are uniform.
    """
    rows = jnp.maximum(sharding.total(real_R.sum(), axes), 1).astype(jnp.float32)
    num_experts = logits_RE.shape[-1]
    _, chosen_RX = jax.lax.top_k(logits_RE, active)
    one_hot_RE = jax.nn.one_hot(chosen_RX, num_experts, dtype=jnp.float32).sum(1)
    real_R1 = real_R[:, None]
    chosen_E = sharding.total(jnp.where(real_R1, one_hot_RE, 0).sum(0), axes)
    share_E = chosen_E / (rows * active)
    summed_E = jnp.where(real_R1, jax.nn.softmax(logits_RE, axis=-1), 0).sum(0)
    probability_E = sharding.total(summed_E, axes) / rows
    return share_E, num_experts * (share_E * probability_E).sum()


def _cross_entropy(model, x_BTD, targets_BT):
    """(cross-entropy, 1.0 where the target had the highest logit), both [B, T], block by block."""
    rows = targets_BT.size
    block = max(1, min(rows, _BLOCK // model.config.vocab_size))

    def blocks(x):
        flat = x.reshape(rows, *x.shape[2:])
        flat = jnp.pad(flat, ((0, -rows % block), *[(0, 0)] * (flat.ndim - 1)))
        return flat.reshape(-1, block, *flat.shape[1:])

    table_VD = model.whole_unembedding()

    @jax.checkpoint
    def one(arguments):
        number, x_RD, target_R = arguments
        logits_RV = model.unembed(x_RD[None], for_block(table_VD, number))[0]
        correct_R = (logits_RV.argmax(-1) == target_R).astype(jnp.float32)
        chosen_R = jnp.take_along_axis(logits_RV, target_R[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits_RV, axis=-1) - chosen_R, correct_R

    x_nRD, targets_nR = blocks(x_BTD), blocks(targets_BT)
    losses, correct = jax.lax.map(one, (jnp.arange(len(x_nRD)), x_nRD, targets_nR))

    def whole(x):
        return x.reshape(-1)[:rows].reshape(targets_BT.shape)

    return whole(losses), whole(correct)
