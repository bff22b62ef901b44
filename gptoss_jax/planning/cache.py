"""What a compiler said before: results on disk, keyed by everything they depend on."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gptoss_jax

_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def cached(question: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer to a question, from the cache or from `ask`.

    Kept in `$XDG_CACHE_HOME/gptoss_jax/plan`, a file a question; each says what it answers. A cache
    that cannot be written is done without.

    Args:
      question: JSON.
      ask: gives JSON.
    """
    whole = question | versions() | {"source": _source()}
    text = json.dumps(whole, sort_keys=True)
    file = directory() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads(file.read_text(encoding="utf-8"))["answer"]
    answer = ask()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another process may read it meanwhile.
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"question": whole, "answer": answer}), encoding="utf-8")
        unfinished.rename(file)
    return answer


def directory() -> Path:
    """Where answers are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gptoss_jax" / "plan"


def versions() -> dict[str, str]:
    """Of the compilers that are installed, and the flags they are given."""
    found = {}
    for name in _COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {name: os.environ.get(name, "") for name in _FLAGS}


@functools.cache
def _source() -> str:
    """A digest of this package's code: another program has other sizes."""
    digest = hashlib.sha256()
    root = Path(gptoss_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
