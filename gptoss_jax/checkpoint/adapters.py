"""An adapter's directory onto a model in memory."""

from pathlib import Path

import jax
from jax.sharding import NamedSharding

from gptoss_jax import sharding
from gptoss_jax.checkpoint import peft
from gptoss_jax.model import lora
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss


def apply_adapter(model: GptOss, trained: Trained) -> GptOss:
    """The model with an adapter beside its weights, which stay as they are and where they are.

    Args:
      model: without factors, on one device or over a mesh.
      trained: an adapter that fits it; float32, on the host.
    """
    mesh = sharding.mesh_of(model.embedding_VD[...])
    split = sharding.split_of(model.config, dict(mesh.shape) if mesh else {})
    (first, *_) = model.embedding_VD[...].devices()

    def put(path: str, value) -> jax.Array:
        if mesh is None:
            return jax.device_put(value, first)
        return jax.device_put(value, NamedSharding(mesh, sharding.parameter_spec(path, split)))

    values = {path: put(path, value) for path, value in trained.values.items()}
    return lora.attach(model, trained.adapter, values)


def read_adapter(directory: str | Path, sizes) -> Trained:
    """As `peft.load`, of a path that may begin with `~`."""
    return peft.load(Path(directory).expanduser(), sizes)
