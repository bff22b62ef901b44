"""A tokenizer, chats and a config small enough to train on in seconds."""

import json
from pathlib import Path

import pytest

import gptoss_jax.nano
from gptoss_jax.text import load_tokenizer
from gptoss_jax.training import settings


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
