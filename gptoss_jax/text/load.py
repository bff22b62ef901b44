"""From a path the user names to a tokenizer."""

from __future__ import annotations

from pathlib import Path

from gptoss_jax.text.errors import TokenizerError
from gptoss_jax.text.hf import load_hf
from gptoss_jax.text.o200k import load_ranks, o200k_harmony
from gptoss_jax.text.sp import load_sp
from gptoss_jax.text.tokenizer import Tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads the tokenizer at a path (`--tokenizer FILE|DIR`).

    Args:
      path: a `tokenizer.json`, a SentencePiece `.model`, o200k_base's ranks (`.tiktoken` or
        `.tiktoken.gz`), or a directory with one of them (looked for in this order).

    Raises:
      TokenizerError: nothing is there, or it is not a tokenizer.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = _in_directory(path)
        if found is None:
            raise TokenizerError(
                f"{path}: no tokenizer.json, *.model or *.tiktoken in it; name a tokenizer file"
            )
        path = found
    if not path.is_file():
        raise TokenizerError(f"{path}: no such file; give a tokenizer file or its directory")
    return _load_file(path)


def tokenizer_for(directory: str | Path | None, override: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    Args:
      directory: a checkpoint, or None for one that has no directory.
      override: what the user named instead, if anything.

    Returns:
      `override`'s tokenizer, else the directory's own, else the packaged o200k_harmony: the
      original layout and synthetic checkpoints carry none.

    Raises:
      TokenizerError: see `load_tokenizer`.
    """
    if override is not None:
        return load_tokenizer(override)
    found = _in_directory(Path(directory)) if directory is not None else None
    return o200k_harmony() if found is None else _load_file(found)


def has_tokenizer(directory: str | Path) -> bool:
    """Whether a directory has a tokenizer of its own."""
    return _in_directory(Path(directory)) is not None


def _in_directory(directory: Path) -> Path | None:
    for pattern in ("tokenizer.json", "*.model", "*.tiktoken", "*.tiktoken.gz"):
        for found in sorted(directory.glob(pattern)):
            return found
    return None


def _load_file(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        return load_hf(path)
    if path.suffix == ".model":
        return load_sp(path)
    if path.name.endswith((".tiktoken", ".tiktoken.gz")):
        return load_ranks(path)
    raise TokenizerError(f"{path}: unknown kind; give a .json, .model, .tiktoken or .tiktoken.gz")
