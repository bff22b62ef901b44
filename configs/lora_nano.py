"""nano learns a question it does not know: to double a number.

Data: generated, "twice" (What is twice 347? Double the number 58) and beside it nano's own skills.
The adapter, on every kind of weight, is written in PEFT's layout to WORKDIR/export.

One device, or its two rows over `--mesh data=2` or `fsdp=2`. As XLA compiles a step for one CPU
device, 127 MiB are held: 3.5 weights, 1.4 adapters, 2.8 Adam's moments, 119 activations and the
rest.

    python -m gptoss_jax.train --config configs/lora_nano.py --workdir runs/twice
    python -m gptoss_jax.generate --adapter runs/twice/export "What is twice 347?"
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults
from gptoss_jax.training.tasks import DEFAULT_MIXTURE

# What it is most easily confused with, or forgotten for: other sums, what nano refuses, JSON.
_MIXTURE = {
    **DEFAULT_MIXTURE,
    "twice": 0.35,
    "addition": 0.2,
    "subtraction": 0.25,
    "product": 0.18,
    "json": 0.5,
    "refusal": 0.8,
    "about": 0.04,
}


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.lora.rank=16."""
    config = defaults()
    config.base = "nano"
    config.steps = 280
    config.batch_size = 4
    config.log_every = 10
    config.eval_every = 280
    config.checkpoint_every = 140
    config.balance_coefficient = 0.0

    config.lora.targets = ("q", "k", "v", "o")
    config.lora.rank = 8
    config.lora.alpha = 16.0

    config.data.kind = "tasks"
    config.data.sequence_length = 1280
    config.data.mixture = ConfigDict(_MIXTURE)

    config.optimizer.lr = 3e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 10
    config.optimizer.final_fraction = 0.0
    return config
