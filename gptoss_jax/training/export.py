"""What a run ends with: the packed checkpoint in the published layout; and its master weights."""

import json
import shutil
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from gptoss_jax.checkpoint.output import GENERATION_FILE, generation_config, write_json
from gptoss_jax.checkpoint.save import save_model
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import tokenizer_for
from gptoss_jax.training.checkpoints import Checkpoints
from gptoss_jax.training.step import Trainer


def export(model: GptOss, directory: Path, tokenizer: str) -> None:
    """Writes the packed model, over what an earlier end of the run wrote; process 0 does.

    Args:
      model: of `qat.pack`.
      directory: to write; only ever whole.
      tokenizer: `config.tokenizer`; its files go along, and generation_config.json has its ids.
    """
    if jax.process_index():
        return _await_writer()
    unfinished = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    found = Path(tokenizer).expanduser()
    source = found if found.is_dir() else found.parent
    save_model(model, "hf", unfinished, source=source if tokenizer else None, progress=False)
    if not (source / GENERATION_FILE).is_file():
        stops = tokenizer_for(None, tokenizer or None)
        write_json(unfinished / GENERATION_FILE, generation_config(stops.specials))
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    _await_writer()


def _await_writer() -> None:
    """Until process 0 has written."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export")


def master_model(workdir: Path, sizes: Config) -> GptOss:
    """The newest checkpoint of a run, with float32 parameters as they are trained.

    Args:
      workdir: of the run.
      sizes: of its network, as its export's config.json has them.

    Raises:
      UserError: there is no run, or no checkpoint of these sizes.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(f"{workdir}: no run directory; it has no config.json")
    trainer = Trainer(ConfigDict(json.loads(file.read_text(encoding="utf-8"))), sizes)
    with Checkpoints(workdir / "checkpoints", keep=1_000_000) as kept:
        if kept.latest is None:
            raise UserError(f"{workdir}: has no checkpoint")
        state, _ = kept.load(trainer.abstract_state())
    return trainer.model(state.params)
