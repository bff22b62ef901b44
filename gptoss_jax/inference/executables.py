"""Compiled programs, kept beside JAX's compilation cache.

JAX's cache saves the compiler's work, but its key is the program, which has to be traced and
lowered first. Here the key is all that a program depends on.
"""

import contextlib
import hashlib
import os
import pickle
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from gptoss_jax import versions

# What reading a file that is no executable of this machine raises.
_UNREADABLE = (OSError, EOFError, pickle.UnpicklingError, ValueError, jax.errors.JaxRuntimeError)
# Two threads that trace share one interpreter, and both compilers would begin late.
_TRACING = threading.Lock()
_ASKED, _FOUND = (
    f"/jax/compilation_cache/{x}" for x in ("compile_requests_use_cache", "cache_hits")
)
# How often JAX's cache was asked, and had it, in this thread.
_SEEN = threading.local()


def compiled(
    program: Any,
    name: str,
    arguments: tuple,
    devices: Sequence[Any],
    options: Mapping[str, Any],
) -> Any:
    """`program.lower(*arguments).compile(options)`, or what that gave before.

    Kept where JAX keeps its own, `jax_compilation_cache_dir`; without that, and among several
    processes, nothing is kept. A directory that cannot be written is done without.

    Args:
      program: jitted; a function of this package, of `arguments` alone.
      name: of the program.
      arguments: arrays, or their shapes.
      devices: `jax.Device`s that it runs on, in their order.
      options: of the compiler.
    """
    file = _file(name, arguments, devices, options)
    if file is None:
        return _compile(program, arguments, options)[0]
    with contextlib.suppress(*_UNREADABLE):
        payload, out_tree = pickle.loads(file.read_bytes())
        in_tree = jax.tree.structure((arguments, {}))
        return serialize_executable.deserialize_and_load(
            payload, in_tree, out_tree, devices[0].client, devices
        )
    made, is_new = _compile(program, arguments, options)
    if not is_new:
        return made
    with contextlib.suppress(OSError):
        payload, _, out_tree = serialize_executable.serialize(made)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another process may read it meanwhile.
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(pickle.dumps((payload, out_tree)))
        unfinished.rename(file)
    return made


def _compile(program: Any, arguments: tuple, options: Mapping[str, Any]) -> tuple[Any, bool]:
    """(The program; whether it is new: one of JAX's cache cannot be written again on XLA:CPU).

    Nor can one that this process has in memory, of which nobody knows where it came from.
    """
    with _TRACING:
        lowered = program.lower(*arguments)
    _SEEN.events = set()
    made = lowered.compile(compiler_options=options)
    return made, _SEEN.events == {_ASKED}


def _note(event: str, **_: Any) -> None:
    """JAX tells it in the thread that compiles."""
    if event in (_ASKED, _FOUND) and hasattr(_SEEN, "events"):
        _SEEN.events.add(event)


jax.monitoring.register_event_listener(_note)


def _file(
    name: str, arguments: tuple, devices: Sequence[Any], options: Mapping[str, Any]
) -> Path | None:
    directory = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not directory or not _is_enabled() or jax.process_count() > 1:
        return None
    leaves, tree = jax.tree.flatten(arguments)
    shapes = [(x.shape, str(x.dtype), str(getattr(x, "sharding", ""))) for x in leaves]
    machine = [(d.device_kind, d.id, d.client.platform_version) for d in devices]
    question = (name, str(tree), shapes, machine, sorted(options.items()), _processor(devices))
    settings = sorted(jax.config.values.items())
    whole = repr((question, settings, sorted(versions.compilers().items()), versions.source()))
    return Path(directory) / f"gptoss_jax-{hashlib.sha256(whole.encode()).hexdigest()[:32]}"


def _is_enabled() -> bool:
    return jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]


def _processor(devices: Sequence[Any]) -> str:
    """What XLA:CPU makes use of; of an accelerator `device_kind` says it."""
    if devices[0].platform != "cpu":
        return ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return ""
