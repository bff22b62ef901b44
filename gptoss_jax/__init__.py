"""OpenAI's gpt-oss in JAX and Flax: packed MXFP4 weights, one parameter tree, TPU and GPU.

`load` and `complete` are resolved on first use, so that importing the package imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_jax.inference.completion import Completion, complete
    from gptoss_jax.loading import load

__all__ = ["Completion", "complete", "load"]

_HOME = {
    "Completion": "gptoss_jax.inference.completion",
    "complete": "gptoss_jax.inference.completion",
    "load": "gptoss_jax.loading",
}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
