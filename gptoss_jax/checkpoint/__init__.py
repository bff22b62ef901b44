"""Checkpoint layouts on disk <-> the one parameter tree.

hf.py, original.py     which published tensor is which parameter (rules.py says what a rule is)
directory.py           which layout a directory holds; refuses inconsistent headers
safetensors_file.py    one file, read and written in pieces
recode.py              published orders <-> memory's orders
load.py, save.py       the two directions, by source.py and weights.py; orbax_dir.py for Orbax
synthetic.py           checkpoints of any size with random weights
"""

from gptoss_jax.checkpoint.load import load_model as load_model
from gptoss_jax.checkpoint.save import save_model as save_model
from gptoss_jax.checkpoint.synthetic import write_synthetic as write_synthetic
