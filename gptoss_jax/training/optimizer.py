"""The optimizer: clipping, AdamW without decay where it does no good, and the schedules."""

import math
from collections.abc import Iterable

import jax.numpy as jnp
import optax

from gptoss_jax.training.settings import Settings

# How the names of parameters begin that are no matrices: norms' scales, biases, sinks.
_UNDECAYED = ("scale_", "b_", "sinks_")


def optimizer(config: Settings, paths: Iterable[str]) -> optax.GradientTransformation:
    """Clips by the global norm, then AdamW at the scheduled rate.

    Its `update` needs standard dtype promotion (optax mixes Python floats and counters).

    Args:
      config: `optimizer` and `steps` are read.
      paths: the parameters' dotted paths, the keys of the dict it updates.
    """
    chosen = config.optimizer
    adamw = optax.adamw(
        schedule(config),
        b1=chosen.b1,
        b2=chosen.b2,
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
        mask={path: decays(path) for path in paths},
    )
    return optax.chain(optax.clip_by_global_norm(chosen.clip), adamw)


def decays(path: str) -> bool:
    """Whether weight decay pulls at the parameter of this dotted path."""
    return not path.rpartition(".")[2].startswith(_UNDECAYED)


def schedule(config: Settings) -> optax.Schedule:
    """The learning rate at a step (counted from 0), float32.

    It rises over `warmup_steps`, so that step `warmup_steps - 1` is the first at full rate, and
    ends at `final_fraction` of it in the last step: by half a cosine, or ("wsd") level until a
    straight line down over `decay_steps`.
    """
    chosen = config.optimizer
    last = config.steps - 1
    begins = chosen.warmup_steps if chosen.schedule == "cosine" else last - chosen.decay_steps

    def rate(count):
        step = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum((step + 1) / max(chosen.warmup_steps, 1), 1.0)
        done = jnp.clip((step - begins) / max(last - begins, 1), 0.0, 1.0)
        left = (1 + jnp.cos(math.pi * done)) / 2 if chosen.schedule == "cosine" else 1 - done
        final = chosen.final_fraction
        return chosen.lr * warm * (final + (1 - final) * left)

    return rate
