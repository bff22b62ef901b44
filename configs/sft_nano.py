r"""All of nano, trained further on conversations of one's own, through MXFP4.

Data: JSON lines, one conversation a line, {"messages": [{"role": "user", "content": …}, {"role":
"assistant", "reasoning": …, "content": …}]}.

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
    config.data.paths = ("chats.jsonl",)
    config.data.sequence_length = 1024
    config.optimizer.lr = 3e-4
    config.optimizer.warmup_steps = 20
    return config
