r"""gpt-oss-20b made to prefer one answer to another (DPO), with low-rank adapters.

Data: JSON lines, one pair a line, {"prompt": [{"role": "user", "content": …}], "chosen": [{"role":
"assistant", "reasoning": …, "content": …}], "rejected": […]}; without "prompt" both are whole
conversations. A pair's two must fit a row together. What the base thinks of every pair is computed
before the first step and kept in WORKDIR/reference.npz. "accuracy" is the share of pairs whose
chosen one has gained on the rejected one, "margin" by how many nats. Memory was not compiled for;
the network and adapters are those of `lora_20b.py`. No time is known.

    python -m gptoss_jax.train --config configs/dpo_20b.py --workdir runs/preferred \
      --config.base=~/gpt-oss-20b --config.data.paths=pairs.jsonl
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.preference.beta=0.3."""
    config = defaults()
    config.base = "~/gpt-oss-20b"
    config.dtype = "bfloat16"
    config.remat = True
    config.steps = 200
    config.batch_size = 8
    config.accumulation = 8
    config.balance_coefficient = 0.0
    config.lora.targets = ("q", "k", "v", "o", "gate_up", "down")
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.preference.beta = 0.1
    config.data.kind = "pairs"
    config.data.paths = ("pairs.jsonl",)
    config.data.sequence_length = 2048
    config.optimizer.lr = 5e-5
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 20
    return config
