"""What a compiler said before: results on disk, keyed by everything they depend on."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_jax import versions


def cached(question: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer to a question, from the cache or from `ask`.

    Kept in `$XDG_CACHE_HOME/gptoss_jax/plan`, a file a question; each says what it answers. A cache
    that cannot be written is done without.

    Args:
      question: JSON.
      ask: gives JSON.
    """
    whole = question | versions.compilers() | {"source": versions.source()}
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
