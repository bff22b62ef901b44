r"""All of nano, trained further on conversations of one's own, through MXFP4.

Data: JSON lines, one conversation a line, {"messages": [{"role": "user", "content": …}, {"role":
"assistant", "reasoning": …, "content": …}]}; "tools" and "reasoning_effort" as in OpenAI's API.
The packed checkpoint is written to WORKDIR/export.

One device, or its four rows over `--mesh data=N` or `fsdp=N`. As XLA compiles a step for one CPU
device, 256 MiB are held: 15 float32 weights, 31 Adam's moments, 211 activations and the rest.
200 steps of 4,096 tokens would take three minutes on two slow cores at the rate of nano's own
training there, 4,300 tokens/s (README, "Measured"); this config's time was not measured.

    python -m gptoss_jax.train --config configs/sft_nano.py --workdir runs/mine \
      --config.data.paths=chats.jsonl
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.optimizer.lr=1e-4."""
    config = defaults()
    config.base = "nano"
    config.steps = 200
    config.batch_size = 4
    config.qat_start = 0
    config.balance_coefficient = 0.0  # routing is left as the base learned it
    config.data.paths = ("chats.jsonl",)
    config.data.sequence_length = 1024
    config.optimizer.lr = 3e-4
    config.optimizer.warmup_steps = 20
    return config
