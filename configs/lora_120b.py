"""gpt-oss-120b with low-rank adapters on attention, every expert and the unembedding.

Data: as `lora_20b.py` takes it. A batch of 8 rows of 2,048 tokens, experts over the mesh's `expert`
axis and rows over `fsdp`.
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.lora.rank=16."""
    config = defaults()
    config.base = "~/gpt-oss-120b"
    config.dtype = "bfloat16"
    config.remat = True
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
