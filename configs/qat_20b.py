"""All of gpt-oss-20b, trained through MXFP4: float32 master weights and Adam, exported packed.

Data: as `lora_20b.py` takes it. The experts are used as they are packed and the gradient passes
straight through, so that the export computes what the training saw.

Compiled for `v6e:4x4` over fsdp=16, 25.21 GiB of 31.24 a device are held: 4.87 weights, 9.74 Adam's
moments, 10.60 activations, gradients and the rest (`python -m gptoss_jax.plan --task train --config
configs/qat_20b.py --model 20b --topology v6e:4x4`). It has run on none, so no
time is known.
"""

from ml_collections import ConfigDict

from gptoss_jax.training.settings import defaults


def get_config() -> ConfigDict:
    """The config; any field can be set from the command line, as --config.optimizer.lr=2e-5."""
    config = defaults()
    config.base = "~/gpt-oss-20b"
    config.dtype = "bfloat16"
    config.remat = True
    config.balance_coefficient = 0.0  # routing is left as the base learned it
    config.steps = 1000
    config.batch_size = 16
    config.qat_start = 0
    config.data.paths = ("chats.jsonl",)
    config.data.sequence_length = 2048
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.0
    return config
