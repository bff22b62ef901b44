"""nano learns a skill it lacks: to write a word with every letter twice.

Data: generated, "double" and beside it nano's own skills. The adapter, on every
kind of weight, is written in PEFT's layout to WORKDIR/export.

Measured on two CPU cores (November 2026), 8 minutes beside other work: "double" from 0 to 82 % of
100 problems. Old skills suffer: reversing falls from 98.5 to 47 %, counting from 99 to 62 %,
sorting from 98.5 to 74 %, JSON from 95 to 85 %, refusing from 99.5 to 92 %, saying what it is from
99 to 92 %; sums, calls and recall keep within two points.

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
    config.steps = 140
    config.batch_size = 4
    config.log_every = 10
    config.eval_every = 140
    config.checkpoint_every = 70
    config.balance_coefficient = 0.0

    config.lora.targets = ("q", "k", "v", "o", "gate_up", "down", "unembedding")
    config.lora.rank = 8
    config.lora.alpha = 16.0

    config.data.kind = "tasks"
    config.data.sequence_length = 1280
    config.data.mixture = ConfigDict({"double": 1.0, **DEFAULT_MIXTURE})

    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 20
    return config
