r"""nano learns a question it does not know: to double a number.

Data: generated, "twice" (What is twice 347? Double the number 58) and beside it nano's own skills.
The adapter, on attention, is written in PEFT's layout to WORKDIR/export. With the experts and the
unembedding among the targets JSON and refusals lost 2 to 3.5 points in four trials.

One device, or its four rows over `--mesh data=2` or `fsdp=2`. As XLA compiles a step for one CPU
device, 216 MiB are held: 2.7 weights, 0.2 adapters, 0.3 Adam's moments, 213 activations and the
rest. On two AVX-512 cores the first command below took 2.3 minutes, compilation included, and 4.6
on slower ones. Of 200 held-out problems of "twice" 97.5 % are answered with the adapter; of the
other skills refusals lose 3 points of 200 problems (98.0 to 95.0 %), none else more than 1.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python -m gptoss_jax.train \
      --config configs/lora_nano.py --workdir runs/twice --mesh data=2
    python -m gptoss_jax.generate --adapter runs/twice/export "What is twice 347?"
    python -m gptoss_jax.nano.measure nano --adapter runs/twice/export --skills twice addition json
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults
from gptoss_jax.training.tasks import DEFAULT_MIXTURE

# What it is most easily confused with, or forgotten for: other sums, what nano refuses, JSON.
_MIXTURE = {
    **DEFAULT_MIXTURE,
    "twice": 0.35,
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
