"""What a compiled program depends on beside its own sizes: for the keys of caches. No JAX."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path

_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def compilers() -> dict[str, str]:
    """Versions of the compilers that are installed, and the flags they are given."""
    found = {}
    for name in _COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {name: os.environ.get(name, "") for name in _FLAGS}


@functools.cache
def source() -> str:
    """A digest of this package's code."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
