r"""gpt-oss-20b with low-rank adapters on attention, every expert and the unembedding.

Data: JSON lines, one conversation a line, {"messages": [{"role": "user", "content": …}, {"role":
"assistant", "reasoning": …, "content": …}]}; "tools" and "reasoning_effort" as in OpenAI's API.
The base stays packed; the adapter is written in PEFT's layout to WORKDIR/export.

    python -m gptoss_jax.train --config configs/lora_20b.py --workdir runs/mine \\
      --config.base=~/gpt-oss-20b --config.data.paths=chats.jsonl
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.lora.rank=16."""
    config = defaults()
    config.base = "~/gpt-oss-20b"
    config.dtype = "bfloat16"
    config.remat = True
    config.steps = 500
    config.batch_size = 1
    config.lora.targets = ("q", "k", "v", "o", "gate_up", "down", "unembedding")
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.data.paths = ("chats.jsonl",)
    config.data.sequence_length = 2048
    config.optimizer.lr = 2e-4
    config.optimizer.weight_decay = 0.0
    return config
