r"""gpt-oss-20b with low-rank adapters on attention, every expert and the unembedding.

Data: JSON lines, one conversation a line, {"messages": [{"role": "user", "content": …}, {"role":
"assistant", "reasoning": …, "content": …}]}; "tools" and "reasoning_effort" as in OpenAI's API.
The base stays packed; the adapter is written in PEFT's layout to WORKDIR/export.

Compiled for one v5e chip of 15.75 GiB, 15.03 are held: 12.82 the packed weights, 0.35 adapters,
0.70 Adam's moments, 1.16 activations and the rest (`python -m gptoss_jax.plan --task train --config
configs/lora_20b.py --model 20b --topology v5e:1x1`). With rank 16, `--config.lora.rank=16`: one v6e
holds 18.88 GiB of 31.24 at 8,192 tokens, one H100 33.44 of 75.15 at 16,384
(`--config.data.sequence_length`). On one chip there is no mesh; over several, rows go over `fsdp`
if there are as many (`--config.batch_size=8 --mesh fsdp=8`), experts over `expert`. It has run on
none, so no time is known.

    python -m gptoss_jax.train --config configs/lora_20b.py --workdir runs/mine \
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
    config.balance_coefficient = 0.0  # routing is left as the base learned it
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
