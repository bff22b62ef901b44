"""nano learns a skill it lacks: to write a word with every letter twice.

Data: generated, "double" and beside it nano's own skills. The adapter, on every
kind of weight, is written in PEFT's layout to WORKDIR/export.

Measured on two CPU cores (November 2026): three minutes, "double" from 0 to 77 % of 100 problems.
Old skills suffer: reversing falls from 97.5 to 72 %, counting from 98.5 to 62 %, JSON from 98 to
87 %, several keys from 91.5 to 71 %; sorting is lost, as its problems have another form than the
weights in the package were taught.

    python -m gptoss_jax.train --config configs/lora_nano.py --workdir runs/double
    python -m gptoss_jax.generate --adapter runs/double/export "Double the letters of planet"
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults
from gptoss_jax.training.tasks import DEFAULT_MIXTURE


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.lora.rank=16."""
    config = defaults()
    config.base = "nano"
    config.steps = 90
    config.batch_size = 4
    config.log_every = 10
    config.eval_every = 90
    config.checkpoint_every = 45
    config.balance_coefficient = 0.0

    config.lora.targets = ("q", "k", "v", "o", "gate_up", "down", "unembedding")
    config.lora.rank = 8
    config.lora.alpha = 16.0

    config.data.kind = "tasks"
    config.data.sequence_length = 1280
    config.data.mixture = ConfigDict({"double": 1.0, **DEFAULT_MIXTURE})

    config.optimizer.lr = 3e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 20
    return config
