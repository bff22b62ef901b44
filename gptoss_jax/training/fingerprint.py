"""What tells a checkpoint from another under the same path, without reading all of it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from gptoss_jax.checkpoint.directory import ORBAX_FOLDER

_BLOCK = 1 << 16
_LEAST_BLOCKS = 64  # of a file: 4 MiB, so that nano is read whole
_MOST_APART = 1 << 26  # 60 MB of 120b's 65 GB


def of_checkpoint(directory: Path) -> str:
    """A hash of its config.json and of blocks all over its weights: their headers, too.

    The same for a copy; a training changes all of a tensor, so blocks show it.
    """
    digest = hashlib.sha256()
    for file in _files(directory):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(directory)} {size}\n".encode())
        with file.open("rb") as opened:
            for start in _starts(size):
                opened.seek(start)
                digest.update(opened.read(_BLOCK))
    return digest.hexdigest()[:16]


def _files(directory: Path) -> list[Path]:
    found = [*directory.glob("config.json"), *directory.glob("*.safetensors")]
    found += (directory / ORBAX_FOLDER).rglob("*")
    return sorted(file for file in found if file.is_file())


def _starts(size: int) -> Iterator[int]:
    yield from range(0, size, max(_BLOCK, min(_MOST_APART, size // _LEAST_BLOCKS)))
    yield max(0, size - _BLOCK)
