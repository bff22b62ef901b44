"""A tokenizer, chats and a config small enough to train on in seconds."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

import gptoss_jax.nano
from gptoss_jax.checkpoint import save_model
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import load_tokenizer
from gptoss_jax.training import settings

_BASE = Config(
    num_layers=2,
    num_experts=4,
    experts_per_token=2,
    hidden_size=32,
    expert_width=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=512,
    sliding_window=8,
    rope_original_context=256,
    rope_factor=2.0,
    max_context=512,
)


@pytest.fixture(scope="session")
def tokenizer_path():
    return Path(gptoss_jax.nano.__file__).parent / "tokenizer.model"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path):
    return load_tokenizer(tokenizer_path)


def chat(number):
    """Conversations of lengths that differ."""
    said = {"role": "assistant", "reasoning": "x" * (number % 7), "content": "y" * (number % 5 + 1)}
    return {"messages": [{"role": "user", "content": f"What is {number} + 1?"}, said]}


@pytest.fixture(scope="session")
def chats_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps(chat(n)) + "\n" for n in range(50)))
    return path


@pytest.fixture(scope="session")
def base_path(tmp_path_factory):
    """A checkpoint of two layers to begin from."""
    path = tmp_path_factory.mktemp("tiny") / "base"
    float32 = jnp.dtype("float32")
    model = GptOss(_BASE, dtype=float32, param_dtype=float32, rngs=nnx.Rngs(0))
    save_model(model, "hf", path, progress=False)
    return path


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Starts runs in processes of their own, which share compiled programs."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling is most of the time
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

    def start(config_path, workdir, *words):
        command = [sys.executable, "-m", "gptoss_jax.train", "--config", str(config_path)]
        return subprocess.Popen(
            [*command, "--workdir", str(workdir), *words],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return start


@pytest.fixture
def killed_at_random():
    """Kills a run after one of its first steps, from `first` on, and gives the step.

    The seed of the place is printed; RUN_KILL_SEED repeats one.
    """

    def kill(process, steps, first=1):
        seed = int(os.environ.get("RUN_KILL_SEED") or random.SystemRandom().randrange(1 << 32))
        print(f"RUN_KILL_SEED={seed}")
        rng = random.Random(seed)
        step, wait = rng.randint(first, steps), rng.uniform(0, 0.05)
        shown = []
        with process:
            for line in process.stderr:
                shown.append(line)
                if line.startswith(f"step {step}/"):
                    time.sleep(wait)
                    process.kill()
        assert process.returncode == -signal.SIGKILL, shown
        return step

    return kill


@pytest.fixture
def config(tokenizer_path, chats_path):
    config = settings.defaults()
    config.tokenizer = str(tokenizer_path)
    config.steps, config.batch_size, config.accumulation = 40, 2, 2
    config.model.update(
        num_layers=1, num_experts=4, hidden_size=32, expert_width=64, num_heads=4, num_kv_heads=2
    )
    config.model.update(head_dim=16, sliding_window=8, max_context=512)
    config.data.paths = (str(chats_path),)
    config.data.sequence_length = 256
    config.optimizer.warmup_steps = 4
    return config
