"""What a run ends with: the packed checkpoint in the published layout."""

import shutil
from pathlib import Path

from gptoss_jax.checkpoint.save import save_model
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.training.qat import pack


def export(model: GptOss, directory: Path, tokenizer: str) -> None:
    """Writes the packed model, over what an earlier end of the run wrote.

    Args:
      model: with float experts.
      directory: to write; only ever whole.
      tokenizer: `config.tokenizer`; its files go along.
    """
    unfinished = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    found = Path(tokenizer).expanduser()
    source = found if found.is_dir() else found.parent
    save_model(pack(model), "hf", unfinished, source=source if tokenizer else None, progress=False)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
