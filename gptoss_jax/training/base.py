"""What a run begins from: nothing but sizes, or a checkpoint's weights."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gptoss_jax.checkpoint.load import load_model, open_source
from gptoss_jax.errors import UserError
from gptoss_jax.loading import checkpoint_directory, find_tokenizer
from gptoss_jax.model.config import Config, check_directory
from gptoss_jax.model.transformer import GptOss, abstract
from gptoss_jax.text import TextError, Tokenizer, load_tokenizer, tokenizer_for
from gptoss_jax.training.settings import ConfigError, Settings, adapter_of, model_config


@dataclasses.dataclass(frozen=True)
class Base:
    """What is known of a run's network before any weight is read.

    Attributes:
      sizes: of the network.
      tokenizer: of the data.
      directory: the checkpoint's; None: there is none.
    """

    sizes: Config
    tokenizer: Tokenizer
    directory: Path | None

    def abstract(self, dtype: jnp.dtype) -> GptOss | None:
        """The model that `load` gives, with `jax.ShapeDtypeStruct` leaves."""
        if self.directory is None:
            return None
        source = open_source(self.directory)
        packed = {"packed_experts": source.packed_experts, "param_dtype": source.dtype}
        return jax.eval_shape(widened, abstract(source.config, dtype=dtype, **packed))

    def load(self, dtype: jnp.dtype, mesh: Mesh | None) -> GptOss | None:
        """The model. On the CPU bfloat16 is multiplied as float32 anyway: it is widened once."""
        if self.directory is None:
            return None
        return widened(load_model(self.directory, dtype=dtype, mesh=mesh))


def find(config: Settings) -> Base:
    """The base of a config, or its own sizes.

    Raises:
      ConfigError: no such checkpoint, no such tokenizer, or a field that does not go with them.
      UserError: what is wrong with the checkpoint's headers.
    """
    named = _named_tokenizer(config)
    if not config.base:
        tokenizer = named or tokenizer_for(None)
        return Base(model_config(config, tokenizer.vocab_size), tokenizer, None)
    directory = checkpoint_directory(config.base)
    try:
        check_directory(directory)
    except UserError as error:
        raise ConfigError(f"config.base: {error}") from None
    sizes = open_source(directory).config
    tokenizer = named or find_tokenizer(directory, sizes.vocab_size)
    if tokenizer is None:
        raise ConfigError(f"config.tokenizer: {directory} has none; name a file or a directory")
    if tokenizer.vocab_size > sizes.vocab_size:
        shown = f"has {tokenizer.vocab_size} tokens, {directory} rows for {sizes.vocab_size}"
        raise ConfigError(f"config.tokenizer: {shown}")
    if config.data.sequence_length > sizes.max_context:
        raise ConfigError(
            f"config.data.sequence_length: {config.data.sequence_length} is more than the "
            f"{sizes.max_context} positions of {directory}"
        )
    _check_adapter(config, sizes)
    return Base(sizes, tokenizer, directory)


def _check_adapter(config: Settings, sizes: Config) -> None:
    """Refuses an adapter's layers and targets that the network has not."""
    try:
        if adapter := adapter_of(config):
            adapter.paths(sizes.num_layers)
    except UserError as error:
        raise ConfigError(f"config.{error}") from None


def _named_tokenizer(config: Settings) -> Tokenizer | None:
    try:
        return load_tokenizer(config.tokenizer) if config.tokenizer else None
    except TextError as error:
        raise ConfigError(f"config.tokenizer: {error}") from None


def widened(model: GptOss) -> GptOss:
    """Its bfloat16 parameters as float32, if it computes in that."""
    if model.dtype != jnp.float32:
        return model
    bfloat16 = jnp.bfloat16
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == bfloat16 else x, model)
