"""A strict JAX for every test: what only works by promotion or by luck fails here.

Warnings are errors by `filterwarnings` in pyproject.toml. Torch and transformers take seconds to
import; only the modules that compare with them do so, and they skip where those are missing.
"""

import gzip
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the time is the compiler's; code that is less optimised takes it 40 % less.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from hypothesis import settings

from gptoss_jax.inference import executables
from gptoss_jax.text.o200k import RANKS_FILE

# More devices than one, so that nothing assumes a single one.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a test compiles, and the machine's speed is not what these tests are about;
# the same examples every time, so that a failure elsewhere can be repeated here.
settings.register_profile("gptoss", deadline=None, derandomize=True)
settings.load_profile("gptoss")


@pytest.fixture(autouse=True)
def traced_programs(monkeypatch):
    """Programs are compiled from what they are: tests change constants that no key has."""
    monkeypatch.setattr(executables, "_is_enabled", lambda: False)


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """XLA:CPU keeps memory mappings of each program, and Linux gives a process 65,530 in all."""
    yield
    if sys.platform == "linux" and Path("/proc/self/maps").read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def oracle(tmp_path_factory):
    """openai-harmony's encoding, offline. Skipped only where the library is not installed."""
    openai_harmony = pytest.importorskip("openai_harmony", reason="needs the oracle extra")
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "o200k_base.tiktoken").write_bytes(gzip.decompress(RANKS_FILE.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return openai_harmony.load_harmony_encoding("HarmonyGptOss")
