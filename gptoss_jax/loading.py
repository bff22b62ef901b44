"""`load`: a checkpoint directory to a model and its tokenizer."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.text import O200K_VOCAB_SIZE, has_tokenizer, o200k_harmony, tokenizer_for

if TYPE_CHECKING:
    import jax

    from gptoss_jax.model.config import Config
    from gptoss_jax.model.transformer import GptOss
    from gptoss_jax.text import Tokenizer

DTYPES = ("bfloat16", "float32")
NANO = "nano"


def checkpoint_directory(path: str | Path) -> Path:
    """The directory a path names: "nano" the model in this package, `~` the user's home."""
    return Path(__file__).parent / "nano" if path == NANO else Path(path).expanduser()


def load(
    path: str | Path,
    *,
    dtype: str = "bfloat16",
    mesh: "jax.sharding.Mesh | None" = None,
    adapter: str | Path | None = None,
) -> "tuple[GptOss, Tokenizer | None]":
    """Loads a checkpoint of any published layout.

    Args:
      path: the directory, or "nano" for the tiny model in this package.
      dtype: what activations are computed in, "bfloat16" or "float32". Weights keep theirs.
      mesh: of `sharding.make_mesh`; the parameters are split over it for `complete` and `Engine`
        (a bare `model(tokens)` then belongs inside a shard_map). None, or a mesh of that one: the
        first device.
      adapter: a directory in PEFT's layout, applied beside the weights without merging.

    Returns:
      (model, tokenizer); the directory's own tokenizer, else o200k_harmony where the vocabulary is
      that one's, else None.

    Raises:
      UserError: whatever is wrong with the directory, in one line; before any weight is read, but
        for what only the weights show: a NaN scale byte, damaged Orbax data.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is neither bfloat16 nor float32")
    # Late, so that whoever only wants a tokenizer or an error needs no JAX.
    import jax.numpy as jnp

    path = checkpoint_directory(path)
    model = load_with(path, adapter, jnp.dtype(dtype), mesh)
    return model, find_tokenizer(path, model.config.vocab_size)


def load_with(
    path: Path,
    adapter: str | Path | None,
    dtype: "jax.numpy.dtype",
    mesh: "jax.sharding.Mesh | None",
) -> "GptOss":
    """The model of a checkpoint, with an adapter if there is one, which is read first."""
    import jax

    from gptoss_jax.checkpoint.adapters import apply_adapter, read_adapter
    from gptoss_jax.checkpoint.load import load_model, open_source

    if mesh is not None and mesh.size == 1 and mesh.devices.item() != jax.devices()[0]:
        raise UserError(
            f"the mesh is {mesh.devices.item()} alone; one device has to be the first, "
            f"{jax.devices()[0]}: leave out the mesh, and hide the others from JAX"
        )
    trained = None if adapter is None else read_adapter(adapter, open_source(path).config)
    model = load_model(path, dtype=dtype, mesh=mesh)
    return model if trained is None else apply_adapter(model, trained)


def choose_mesh(config: "Config", asked: str | None, batch: int = 1) -> "jax.sharding.Mesh | None":
    """The mesh of `--mesh`, else `default_shape`; what was chosen unasked is said on stderr.

    Args:
      config: the network.
      asked: the flag's text, None where it was not given.
      batch: how many sequences at once.

    Returns:
      None where one device is all there is, or asked for.

    Raises:
      UserError: the text is no mesh, or not one that the network or the batch divides by, or it
        leaves a process without a device.
    """
    import jax

    from gptoss_jax import sharding

    devices = jax.devices()
    if asked is None:
        # No process may be left out.
        shape = sharding.default_shape(config, len(devices), whole=jax.process_count() > 1)
        if shape:
            used = math.prod(shape.values())
            of = f", {used} of {len(devices)} devices" if used < len(devices) else ""
            print(f"mesh {sharding.describe(shape)}{of}; choose with --mesh", file=sys.stderr)
    else:
        shape = sharding.parse(asked)
    if shape.get("fsdp", 1) > 1:
        raise UsageError(f"--mesh {asked}: fsdp is for training; use expert, tensor or data")
    mesh = sharding.make_mesh(config, shape, devices)
    sharding.check_batch(batch, mesh)
    sharding.check_processes(mesh)
    return mesh if mesh.size > 1 else None


def default_temperature(directory: Path) -> float:
    """What a checkpoint's generation_config.json asks for: 0 for greedy, 1 if it says nothing.

    Raises:
      UserError: the file holds no JSON object, or no temperature.
    """
    from gptoss_jax.model.config import read_json_object

    file = directory / "generation_config.json"
    asked = read_json_object(file) if file.is_file() else {}
    if asked.get("do_sample") is False:
        return 0.0
    temperature = asked.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
        raise UserError(f"{file}: key 'temperature': {temperature!r} is no number from 0")
    return float(temperature)


def find_tokenizer(
    path: str | Path, vocab_size: int, override: str | Path | None = None
) -> "Tokenizer | None":
    """The tokenizer `override` names, else the directory's own, else o200k_harmony if it fits.

    Args:
      path: the checkpoint directory.
      vocab_size: rows of the model's embedding; o200k_harmony fits only its own number.
      override: a tokenizer file or directory.

    Raises:
      TokenizerError: what is there is no tokenizer.
    """
    if override is not None or has_tokenizer(path):
        return tokenizer_for(path, override)
    return o200k_harmony() if vocab_size == O200K_VOCAB_SIZE else None
