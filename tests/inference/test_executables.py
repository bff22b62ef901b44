"""Compiled programs are kept for processes that would compile the same, and for no others."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax import versions
from gptoss_jax.inference import executables

_DIRECTORY = "jax_compilation_cache_dir"


class Counted:
    """A jitted program that counts how often it is traced; its first argument is donated."""

    def __init__(self):
        self.traced = 0
        self._program = jax.jit(self._double, donate_argnums=0)

    def lower(self, *arguments):
        return self._program.lower(*arguments)

    def _double(self, x, tree):
        self.traced += 1
        return 2 * x, tree["y"] + 1


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Where executables are kept, as in a process of a user."""
    monkeypatch.setattr(executables, "_is_enabled", lambda: True)
    before = jax.config.values[_DIRECTORY]
    jax.config.update(_DIRECTORY, str(tmp_path / "cache"))
    yield tmp_path / "cache"
    jax.config.update(_DIRECTORY, before)


def _run(program, size=3, options=None, name="double"):
    arguments = (jnp.arange(size, dtype=jnp.int32), {"y": np.ones(2, np.float32)})
    made = executables.compiled(program, name, arguments, [jax.devices()[0]], options or {})
    doubled, added = made(*arguments)
    np.testing.assert_array_equal(doubled, 2 * np.arange(size))
    np.testing.assert_array_equal(added, [2, 2])
    assert arguments[0].is_deleted()


def test_a_second_program_is_not_traced(directory):
    first, second = Counted(), Counted()
    _run(first)
    _run(second)
    assert (first.traced, second.traced) == (1, 0)


@pytest.mark.parametrize(
    "other", [{"size": 4}, {"name": "another"}, {"options": {"xla_cpu_enable_fast_math": False}}]
)
def test_another_program_is_compiled(directory, other):
    _run(Counted())
    second = Counted()
    _run(second, **other)
    assert second.traced == 1


def test_another_version_compiles_again(directory, monkeypatch):
    _run(Counted())
    monkeypatch.setattr(versions, "source", lambda: "another")
    second = Counted()
    _run(second)
    assert second.traced == 1


def test_a_file_that_is_broken_is_replaced(directory):
    _run(Counted())
    (file,) = directory.glob("gptoss_jax-*")
    file.write_bytes(file.read_bytes()[:100])
    second, third = Counted(), Counted()
    _run(second)
    _run(third)
    assert (second.traced, third.traced) == (1, 0)


def test_a_directory_that_cannot_be_written_is_done_without(directory):
    directory.write_text("a file")
    second = Counted()
    _run(second)
    assert second.traced == 1


def test_nothing_is_kept_without_a_directory():
    before = jax.config.values[_DIRECTORY]
    jax.config.update(_DIRECTORY, None)
    try:
        first, second = Counted(), Counted()
        _run(first)
        _run(second)
    finally:
        jax.config.update(_DIRECTORY, before)
    assert (first.traced, second.traced) == (1, 1)


_PROCESS = """
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from gptoss_jax.inference import executables
x = jnp.arange(3.0)
function = lambda x: jnp.sin(x) @ jnp.cos(x)[:, None]
for _ in range(2):  # the second one is in this process's memory
    print(executables.compiled(jax.jit(function), "dot", (x,), [jax.devices()[0]], {})(x))
"""


def test_what_jax_had_in_its_cache_is_not_written_again(tmp_path):
    # XLA:CPU writes such a program without its code (jaxlib 0.10.2).
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def run() -> list[Path]:
        command = [sys.executable, "-c", _PROCESS]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        return list(tmp_path.glob("gptoss_jax-*"))

    (file,) = run()
    assert run() == [file]
    file.unlink()
    assert list(tmp_path.iterdir()), "JAX keeps its own"
    assert run() == []
