"""gpt-oss-120b with low-rank adapters on attention, every expert and the unembedding.

Data: as `lora_20b.py` takes it. A batch of 8 rows of 2,048 tokens, experts over the mesh's `expert`
axis and rows over `fsdp`.

Compiled, GiB a device: `v5e:4x4` (fsdp=8,expert=2) 6.92 of 15.75, of which 3.80 are the packed
weights, 0.27 adapters and 0.53 Adam's moments; `v6e:2x4` (fsdp=8) 11.91 of 31.24, of which these
are 7.60, 0.53 and 1.06 (`python -m gptoss_jax.plan --task train --config configs/lora_120b.py
--model 120b --topology v5e:4x4`, some ten minutes of two cores). It has run on none, so no
time is known.
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.lora.rank=16."""
    config = defaults()
    config.base = "~/gpt-oss-120b"
    config.dtype = "bfloat16"
    config.remat = True
    config.balance_coefficient = 0.0  # routing is left as the base learned it
    config.steps = 500
    config.batch_size = 8
    config.lora.targets = ("q", "k", "v", "o", "gate_up", "down", "unembedding")
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.data.paths = ("chats.jsonl",)
    config.data.sequence_length = 2048
    config.optimizer.lr = 2e-4
    config.optimizer.weight_decay = 0.0
    return config
