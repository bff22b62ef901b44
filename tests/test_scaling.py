"""Weak scaling on paper: what is drawn from the programs of a few layers, by hand."""

import re

import pytest

from gptoss_jax import bench
from gptoss_jax.benchmarks import scaling
from gptoss_jax.model.config import PRESETS
from gptoss_jax.planning.chips import CHIPS
from gptoss_jax.planning.program import Compiled, RefusedError

pytestmark = pytest.mark.fast

LARGE = PRESETS["120b"]  # 36 layers


@pytest.fixture
def programs(monkeypatch):
    """Instead of a compiler: 10 of everything beside the layers, and so much a layer."""
    asked = []

    def compiled(config, name, shape, batch, context):
        asked.append((name, dict(shape), batch, context, config.num_layers))
        layers = config.num_layers
        return Compiled(
            peak=0,
            collectives={},
            decode_flops=1e12 * (10 + 2 * layers),
            decode_bytes=1e9 * (10 + 1 * layers),
            sent_bytes=1e6 * (10 + 3 * layers),
        )

    monkeypatch.setattr(scaling, "_compiled", compiled)
    return asked


def test_all_layers_cost_what_the_difference_of_two_depths_says(programs):
    point = scaling.measure(LARGE, "v5e", 8, {"data": 1, "expert": 8}, batch=4, context=8192)
    chip = CHIPS["v5e"]
    assert point.compute == pytest.approx(1e12 * (10 + 2 * 36) / chip.flops)
    assert point.memory == pytest.approx(1e9 * (10 + 36) / chip.bandwidth)
    assert point.links == pytest.approx(1e6 * (10 + 3 * 36) / chip.links)
    assert point.limit == "compute"
    assert point.tokens_per_second == pytest.approx(4 / point.compute)
    assert point.fits
    assert programs == [
        ("v5e:2x4", {"data": 1, "expert": 8}, 32, 8192, layers) for layers in (2, 4)
    ]


def test_a_cache_that_is_too_large_does_not_fit(programs):
    point = scaling.measure(LARGE, "v5e", 8, {"data": 1, "expert": 8}, batch=64, context=131072)
    assert not point.fits
    assert "does not fit" in scaling.row(point)


@pytest.mark.parametrize("chips", scaling.SLICES)
def test_every_slice_is_used_up_by_every_mesh(chips):
    for shape in scaling.shapes(LARGE, chips):
        product = 1
        for size in shape.values():
            product *= size
        assert product == chips
        assert LARGE.num_experts % shape["expert"] == 0


def test_the_verb_prints_a_table_row_by_row(programs, capsys):
    bench.main(bench.build_parser().parse_args(["scaling", "--chip", "v6e", "--batch", "2"]))
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert len({text.count("|") for text in (head, line, *rows)}) == 1
    assert {int(re.match(r"\| (\d+) ", text)[1]) for text in rows} == set(scaling.SLICES)


def test_a_mesh_that_the_compiler_refuses_is_a_row_of_its_own(programs, capsys, monkeypatch):
    compiled = scaling._compiled

    def compile_copies_alone(config, name, shape, batch, context):
        if shape["expert"] > 8:
            raise RefusedError("the compiler refuses this program: RESOURCE_EXHAUSTED")
        return compiled(config, name, shape, batch, context)

    monkeypatch.setattr(scaling, "_compiled", compile_copies_alone)
    bench.main(bench.build_parser().parse_args(["scaling", "--batch", "2"]))
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 * len(scaling.SLICES) - 1
    for text in rows:
        wide = "expert=8 |" not in text
        assert ("the compiler refuses" in text) == wide
        assert text.count("|") == 9
