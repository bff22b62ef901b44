"""16,384 tokens at gpt-oss's attention widths; `bench context` takes 131,072."""

import json
import os
import subprocess
import sys


def test_a_long_prompt_ends_as_it_does_all_at_once():
    command = [sys.executable, "-m", "gptoss_jax.bench", "context", "--tokens", "16384", "--json"]
    # Optimised, which the suite's own programs are not.
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    run = json.loads(done.stdout)
    assert run["tokens"] == 16_384
    # One full layer of keys and values in float32, and one ring.
    assert run["cache_bytes"] == (129 * 128 + 2 * 128) * 2 * 8 * 64 * 4
    assert run["error"] <= 1e-5
    assert run["max_resident_bytes"] < 2 * 2**30
