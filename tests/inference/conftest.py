"""Fixtures of the engine's tests."""

import pytest
from small import small_model

from gptoss_jax.model.transformer import GptOss


@pytest.fixture(scope="session")
def model() -> GptOss:
    return small_model()


@pytest.fixture(scope="module")
def small_pages():
    """Pages of 16 and chunks of at most 32, so that 96 tokens cross their borders."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("model.cache", "inference.memory", "inference.scheduler"):
            patch.setattr(f"gptoss_jax.{module}.PAGE", 16)
        patch.setattr("gptoss_jax.inference.scheduler.WIDTHS", (8, 32))
        yield
