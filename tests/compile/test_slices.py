"""The published models on the slices they are for, every layer, by the real compilers."""

import functools
import importlib.util

import jax
import pytest

from gptoss_jax.model.config import PRESETS
from gptoss_jax.planning import program, report, traffic
from gptoss_jax.planning.chips import GIB
from gptoss_jax.planning.hlo import Module
from gptoss_jax.planning.jobs import Generate, Job, Train
from gptoss_jax.training import settings

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin")),
        reason="the accelerators' compilers are not installed: pip install '.[compile]'",
    ),
]
# Model, slice, batch, context.
SLICES = [
    ("120b", "v5e:2x4", 8, 8192),
    ("120b", "v6e:2x2", 8, 8192),
    ("120b", "v5p:1x1x1", 8, 8192),
    ("120b", "tpu7x:1x1x1", 8, 8192),
    ("120b", "h100:1", 8, 8192),
    ("120b", "h100:8", 8, 8192),
    ("120b", "v5p:2x2x1", 8, 8192),
    ("120b", "tpu7x:2x2x1", 8, 8192),
    ("20b", "v5e:1x1", 1, 8192),
    ("20b", "v6e:1x1", 1, 131072),
    ("20b", "v6e:1x1", 64, 8192),
    ("20b", "h100:1", 1, 131072),
    ("20b", "h100:1", 64, 8192),
]
# Config, model, slice, rank (0: no adapter), tokens a row, GiB a device of the README.
TRAINED = [
    ("lora_20b", "20b", "v6e:1x1", 16, 8192, 18.88),
    ("lora_20b", "20b", "h100:1", 16, 16384, 33.44),
    ("lora_120b", "120b", "v5e:4x4", 16, 2048, 6.93),
    ("lora_120b", "120b", "v6e:2x4", 16, 2048, 11.90),
    ("qat_20b", "20b", "v6e:4x4", 0, 2048, 25.21),
]
RATIO = 1.6  # of what decode moves to the least that it must


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """A compiler without a device cannot load what the cache holds, and warns."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def asked(job: Job, name: str) -> report.Report:
    """What `plan` reports, compiled anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "/dev/null")
        found = report.report(job, name, None)
    print(name, found.as_dict())
    return found


@functools.cache
def reported(model: str, name: str, batch: int, context: int) -> tuple[dict, list]:
    """(What `plan` reports, what decode's instructions write)."""
    written, moved = [], traffic.moved

    def noted(module: Module, trips) -> float:
        written.extend(writes(module, trips))
        return moved(module, trips)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program.traffic, "moved", noted)
        found = asked(Generate(PRESETS[model], batch, context), name)
    return found.as_dict(), written


def compiled(*case) -> dict:
    return reported(*case)[0]


def writes(module: Module, trips) -> list[tuple[int, bool, str]]:
    """What each instruction outside fusions writes to memory: bytes, whether packed, its name.

    Of what is updated in place, the update alone.
    """
    counter = traffic._Counter(module, trips)
    fused = {
        one.called[0]
        for computation in module.computations.values()
        for one in computation.values()
        if one.opcode == "fusion"
    }
    found = []
    for name, computation in module.computations.items():
        if name in fused:
            continue
        for one in computation.values():
            if one.opcode in {*traffic._FREE, "while", "conditional", "call", "async-start"}:
                continue
            if one.opcode == "fusion":
                nbytes = counter._written(one, module.computations[one.called[0]])
            elif one.opcode in ("dynamic-update-slice", "scatter"):
                place = 1 if one.opcode == "dynamic-update-slice" else -1
                nbytes = traffic._result(computation[one.operands[place]])
            elif one.opcode == "copy-start":  # what it gives, and what it was given
                nbytes = one.arrays[0].nbytes * one.arrays[0].in_memory
            else:
                nbytes = traffic._in_memory(one)
            found.append((nbytes, one.packed, f"{one.opcode} {one.name} {one.op_name}"))
    return found


@pytest.mark.parametrize("case", SLICES, ids=lambda case: "-".join(map(str, case)))
def test_it_fits_with_two_all_reduces_a_layer(case):
    row = compiled(*case)
    assert row["fits"]
    counts = {kind: found["count"] for kind, found in row["collectives"].items()}
    if row["devices"] == 1:
        assert not counts
    # A reduce-scatter and an all-gather are one. Beside them one of the embedding and the logits'.
    halves = max(counts.pop("reduce-scatter", 0), counts.pop("all-gather", 0))
    assert counts.pop("all-reduce", 0) + halves <= 2 * PRESETS[case[0]].num_layers + 2
    assert not counts


def test_what_does_not_fit_says_by_how_much():
    row = compiled("20b", "v5e:1x1", 64, 8192)
    assert not row["fits"]
    assert row["bytes"]["peak"] > row["bytes"]["capacity"]
    assert row["bytes"]["peak"] == pytest.approx(
        sum(row["bytes"][kind] for kind in ("weights", "kv_cache", "temporaries")), rel=0.02
    )


# There XLA keeps little in VMEM from one operation to the next: 1.65 times the least.
THROUGH_MEMORY = "v5p"


@pytest.mark.parametrize(
    "case",
    [case for case in SLICES if not case[1].startswith(THROUGH_MEMORY)],
    ids=lambda case: "-".join(map(str, case)),
)
def test_what_decode_moves(case):
    moved = compiled(*case)["decode_bytes"]
    assert moved["minimum"] <= moved["compiled"] <= RATIO * moved["minimum"]


@pytest.mark.parametrize(
    "case", [case for case in SLICES if case[2] <= 8], ids=lambda case: "-".join(map(str, case))
)
def test_decode_makes_no_weight_anew(case):
    """Nothing larger than a dequantised expert, and of packed bytes not even a hundredth of all."""
    config = PRESETS[case[0]]
    expert = 2 * 3 * config.expert_width * config.hidden_size  # bfloat16
    packed = config.num_experts * expert // 4
    written = reported(*case)[1]
    assert len(written) > 100
    assert [one for one in written if one[0] > expert] == []
    assert [one for one in written if one[1] and one[0] > packed // 100] == []


def test_a_step_of_20bs_adapter_fits_one_v5e_beside_the_packed_weights():
    config = settings.load("configs/lora_20b.py")
    assert (config.lora.rank, config.batch_size, config.data.sequence_length) == (8, 1, 2048)
    found = asked(Train(config, PRESETS["20b"]), "v5e:1x1")
    assert found.fits
    assert found.peak - found.counted.weights <= 2.5 * GIB


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: "-".join(map(str, case[:3])))
def test_a_step_of_training_fits(case):
    name, model, where, rank, length, gib = case
    config = settings.load(f"configs/{name}.py")
    config.data.sequence_length = length
    if rank:
        config.lora.rank = rank
    found = asked(Train(config, PRESETS[model]), where)
    assert found.fits
    assert found.peak == pytest.approx(gib * GIB, rel=0.02)
