"""`configs/lora_nano.py` as its docstring has it: what it teaches, and what is forgotten for it."""

import os
import subprocess
import sys

import pytest

from gptoss_jax.loading import load
from gptoss_jax.nano import measure
from gptoss_jax.training.tasks import SKILLS
from gptoss_jax.training.tasks.evaluation import evaluate

PROBLEMS = 200


def exact(adapter=None) -> dict[str, float]:
    """The share of right answers, by skill."""
    model, tokenizer = load("nano", dtype="float32", adapter=adapter)
    assert tokenizer is not None
    answer = measure.answerer(model, tokenizer, temperature=0.0, seed=1)
    return {score.skill: score.exact for score in evaluate(answer, ["twice", *SKILLS], PROBLEMS)}


@pytest.mark.slow
def test_a_skill_is_learned_and_none_forgotten(tmp_path):
    words = ["--config", "configs/lora_nano.py", "--workdir", str(tmp_path), "--mesh", "data=2"]
    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "gptoss_jax.train", *words]
    subprocess.run(command, check=True, env=os.environ | two_devices)
    before, after = exact(), exact(tmp_path / "export")
    print(before, after)
    assert before.pop("twice") <= 0.05
    assert after.pop("twice") >= 0.9
    lost = {skill: before[skill] - after[skill] for skill in before}
    assert max(lost.values()) <= 0.02 + 1e-9, lost
