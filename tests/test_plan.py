"""`plan`: what it says without and with a compiler."""

import dataclasses
import importlib.util
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from gptoss_jax import cli, convert, topology
from gptoss_jax import plan as plan_verb
from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.inference.engine import engine_for
from gptoss_jax.inference.memory import FOR_PROGRAMS, room_for
from gptoss_jax.inference.programs import Programs
from gptoss_jax.loading import checkpoint_directory, load
from gptoss_jax.model.cache import pages_for
from gptoss_jax.model.config import PRESETS, read_config
from gptoss_jax.model.transformer import abstract
from gptoss_jax.planning import arithmetic, cache, picture, program, report, search
from gptoss_jax.planning.chips import CHIPS, GIB, slice_of
from gptoss_jax.planning.jobs import Generate, Train
from gptoss_jax.topology import NoCompilerError
from gptoss_jax.training import settings
from gptoss_jax.training.speed import training_flops

requires_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install '.[compile]'",
)
requires_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="the GPU compiler is not installed: pip install '.[compile]'",
)


def plan(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gptoss_jax.plan", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def counted(monkeypatch, tmp_path, capsys):
    """What `plan` prints where no compiler is installed: (words) -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(topology, "_PACKAGES", dict.fromkeys(("tpu", "gpu"), ("none_such",)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "answers"))
    keeps_programs = jax.config.jax_enable_compilation_cache

    def run(*words: str) -> tuple[int, str, str]:
        arguments = cli.parse_with_overrides(plan_verb.build_parser(), words)
        return cli.run_first(plan_verb.main, arguments), *capsys.readouterr()

    yield run
    jax.config.update("jax_enable_compilation_cache", keeps_programs)


def test_what_a_compiler_refuses():
    needed = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, temporaries (16.01G) exceeds (15.75G)"
    assert program._needed(needed) == round(16.01 * GIB)
    needed = (
        "Ran out of memory in memory space hbm. Used 17.21G of 15.75G hbm. Exceeded hbm capacity"
    )
    assert program._needed(needed) == round(17.21 * GIB)
    with pytest.raises(UserError, match="the compiler refuses this program: INTERNAL: else"):
        program._needed("INTERNAL: else")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:1", "unknown chip 'v9'"),
        ("v5e", "as v5e:2x4"),
        ("h100:x", "h100:8"),
        ("h100:2x2", "give the chips too, as h100:8"),
        ("h100:0", "as h100:8"),
        (f"h100:{'9' * 5000}", "as h100:8"),
        ("v5e:999x999", "at most 9,216 chips"),
        ("", "topology '': unknown chip ''; known: v5e"),
    ],
)
def test_a_topology_that_is_none_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        slice_of(name)


@pytest.mark.parametrize(
    ("model", "name", "mesh", "devices"),
    [
        ("120b", "v6e:2x4", "expert=8", 8),
        ("120b", "v5e:16x16", "expert=64,tensor=2,context=2", 256),
        ("20b", "v5p:8x8x4", "expert=32,tensor=2,context=4", 256),
        ("20b", "h100:9", "expert=8", 8),
    ],
)
def test_the_default_mesh_is_that_of_the_verbs(model, name, mesh, devices):
    """Slices of several hosts leave no process out, and only the mesh's devices are counted."""
    row = report.estimate(Generate(PRESETS[model], 1, 8192), name, None).as_dict()
    assert (row["mesh"], row["devices"]) == (mesh, devices)


@pytest.mark.parametrize(
    ("name", "is_one_host"),
    [
        *(("v5e:2x4", True), ("v5e:4x4", False), ("v5p:2x2x1", True), ("v5p:2x2x2", False)),
        *(("tpu7x:2x2x1", True), ("h100:8", True), ("h100:16", False)),
    ],
)
def test_the_slices_of_one_host(name, is_one_host):
    assert slice_of(name).is_one_host == is_one_host


def test_a_mesh_that_does_not_divide_is_refused():
    job = Generate(PRESETS["120b"], 1, 8192)
    with pytest.raises(UserError, match="expert=3 does not divide 128 experts"):
        report.estimate(job, "h100:8", {"expert": 3})
    with pytest.raises(UserError, match="fsdp is for --task train"):
        report.estimate(job, "h100:8", {"fsdp": 2})


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "give --model 20b, 120b or a checkpoint"),
        ("--model 20b --batch max", "--batch max goes with --topology"),
        ("--model 20b --mesh expert=2", "--mesh goes with --topology"),
        ("--model 20b --mesh=", "--mesh goes with --topology"),
        ("--model 20b --topology h100:1 --mesh=", "--mesh : '' is no axis=size"),
        (
            "--model 20b --topology h100:1 --batch 99999999999999999999",
            "--batch 9+: at most 65,536",
        ),
        ("--model 20b --task train", "--task train takes --config FILE"),
        ("--task train --config a.py --batch 4", "--batch, --context and --cache are generation's"),
        (
            "--task train --config a.py --context 4096",
            "--batch, --context and --cache are generation's",
        ),
        ("--model 20b --config.lora.rank=4", "--config goes with --task train"),
        ("--model 20b --plot memory.pdf", "give a file that ends with .png"),
        ("--model 20b --plot none/memory.png", "no such directory"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, error):
    with pytest.raises(UsageError, match=error):
        plan_verb.main(cli.parse_with_overrides(plan_verb.build_parser(), words.split()))


def test_a_topology_without_a_name_is_refused(counted):
    code, _, err = counted("--model", "20b", "--topology=")
    assert (code, err.splitlines()[-1][:32]) == (1, "error: topology '': unknown chip")


def test_a_batch_that_is_no_number_is_refused(capsys):
    with pytest.raises(SystemExit):
        plan_verb.build_parser().parse_args(["--batch", "most"])
    assert capsys.readouterr().err.endswith("argument --batch: most must be a number or max\n")


def test_the_largest_slice_and_batch_are_counted_soon():
    job = Generate(PRESETS["20b"], 65_536, 8192)
    assert not report.estimate(job, "v5p:16x24x24", None).fits


@pytest.mark.parametrize("most", [64, 100, 500])
@pytest.mark.parametrize("rise", [2, 3, 4])
@pytest.mark.parametrize("step", [1, 4])
def test_the_largest_batch(most, rise, step):
    asked = []

    def peak(batch):
        asked.append(batch)
        return 100 + 3 * batch + (5 if batch > 40 else 0)

    found = search.largest(peak, 100 + 3 * 61 + 5, most, rise, step)
    assert found == 61 // step * step
    assert len(asked) == len(set(asked)) <= 6
    assert max(asked) == most
    assert search.largest(peak, 100 + 3 * 61 + 5, 40, rise, step) == 40
    assert search.largest(peak, 102, most, rise, step) is None


@pytest.mark.parametrize(("share", "fixed", "times"), [(0.01, 0, 1), (0, 8 * GIB, 3), (0.2, 0, 4)])
def test_the_largest_batch_asks_the_compiler_only_where_arithmetic_cannot_tell(share, fixed, times):
    asked = []

    def peak(held):
        return round(held * (1 + share)) + fixed

    def compiled(job, name, shape):
        asked.append(job.batch)
        row = report.estimate(job, name, shape)
        return dataclasses.replace(row, compiled=program.Compiled(peak(row.counted.held), None))

    job = Generate(PRESETS["120b"], 1, 8192)
    found = report.largest_batch(job, "v6e:2x4", None, compiled)
    assert found.fits and found.compiled is not None
    one_more = dataclasses.replace(job, batch=found.job.batch + 1).held(found.shape)
    assert max(peak(one_more), one_more / (1 - FOR_PROGRAMS)) > found.slice.chip.capacity
    assert len(asked) <= times
    asked.clear()
    assert not report.largest_batch(job, "v5e:1x1", None, compiled).fits
    assert not asked


def test_a_network_s_parameters_are_traced_once(monkeypatch):
    traced = []
    trace = arithmetic.abstract
    monkeypatch.setattr(arithmetic, "abstract", lambda *a, **b: traced.append(1) or trace(*a, **b))
    config = dataclasses.replace(PRESETS["20b"], num_layers=3, layer_types=())
    for batch, shape in ((1, {}), (2, {}), (2, {"expert": 2})):
        arithmetic.count(config, shape, batch, 128)
    assert len(traced) == 1


def test_training_counts_three_copies_in_float32(tmp_path):
    config = settings.defaults()
    sizes = settings.model_config(config, 512)
    held = sum(x.size for x in jax.tree.leaves(abstract(sizes, packed_experts=False)))
    counted = arithmetic.count_training(sizes, {})
    assert (counted.weights, counted.optimizer) == (4 * held, 2 * 4 * held)
    over = arithmetic.count_training(sizes, {"fsdp": 4}).held
    assert 3 * held < over < 1.1 * 3 * held


def test_a_result_is_kept_until_what_it_depends_on_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def ask():
        asked.append(1)
        return {"peak": len(asked)}

    assert cache.cached({"a": 1}, ask) == cache.cached({"a": 1}, ask) == {"peak": 1}
    assert cache.cached({"a": 2}, ask) == {"peak": 2}
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    assert cache.cached({"a": 1}, ask) == {"peak": 3}
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # no place to write
    assert cache.cached({"a": 1}, ask) == {"peak": 4}


def test_the_picture_shows_every_slice(tmp_path):
    job = Generate(PRESETS["20b"], 1, 8192)
    rows = [report.estimate(job, name, None) for name in ("v5e:2x2", "h100:1")]
    picture.draw(rows, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_where_no_compiler_is_installed_arithmetic_says_so(counted):
    code, out, err = counted("--model", "20b", "--topology", "a100-80:1", "--json")
    assert code == 0, err
    assert "note: by arithmetic: no compiler for a100-80:1" in err
    row = json.loads(out)
    assert (row["fits"], row["compiled_with"], row["devices"]) == (True, None, 1)
    keys = ("capacity", "weights", "kv_cache", "temporaries", "peak", "needed")
    assert tuple(row["bytes"]) == keys


@pytest.mark.parametrize(
    ("name", "package"), [("v5e:1x1", "libtpu"), ("h100:1", "jax-cuda12-plugin")]
)
def test_a_compiler_that_is_not_here_is_in_the_extra_that_is_named(counted, name, package):
    code, _, err = counted("--model", "nano", "--topology", name, "--context", "128")
    assert code == 0
    assert f"no compiler for {name}; pip install '.[compile]'" in err
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert package in [re.split("[=<>]", wanted)[0] for wanted in extras["compile"]]
    assert "`.[compile]` installs them" in (root / "README.md").read_text()


def test_the_largest_batch_by_arithmetic_over_copies(counted):
    words = ("--model", "20b", "--topology", "a100-80:2", "--mesh", "data=2", "--batch", "max")
    code, out, err = counted(*words, "--json")
    assert code == 0, err
    row = json.loads(out)
    capacity, held = row["bytes"]["capacity"], row["bytes"]
    assert row["fits"] and row["batch"] % 2 == 0
    # One more of each copy would not fit, or leave no tenth for an engine's programs.
    one = held["kv_cache"] / (row["batch"] / 2)
    asked = (held["weights"] + held["kv_cache"] + one) / (1 - FOR_PROGRAMS)
    assert max(held["peak"] + one, asked) > 0.99 * capacity


def test_what_a_peak_below_the_capacity_lacks_is_said():
    """An engine's tenth for programs; training has none."""
    job = Generate(PRESETS["20b"], 1, 8192)
    row = report.estimate(job, "v5e:1x1", None)
    cache = round(0.95 * row.slice.chip.capacity) - row.counted.weights
    full = dataclasses.replace(row.counted, kv_cache=cache)
    compiled = program.Compiled(full.held + GIB // 4, None)
    said = dataclasses.replace(row, counted=full, compiled=compiled).as_dict()
    assert not said["fits"] and said["bytes"]["peak"] < said["bytes"]["capacity"]
    assert said["bytes"]["needed"] == math.ceil(full.held / 0.9) > said["bytes"]["capacity"]
    config = settings.load("configs/lora_20b.py")
    trained = report.estimate(Train(config, PRESETS["20b"]), "h100:1", None)
    assert trained.as_dict()["bytes"]["needed"] == trained.peak


def test_what_fits_is_what_an_engine_finds_room_for(monkeypatch):
    """Of a device with that much memory which holds the weights."""
    job = Generate(PRESETS["20b"], 1, 8192)
    found = report.largest_batch(job, "v5e:1x1", None, report.estimate)

    class Device:
        process_index, platform, device_kind = 0, "tpu", "v5e"

        def memory_stats(self):
            limit = int(found.slice.chip.capacity)
            return {"bytes_limit": limit, "bytes_in_use": found.counted.weights}

    programs = Programs(abstract(PRESETS["20b"]), None)
    for batch in (found.job.batch, found.job.batch + 1):
        asked = {"sequences": batch, "context": 8192, "pages": None, "reuse": True}
        room = room_for([programs], [Device()], **asked)
        assert (room.pages == batch * pages_for(8192)) == (batch == found.job.batch)


@pytest.mark.parametrize("layout", ["hf-bf16", "orbax"])
def test_a_directory_is_planned_as_it_is_stored(tmp_path, counted, layout):
    assert convert.main(["nano", str(tmp_path / "nano"), "--to", layout]) == 0
    words = ("--topology", "a100-80:1", "--context", "1024", "--json")
    given = (str(tmp_path / "nano"), "nano")
    stored, packed = (json.loads(counted("--model", name, *words)[1]) for name in given)
    model, _ = load(tmp_path / "nano")
    assert stored["bytes"]["weights"] == sum(x.nbytes for x in jax.tree.leaves(model))
    assert (stored["bytes"]["weights"] > packed["bytes"]["weights"]) == (layout == "hf-bf16")


def test_a_slice_whose_compiler_refuses_does_not_cost_the_table_its_other_rows(monkeypatch):
    def refuse(job, name, shape):
        raise UserError("the compiler refuses this program: INTERNAL")

    monkeypatch.setattr(report, "report", refuse)
    job = Generate(PRESETS["20b"], 8, 8192)
    monkeypatch.setattr(report, "COMMON", ("v5e:1x1", "v5e:4x4"))
    rows = {row.slice.name: row for row in report.table(job, pytest.fail)}
    assert rows["v5e:1x1"].is_close and not rows["v5e:1x1"].fits
    assert "refuses" in plan_verb._cells(rows["v5e:1x1"])[-1]
    assert rows["v5e:4x4"].fits


def test_the_table_says_once_what_installs_a_compiler(monkeypatch):
    def missing(job, name, shape):
        raise NoCompilerError("no compiler for this")

    monkeypatch.setattr(report, "report", missing)
    monkeypatch.setattr(report.Report, "is_close", True)
    said = []
    rows = report.table(Generate(PRESETS["20b"], 8, 8192), said.append)
    assert said == ["no compiler for this"]
    assert all(row.compiled is None for row in rows)


def test_a_context_that_the_model_has_not_is_refused():
    shown = plan("--model", "nano", "--topology", "v5e:1x1", "--context", "4096")
    assert shown.returncode == 2
    assert shown.stderr.endswith("error: --context 4096: the model has 2048\n")


def test_the_bound_of_an_adapter_s_training_needs_no_gradient_of_the_base():
    config = settings.load("configs/lora_20b.py")
    row = report.estimate(Train(config, PRESETS["20b"]), "v6e:1x1", None)
    flops = row.slice.chip.flops
    assert row.tokens_per_second == pytest.approx(flops / training_flops(PRESETS["20b"]) * 6 / 4)


def test_the_bound_of_training_counts_the_chips_of_the_mesh():
    config = settings.defaults()
    sizes = settings.model_config(config, 512)
    job = Train(config, sizes)
    row = report.estimate(job, "v5e:4x4", None)  # 8 rows: 8 of 16 chips
    assert row.shape == {"fsdp": 8}
    flops = 8 * row.slice.chip.flops
    assert row.tokens_per_second == pytest.approx(flops / training_flops(sizes))
    # What a step surely holds beside the state: a gradient, and the sum of gradients.
    assert row.temporaries > row.counted.optimizer


def test_a_field_of_the_config_set_beside_it_is_planned(counted):
    words = ("--task", "train", "--config", "configs/lora_20b.py", "--model", "20b")

    def trained(rank):
        field = f"--config.lora.rank={rank}"
        code, out, err = counted(*words, field, "--topology", "a100-80:1", "--json")
        assert code == 0, err
        return json.loads(out)["bytes"]["adapters"]

    assert trained(16) == 2 * trained(8)
    code, _, err = counted(*words, "--config.lora.ranks=8", "--topology", "a100-80:1")
    assert code == 2
    assert "lora.ranks" in err.splitlines()[-1]


@requires_cuda
@pytest.mark.parametrize("kind", ["h200", "a100-80"])
def test_nano_compiled_for_a_gpu(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown = plan("--model", "nano", "--topology", f"{kind}:1", "--context", "1024", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["compiled_with"].startswith("jax ")


def test_the_compiler_is_told_of_every_gpu_what_arithmetic_counts_with():
    counted = {kind: chip for kind, chip in CHIPS.items() if chip.platform == "cuda"}
    assert set(topology._GPUS) == set(counted)
    for kind, chip in counted.items():
        told = topology._GPUS[kind]
        assert chip.capacity == pytest.approx(0.95 * told["device_memory_size"])
        assert chip.bandwidth == pytest.approx(told["memory_bandwidth"], rel=1e-3)


@requires_libtpu
def test_nano_compiled_for_a_slice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ("--model", "nano", "--topology", "v5e:2x2", "--context", "1024", "--json")
    shown = plan(*words)
    assert shown.returncode == 0, shown.stderr
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/dev/null")  # no compiler is asked again
    assert plan(*words).stdout == shown.stdout
    row = json.loads(shown.stdout)
    assert row["fits"] and row["mesh"] == "expert=4"
    assert row["bytes"]["peak"] < GIB // 4
    assert row["compiled_with"].startswith("jax ")
    assert row["collectives"]["all-reduce"]["count"] == 2 * 6 + 1  # one of the embedding
    assert row["decode_bytes"]["compiled"] > row["decode_bytes"]["minimum"]


@requires_libtpu
def test_rows_that_are_computed_in_blocks(tmp_path, monkeypatch):
    """Beyond 4,096 rows, whose blocks go through the experts one after another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    job = Generate(read_config(checkpoint_directory("nano")), 4100, 128)
    row = report.report(job, "v5e:1x1", None)
    assert row.compiled.decode_bytes > row.counted.decode_minimum


def test_an_engine_allocates_what_is_planned():
    """Planned is bfloat16; on a CPU the cache is float32."""
    model, tokenizer = load("nano")
    engine = engine_for(model, tokenizer, 4, max_tokens=1024)
    planned = arithmetic.count(model.config, {}, 4, 1024).kv_cache
    assert engine.cache_bytes == 2 * planned
