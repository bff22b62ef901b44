"""`load`: a checkpoint directory to a model and its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax.errors import UserError
from gptoss_jax.text import o200k_harmony, tokenizer_for

if TYPE_CHECKING:
    import jax

    from gptoss_jax.model.transformer import GptOss
    from gptoss_jax.text import Tokenizer

DTYPES = ("bfloat16", "float32")


def load(
    path: str | Path, *, dtype: str = "bfloat16", mesh: "jax.sharding.Mesh | None" = None
) -> "tuple[GptOss, Tokenizer | None]":
    """Loads a checkpoint of any published layout.

    Args:
      path: the directory.
      dtype: what activations are computed in, "bfloat16" or "float32". Weights keep theirs.
      mesh: every parameter is replicated over it; call the model within `jax.set_mesh(mesh)`. None:
        the first device.

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

    from gptoss_jax.checkpoint.load import load_model

    model = load_model(path, dtype=jnp.dtype(dtype), mesh=mesh)
    return model, find_tokenizer(path, model.config.vocab_size)


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
    tokenizer = tokenizer_for(path, override)
    packaged = o200k_harmony()
    return None if tokenizer is packaged and vocab_size != packaged.vocab_size else tokenizer
