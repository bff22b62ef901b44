import pytest
from peft_cases import base

from gptoss_jax.checkpoint import save_model, write_synthetic
from gptoss_jax.model.config import Config

# Every dimension differs from the others.
SMALL = Config(
    num_layers=3,
    num_experts=5,
    experts_per_token=2,
    hidden_size=96,
    expert_width=160,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=200,
    sliding_window=16,
)


@pytest.fixture(scope="session")
def config():
    return SMALL


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A directory in the published layout; tests must not change it."""
    directory = tmp_path_factory.mktemp("published") / "hf"
    write_synthetic(SMALL, directory)
    return directory


@pytest.fixture
def directory(tmp_path):
    """The small base of adapters, packed, in the published layout."""
    save_model(base(), "hf", tmp_path / "base", progress=False)
    return tmp_path / "base"
