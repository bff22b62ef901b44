"""Whole runs, in processes of their own: ended in every way, and what they leave."""

import dataclasses
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from gptoss_jax import train
from gptoss_jax.checkpoint import load_model
from gptoss_jax.errors import UserError
from gptoss_jax.training import fingerprint, loop, settings, sources
from gptoss_jax.training.checkpoints import Checkpoints
from gptoss_jax.training.run_directory import RunDirectory
from gptoss_jax.training.step import State, Trainer

CONFIG = """
from gptoss_jax.training.settings import defaults

def get_config():
    config = defaults()
    config.tokenizer = {tokenizer!r}
    config.steps, config.batch_size, config.accumulation = {steps}, 2, 2
    config.qat_start, config.log_every = 0, 1
    config.eval_every, config.eval_batches, config.checkpoint_every, config.keep = 15, 1, 4, 2
    config.model.update(
        num_layers=1, num_experts=4, hidden_size=32, expert_width=64, num_heads=4, num_kv_heads=2
    )
    config.model.update(head_dim=16, sliding_window=8, max_context=512)
    config.data.paths = config.data.validation_paths = ({chats!r},)
    config.data.sequence_length = 320
    config.optimizer.warmup_steps = 4
    return config
"""
STEPS = 30


@pytest.fixture(scope="module")
def config_path(tokenizer_path, chats_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    text = CONFIG.format(tokenizer=str(tokenizer_path), chats=str(chats_path), steps=STEPS)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def start(config_path, launch):
    return lambda workdir, *words: launch(config_path, workdir, "--mesh", "data=1", *words)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """An uninterrupted run: (its directory, stderr)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    process = start(workdir)
    shown = process.communicate()[1]
    assert process.returncode == 0, shown
    return workdir, shown


@pytest.fixture(scope="module")
def final_state(config_path, tokenizer):
    def of(workdir):
        config = settings.load(config_path)
        trainer = Trainer(config, settings.model_config(config, tokenizer.vocab_size))
        with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
            assert checkpoints.latest == STEPS
            return checkpoints.load(trainer.abstract_state())

    return of


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def cut_off(workdir):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "sp')


def test_a_killed_run_ends_as_one_that_was_not(
    start, whole, final_state, tmp_path, killed_at_random
):
    """Bit by bit: parameters, optimizer, the place in the data, metrics."""
    step = killed_at_random(start(tmp_path), STEPS - 2)
    cut_off(tmp_path)
    ended = start(tmp_path)
    shown = ended.communicate()[1]
    assert ended.returncode == 0, shown
    resumed = int(("0\n" + shown).split("resumed after step ")[-1].split("\n")[0])
    # Of the checkpoints of every 4 steps the newest may not have been whole yet.
    assert (step - 1) // 4 * 4 - 4 <= resumed <= STEPS
    assert shown.count("compiled the train step") == (resumed < STEPS)

    (expected, data), (state, data_2) = final_state(whole[0]), final_state(tmp_path)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert data == data_2
    measured = ("tokens_per_second", "matmul_share", "seconds_left")
    for records in zip(read(whole[0]), read(tmp_path), strict=True):
        one, other = ({k: v for k, v in r.items() if k not in measured} for r in records)
        assert one == other


def test_the_loss_falls_and_the_step_compiles_once(whole):
    workdir, shown = whole
    trained = [r["loss"] for r in read(workdir) if r["split"] == "train"]
    assert len(trained) == STEPS
    assert trained[-1] < trained[0] - 0.3
    assert shown.count("compiled the train step") == 1
    assert shown.count("compiled the train step (MXFP4 experts) in") == 1
    assert "tokens/s" in shown and "of matmul rate" in shown


def test_what_a_run_leaves(whole, config_path):
    workdir, _ = whole
    resolved = json.loads((workdir / "config.json").read_text())
    assert resolved == json.loads(json.dumps(settings.load(config_path).to_dict()))
    assert json.loads((workdir / "versions.json").read_text())["jax"] == jax.__version__
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [r["step"] for r in read(workdir) if r["split"] == "validation"] == [15, 30]
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [28, 30]
    (events,) = workdir.glob("events.out.tfevents.*")
    assert scalars(events.read_bytes()) >= {"train/loss", "train/balance", "validation/loss"}


def scalars(data):
    """The names in a file of TensorBoard events: records of length, checksum, event, checksum."""
    names, place = set(), 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
        names |= {value.tag for value in event.summary.value}
        place += length + 16
    return names


def test_the_export_loads_with_its_tokenizer(whole, tokenizer):
    model = load_model(whole[0] / "export")
    assert model.config.vocab_size == tokenizer.vocab_size
    assert len(list((whole[0] / "export").glob("*.model"))) == 1


@pytest.fixture
def run(config_path, tmp_path, capsys, monkeypatch):
    """Runs in this process, with the last line of stderr; a function stands for the train step."""

    def to_end(loss_of_step, *words, overflows=None, while_compiling=lambda: None):
        def fake(function, state, base, batch, donate):
            assert base is None
            compiled.append((int(state.step), function.keywords))
            while_compiling()

            def program(state, base, batch):
                done = state.step + 1
                loss = np.float32(loss_of_step(int(done)))
                metrics = {"loss": loss, "learning_rate": 0.1, "gradient_norm": 1.0}
                metrics["finite"] = int(done) != overflows
                return dataclasses.replace(state, step=done), metrics

            return program

        compiled = to_end.compiled = []
        monkeypatch.setattr(loop, "compiled", fake)
        code = train.main(["--config", str(config_path), "--workdir", str(tmp_path), *words])
        return code, capsys.readouterr().err.splitlines()[-1]

    return to_end


def test_a_loss_that_is_no_number_stops_the_run(run, tmp_path):
    code, line = run(lambda step: np.nan if step == 6 else 2)
    assert code == 1
    assert line.startswith("error: step 6: the loss is nan; batch 6: ")
    assert "chats.jsonl:" in line
    assert line.endswith("the checkpoint of step 4 is kept")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4, 5]
    assert (tmp_path / "loss.png").exists()


def test_an_update_that_overflows_stops_the_run(run, tmp_path):
    """In a step whose state would be saved; its loss, of the parameters before, is a number."""
    code, line = run(lambda step: 2, overflows=8)
    assert code == 1
    assert line.startswith("error: step 8: the update gives parameters or optimizer state that are")
    assert "; batch 8: " in line
    assert line.endswith("the checkpoint of step 4 is kept")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert "finite" not in read(tmp_path)[-1]


def test_experts_are_quantised_from_their_step_on(run):
    run(lambda step: np.nan if step == 6 else 2, "--config.qat_start=3")
    assert run.compiled == [(0, {"qat": False}), (3, {"qat": True})]


def test_sigterm_ends_the_step_and_saves(run, tmp_path):
    def loss(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return 2

    before = signal.getsignal(signal.SIGTERM)
    code, line = run(loss)
    assert (code, line) == (0, "stopped by SIGTERM after step 6, now saved; run again to go on")
    assert signal.getsignal(signal.SIGTERM) == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    assert not (tmp_path / "export").exists()
    code, line = run(lambda step: np.inf if step == 9 else 2)  # goes on from there
    assert line.startswith("error: step 9: the loss is inf")
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_fewer_steps_than_are_done_are_refused(run):
    assert run(lambda step: np.nan if step == 6 else 2)[0] == 1
    code, line = run(lambda step: 2, "--config.steps=3")
    assert code == 1
    assert line.startswith("error: config.steps: 3, but the run in ")
    assert line.endswith("has done 4; give at least as many, or another --workdir")


def test_sigterm_before_the_first_step_is_no_failure(run, tmp_path, monkeypatch):
    """While data is read, and while the step compiles; what was saved stays as it was."""

    def term(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    said = "stopped by SIGTERM before a step; there is nothing new to save; run again to go on"
    with monkeypatch.context() as patch:
        patch.setattr(sources, "open_sources", term)
        assert run(lambda step: 2) == (0, said)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())
    assert run(lambda step: np.nan if step == 6 else 2)[0] == 1
    assert run(lambda step: 2, while_compiling=term) == (0, said)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4]


def begin(*arguments):
    with RunDirectory(*arguments) as directory:
        directory.begin(0)
    return directory


def test_a_work_directory_of_another_run_is_refused(config, tmp_path):
    begin(tmp_path, config, "cpu")
    assert not list(tmp_path.glob("*.tmp"))
    config.batch_size *= 2  # the step did not fit the memory: nothing to go on from is lost
    begin(tmp_path, config, "cpu")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    config.steps = 50
    assert RunDirectory(tmp_path, config, "cpu").changed == ["steps"]
    config.model.num_layers = 3
    with pytest.raises(UserError, match=r"has config\.model\.num_layers=1, not 3; give another"):
        RunDirectory(tmp_path, config, "cpu")


def test_of_two_runs_in_one_directory_the_second_is_refused(config, tmp_path):
    with RunDirectory(tmp_path, config, "cpu"):
        other = RunDirectory(tmp_path, config, "cpu")
        with pytest.raises(UserError, match=r"another run is at work there; wait for its end"):
            other.__enter__()
    begin(tmp_path, config, "cpu")
    with pytest.raises(UserError, match="is no directory"):
        RunDirectory(tmp_path / "config.json", config, "cpu")


def test_a_damaged_checkpoint_is_named_with_the_one_before(run, tmp_path):
    def stop(step):
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return 2

    run(stop)
    newest = tmp_path / "checkpoints" / "10"
    (newest / "_CHECKPOINT_METADATA").unlink()
    code, line = run(lambda step: 2)
    assert code == 1
    assert line.startswith(f"error: {newest}: is damaged, or no checkpoint of this config (")
    assert line.endswith("; remove it to go on after step 8, or give another --workdir")
    shutil.rmtree(newest)
    code, line = run(lambda step: np.inf if step == 9 else 2)
    assert line.startswith("error: step 9: the loss is inf")


def test_a_run_that_is_refused_leaves_the_other_s_files(config, tmp_path):
    """What a resume finds out late: that the data are others."""
    begin(tmp_path, config, "cpu")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    before = (tmp_path / "config.json").read_bytes()
    config.data.paths = ("others.jsonl",)
    RunDirectory(tmp_path, config, "cpu")
    assert (tmp_path / "config.json").read_bytes() == before
    begin(tmp_path, config, "cpu")
    assert b"others.jsonl" in (tmp_path / "config.json").read_bytes()


def test_a_base_that_was_replaced_is_refused(config, tmp_path):
    """Under the same path, with the same config and sizes; a copy of it elsewhere is the same."""
    base, copy, workdir = (tmp_path / name for name in ("base", "copy", "run"))
    config.base, data = str(base), bytearray(range(250)) * 2000
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(data)
    shutil.copytree(base, copy)
    was = fingerprint.of_checkpoint(base)
    assert was == fingerprint.of_checkpoint(copy)
    for _ in range(2):
        begin(workdir, config, "cpu", was)
    data[len(data) // 2] ^= 1
    (base / "model.safetensors").write_bytes(data)
    now = fingerprint.of_checkpoint(base)
    with pytest.raises(UserError, match=f"began from {base} .*{was}; {base} now has {now}: put"):
        RunDirectory(workdir, config, "cpu", now)


def test_a_large_file_s_fingerprint_is_of_some_blocks(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.truncate(1 << 33)  # sparse
        seen = {fingerprint.of_checkpoint(tmp_path)}
        for place in (0, 1 << 32, (1 << 33) - 1):
            opened.seek(place)
            opened.write(b"x")
            opened.flush()
            seen.add(fingerprint.of_checkpoint(tmp_path))
    assert len(seen) == 4


def test_a_damaged_file_of_a_run_is_named(config, tmp_path):
    directory = begin(tmp_path, config, "cpu")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"ste\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: no metrics of a step; remove the line"):
        directory.begin(2)
    (tmp_path / "config.json").write_text('{"seed": 0, "st')
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        RunDirectory(tmp_path, config, "cpu")


def test_a_full_disk_is_named(config, tmp_path, file_limit):
    """The run's files are as they were; the error that ends the run stays the first."""
    config_json = tmp_path / "config.json"
    begin(tmp_path, config, "cpu")
    before = config_json.read_bytes()
    with (
        pytest.raises(UserError, match=f"^{tmp_path}: cannot be written to: .*File too large"),
        RunDirectory(tmp_path, config, "cpu") as directory,
    ):
        directory.begin(0)
        file_limit(500)
        directory.record(1, "train", {"loss": np.float32(1), "use_LE": np.ones((9, 32))})
    with pytest.raises(UserError, match=f"^{tmp_path}: cannot be written to: "):
        begin(tmp_path, config, "cpu")
    assert config_json.read_bytes() == before


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="no /proc, where not even root may write"
)
def test_a_directory_that_takes_no_file_is_named_before_a_weight_is_read(config):
    with pytest.raises(UserError, match=r"^/proc/self/net: cannot be written to: "):
        RunDirectory(Path("/proc/self/net"), config, "cpu")


def test_metrics_of_steps_that_are_lost_are_taken_back(config, tmp_path):
    directory = RunDirectory(tmp_path, config, "cpu")
    directory.begin(0)
    for step in (1, 2, 3):
        directory.record(step, "train", {"loss": np.float32(step), "use_LE": np.ones((1, 2))})
    directory.record(2, "before packing", {"loss": 2.0})  # is measured anew
    directory.close()
    cut_off(tmp_path)
    directory = RunDirectory(tmp_path, config, "cpu")
    directory.begin(2)
    directory.close()
    assert [record["loss"] for record in read(tmp_path)] == [1.0, 2.0]


def test_what_is_being_written_takes_no_device_memory(tmp_path):
    values = {name: jnp.full(100_003, number, jnp.float32) for number, name in enumerate("wmv")}
    state = State({"w": values["w"]}, {"m": values["m"]}, jnp.asarray(1, jnp.int32))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with Checkpoints(tmp_path / "kept", keep=2) as kept:
        kept.save(1, state, [{"next": 1}])
        there = [x for x in jax.live_arrays() if x.shape == (100_003,)]
        assert sum(x.sharding.memory_kind == "device" for x in there) == len(values)
    writing = tmp_path / "kept" / "2.orbax-checkpoint-tmp"  # by a run that is alive
    writing.mkdir()
    with Checkpoints(tmp_path / "kept", keep=2, reads=True) as kept:
        loaded, data = kept.load(like)
    assert writing.exists()
    assert loaded.params["w"].sharding.memory_kind == "device" and data == [{"next": 1}]
    np.testing.assert_array_equal(loaded.optimizer["m"], values["m"])


@pytest.fixture
def file_limit():
    """Sets the most bytes a file of this process may have: a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, file_limit):
    rng = np.random.default_rng(0)

    def state(step):
        values = jnp.asarray(rng.normal(size=100_000), jnp.float32)
        return State({"w": values}, {"m": values}, jnp.asarray(step, jnp.int32))

    states = {step: state(step) for step in (1, 2, 3)}
    with pytest.raises(UserError) as caught, Checkpoints(tmp_path / "kept", keep=2) as kept:
        kept.save(1, states[1], [{"next": 1}])
        kept.save(2, states[2], [{"next": 2}])  # waits until the first is written
        file_limit(50_000)
        kept.save(3, states[3], [{"next": 3}])
    shown = str(caught.value)
    assert shown.startswith(f"{tmp_path / 'kept'}: a checkpoint could not be written, that of step")
    assert "File too large" in shown
    assert "\n" not in shown
    file_limit(resource.RLIM_INFINITY)
    with Checkpoints(tmp_path / "kept", keep=2) as kept:
        assert kept.latest in (1, 2)
        loaded, data = kept.load(states[1])
    whole = int(loaded.step)
    assert data == [{"next": whole}]
    np.testing.assert_array_equal(loaded.params["w"], states[whole].params["w"])


def test_a_disk_that_is_full_on_the_way_is_one_line(start, tmp_path):
    """Orbax's threads would print a thousand."""
    process, shown = start(tmp_path), []
    with process:
        for line in process.stderr:
            shown.append(line)
            if line.startswith("step 6/"):
                # The file system's refusal to write more, from here on.
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    assert process.returncode == 1, shown
    assert len(shown) < 60, shown
    kept = [path.name for path in (tmp_path / "checkpoints").glob("?")]
    # That of step 4 is written meanwhile, or is the one that cannot be.
    assert kept in (["4"], [])
    which = "that of step 4 is whole" if kept else "there is none yet"
    begin = f"error: {tmp_path / 'checkpoints'}: a checkpoint could not be written, {which}: "
    assert shown[-1].startswith(begin), shown[-1]
    assert [line for line in shown if "error" in line] == shown[-1:]


def test_a_checkpoint_that_cannot_be_begun_is_one_line_and_an_end(start, tmp_path):
    """No directory can be made any more; Orbax's threads would wait for it for ever."""
    start(tmp_path, "--config.steps=4").communicate()
    process, shown = start(tmp_path), []
    kept, moved = tmp_path / "checkpoints", tmp_path / "moved"
    with process:
        for line in process.stderr:
            shown.append(line)
            if line.startswith("step 6/"):
                kept.rename(moved)
                kept.write_text("")
            if line.startswith("error"):
                break
        assert process.wait(60) == 1, shown
    assert shown[-1].startswith(f"error: {kept}: a checkpoint could not be written, that of step 4")
    assert [path.name for path in moved.glob("?")] == ["4"]


def test_a_work_directory_that_cannot_be_made_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, line = run(lambda step: 2, "--workdir", str(tmp_path / "file" / "run"))
    assert code == 1
    named = tmp_path / "file" / "run"
    assert line.startswith(f"error: {named}: cannot be written to: [Errno 20] Not a directory: ")
