"""All of gpt-oss-20b, trained through MXFP4: float32 master weights and Adam, exported packed.

Data: as `lora_20b.py` takes it. The experts are used as they are packed and the gradient passes
straight through, so that the export computes what the training saw.
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.optimizer.lr=2e-5."""
    config = defaults()
    config.base = "~/gpt-oss-20b"
    config.dtype = "bfloat16"
    config.remat = True
    config.steps = 1000
    config.batch_size = 16
    config.qat_start = 0
    config.data.paths = ("chats.jsonl",)
    config.data.sequence_length = 2048
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.0
    return config
