"""What `plan` counts without a compiler: bytes, arithmetic and rounds, by hand."""

import dataclasses

import pytest

from gptoss_jax import sharding
from gptoss_jax.model.config import PRESETS
from gptoss_jax.planning import arithmetic, report
from gptoss_jax.planning.jobs import Generate


def test_bytes_of_20b_counted_by_hand():
    counted = arithmetic.count(PRESETS["20b"], {}, batch=1, context=8192)
    hidden, attention, kv = 2880, 4096, 512
    # Packed: 4.25 bits a weight, two weights an expert, and their biases.
    expert = 3 * hidden * hidden * 17 // 32 + 2 * (2 * hidden + hidden)
    projections = 2 * hidden * (attention + kv) + attention + 2 * kv + hidden
    sinks, router, norms = 64, 32 * hidden + 32, 2 * hidden
    layer = 2 * (projections + sinks + router + norms)
    table = 201_088 * hidden * 2
    assert counted.weights == 24 * (layer + 32 * expert) + 2 * table + 2 * hidden
    # 64 pages of 128, and rings of 128: its own, and for its prefixes one and one a four pages; of
    # each one that is nobody's. Keys and values, bfloat16.
    position = 2 * 8 * 64 * 2
    assert counted.kv_cache == position * 12 * (65 * 128 + (1 + 1 + 1 + 16) * 128)
    read = position * 12 * (8192 + 128)
    logits = 201_088 * 4
    row = 2 * hidden
    least = 24 * (layer + 4 * expert) + table + 2 * hidden + read + row + logits
    assert counted.decode_minimum == least


def test_many_sequences_are_bound_by_arithmetic():
    """Weights and positions of a token of 20b counted by hand; all 24 layers attend to 128."""
    hidden, attention, kv = 2880, 4096, 512
    projections, router = 2 * hidden * (attention + kv), 32 * hidden
    experts = 4 * 3 * hidden * hidden
    weights = 24 * (projections + router + experts) + 201_088 * hidden
    token = 2 * weights + 24 * 128 * 2 * 2 * attention
    job = Generate(PRESETS["20b"], 1024, 128)
    row = report.estimate(job, "h100:1", None)
    assert row.tokens_per_second == pytest.approx(989e12 / token)
    few = report.estimate(dataclasses.replace(job, batch=1), "h100:1", None)
    assert few.tokens_per_second == pytest.approx(3352e9 / few.counted.decode_minimum)


def test_each_device_multiplies_its_share():
    """Of 16 devices each has two experts, four heads, one of the eight keys, and the router."""
    hidden, context, full, sliding = 2880, 8192, 12, 12
    layer = 2 * hidden * (4 + 1) * 64 + 32 * hidden + 4 * 3 * hidden * hidden / 16
    attended = (full * context + sliding * 128) * 2 * 4 * 64
    row = 24 * layer + attended + 201_088 * hidden / 16
    flops = arithmetic.decode_flops(PRESETS["20b"], {"data": 2, "expert": 16}, 6, context)
    assert flops == 2 * 3 * row


def test_the_busiest_of_several_devices():
    assert arithmetic.busiest(32, 4, 1, 1) == 4
    # Two experts, one chosen, on two devices: the busiest always has one.
    assert arithmetic.busiest(2, 1, 1, 2) == 1
    # Two rows: half of the time they choose the same.
    assert arithmetic.busiest(2, 1, 2, 1) == pytest.approx(1.5, abs=0.03)
    # The most of two such devices is 2 unless both have 1: 2 - 1/4.
    assert arithmetic.busiest(2, 1, 2, 1, copies=2) == pytest.approx(1.75, abs=0.03)


def test_each_device_has_its_share():
    whole = arithmetic.count(PRESETS["120b"], {}, 8, 8192)
    part = arithmetic.count(PRESETS["120b"], {"expert": 8}, 8, 8192)
    assert whole.weights / 8 < part.weights < whole.weights / 7.9
    assert part.kv_cache * 8 == whole.kv_cache


def test_rounds_of_decode():
    rounds = arithmetic.decode_rounds(PRESETS["20b"], {}, 1, 8192)
    assert rounds == {
        **{"decode_steps": 1, "active_experts": 4, "expert_tiles": 4, "active_tiles": 4},
        "cache_pages": 16,
    }
    # 8 pairs an expert, give or take 2.6: hardly one is chosen by more than a kernel's tile of 16.
    many = arithmetic.decode_rounds(PRESETS["20b"], {}, 64, 8192)
    assert 32 < many["active_tiles"] < 32.1
    over = arithmetic.decode_rounds(PRESETS["20b"], {"expert": 4}, 64, 8192)
    # 256 pairs over 4 devices of 8 experts in tiles of 32: nearly all experts have one.
    assert 8 <= over["expert_tiles"] < 9


def test_beyond_eight_ways_a_device_reads_one_key_and_value_head():
    """It holds all eight, and a step of decode must read an eighth of them."""
    config = PRESETS["120b"]
    shape = dict.fromkeys(sharding.AXES, 1) | {"expert": 16}
    minimum = arithmetic.count(config, shape, 16, 8192).decode_minimum
    monkeyed = arithmetic.count(dataclasses.replace(config, num_kv_heads=16), shape, 16, 8192)
    # With 16 heads each device has its own: the same bytes, but for those read.
    assert minimum == pytest.approx(monkeyed.decode_minimum, rel=1e-3)
