"""`bench serve`: what it reports of a load, and lengths that no context has."""

import json

import numpy as np
import pytest

from gptoss_jax import bench, cli
from gptoss_jax.benchmarks.serving import Lengths


def run(words):
    return cli.run(bench.main, bench.build_parser().parse_args(words))


def test_it_reports_a_load(capsys, tmp_path):
    words = [
        "serve",
        "--users",
        "2",
        "--requests",
        "2",
        "--prompt",
        "8",
        "--answer",
        "12",
        "--json",
    ]
    assert run([*words, "--plot", str(tmp_path / "load.png")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answer_tokens"] == {"median": 12, "sigma": 0.75, "least": 3, "most": 48}
    (load,) = result["loads"]
    assert (load["users"], load["requests"]) == (2, 4)
    assert load["tokens_per_second"] > 0
    assert 0 < load["measured_share"] < 1
    assert 0.5 <= load["occupancy"] <= 1
    assert 0 < load["prefill_share"] < 1
    assert load["reused"] == 0
    assert load["mask_share"] < 0.01
    assert load["first_token_ms"][0] <= load["first_token_ms"][1]
    assert (tmp_path / "load.png").stat().st_size > 1000


def test_what_is_longer_than_the_context_is_refused(capsys):
    assert run(["serve", "--prompt", "300", "--answer", "300"]) == 2
    error = "error: --prompt 300 --answer 300: the longest are four times as long, together "
    assert capsys.readouterr().err.splitlines()[-1].startswith(error)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["x.foo", "nowhere/x.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_runs(capsys, name):
    assert run(["serve", "--plot", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: --plot {name}: ")


@pytest.mark.fast
@pytest.mark.parametrize("text", ["9" * 321, "1e400", "nan", "x"])
def test_a_number_larger_than_any_float_is_refused_in_a_line(capsys, text):
    with pytest.raises(SystemExit) as stopped:
        bench.build_parser().parse_args(["engine", "--requests", f"-{text}"])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_shared_beginning_is_computed_once(capsys):
    """256 of 264 tokens at the median, by all but the first."""
    words = ["--users", "4", "--requests", "2", "--prompt", "8", "--answer", "8", "--shared", "256"]
    assert run(["serve", *words, "--json"]) == 0
    (load,) = json.loads(capsys.readouterr().out)["loads"]
    assert load["reused"] > 0.7


@pytest.mark.fast
def test_lengths_are_around_the_median():
    drawn = np.array(Lengths(100).draw(4000, np.random.default_rng(0)))
    assert 95 <= np.median(drawn) <= 105
    assert drawn.min() >= 25 and drawn.max() <= 400
