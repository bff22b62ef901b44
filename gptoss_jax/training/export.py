"""What a run ends with: the packed checkpoint in the published layout; and its master weights."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from gptoss_jax.checkpoint import peft
from gptoss_jax.checkpoint.output import GENERATION_FILE, generation_config, write_json
from gptoss_jax.checkpoint.save import save_model
from gptoss_jax.errors import UserError
from gptoss_jax.model.adapter import Adapter
from gptoss_jax.model.config import Config
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import tokenizer_for
from gptoss_jax.training import run_directory
from gptoss_jax.training.base import Base
from gptoss_jax.training.checkpoints import Checkpoints
from gptoss_jax.training.settings import Settings, adapter_of
from gptoss_jax.training.step import Trainer


def export(model: GptOss, directory: Path, tokenizer: str, base: Path | None = None) -> None:
    """Writes the packed model, over what an earlier end of the run wrote; process 0 does.

    Args:
      model: of `qat.pack`.
      directory: to write; only ever whole.
      tokenizer: `config.tokenizer`; its files go along, and generation_config.json has its ids.
      base: the checkpoint the run began from, whose tokenizer it is if none is named.
    """
    named = Path(tokenizer).expanduser() if tokenizer else base
    source = named if named is None or named.is_dir() else named.parent

    def write(unfinished: Path) -> None:
        save_model(model, "hf", unfinished, source=source, progress=False)
        if source is None or not (source / GENERATION_FILE).is_file():
            stops = tokenizer_for(None, tokenizer or None)
            write_json(unfinished / GENERATION_FILE, generation_config(stops.specials))

    _whole(directory, write)


def export_adapter(
    values: Mapping[str, jax.Array], adapter: Adapter, base: Base, directory: Path
) -> None:
    """Writes an adapter in PEFT's layout, over what an earlier end of the run wrote.

    Args:
      values: as they are trained, see `lora.attach`.
      adapter: what they are of.
      base: the model they are for.
      directory: to write; only ever whole.
    """
    trained = Trained(adapter, values)

    def write(unfinished: Path) -> None:
        peft.save(trained, base.sizes, str(base.directory), unfinished)
        for line in peft.not_held(trained):
            print(f"note: {line}", file=sys.stderr)

    _whole(directory, write)


def _whole(directory: Path, write: Callable[[Path], None]) -> None:
    """Lets process 0 write a directory that gets its name when it is whole."""
    if jax.process_index():
        return _await_writer()
    unfinished = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    write(unfinished)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    _await_writer()


def _await_writer() -> None:
    """Until process 0 has written."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export")


def trained_whole(workdir: Path) -> Settings:
    """The config of a run that trains all of a model.

    Raises:
      UserError: there is no run, or it is an adapter's.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir}: no run directory; it has no config.json")
    config = run_directory.read(workdir)
    if adapter_of(config) is not None:
        raise UserError(f"{workdir}: the run of an adapter, which has no master weights")
    return config


def master_model(workdir: Path, sizes: Config) -> GptOss:
    """The newest checkpoint of a run, with float32 parameters as they are trained.

    Args:
      workdir: of the run.
      sizes: of its network, as its export's config.json has them.

    Raises:
      UserError: as `trained_whole`, or no checkpoint of these sizes.
    """
    trainer = Trainer(trained_whole(workdir), sizes)
    with Checkpoints(workdir / "checkpoints", keep=1_000_000, reads=True) as kept:
        if kept.latest is None:
            raise UserError(f"{workdir}: has no checkpoint")
        state, _ = kept.load(trainer.abstract_state())
    return trainer.model(state.params)
