"""Several processes as one program: two of four fake devices each, over gloo."""

import argparse
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from gptoss_jax import convert, distributed, native_output
from gptoss_jax.errors import UsageError

QUESTION = "What is 347 + 586?"
MESH = "expert=4,tensor=2"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(*words: str, devices: int, verb: str = "generate", **env: str) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", f"gptoss_jax.{verb}", *words]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | env
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def start_two(*words: str, verb: str, **env: str) -> list[subprocess.Popen]:
    """Processes 0 and 1 of a verb, of four fake devices each."""
    named = ("--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id")
    return [start(*words, *named, str(i), devices=4, verb=verb, **env) for i in range(2)]


def test_two_processes_chat_with_whoever_is_at_the_first(tmp_path):
    """It alone reads lines and files; the mesh is of both."""
    lines = ["/effort low", "What is 347 + 586?", f"/save {tmp_path}/talk.json", "/load nowhere"]
    first, second = start_two("--mesh", MESH, verb="chat")
    shown, said = first.communicate("\n".join([*lines, "Add 12 and 9"]), timeout=300)
    silent, nothing = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), said + nothing
    assert shown == "933\n21\n" and silent == ""
    assert "error: cannot load" in said and "error" not in nothing
    assert json.loads((tmp_path / "talk.json").read_text())["effort"] == "low"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "words", "expected"),
    [
        ("drift", ("--base", "nano", "--tuned", "nano", "--mesh", MESH), "| base | tuned |"),
        ("bench", ("serve", "--users", "2", "--requests", "2", "--mesh", MESH), "users"),
    ],
)
def test_other_verbs_of_two_processes(verb, words, expected):
    both = start_two(*words, verb=verb)
    shown = [each.communicate(timeout=500) for each in both]
    assert [each.returncode for each in both] == [0, 0], shown
    assert expected in shown[0][0] and shown[1][0] == ""


def test_two_processes_answer_as_one_and_only_the_first_prints():
    sampling = ("--seed", "5", "-n", "2", "--logprobs", "2", "--logit-bias", "5=-3", "--stop", "33")
    words = (QUESTION, "--json", *sampling, "--show-reasoning", "--mesh")
    coordinator = f"localhost:{free_port()}"
    both = [
        start(
            *(*words, MESH, "--coordinator", coordinator, "--num-processes", "2"),
            *("--process-id", str(i)),
            devices=4,
        )
        for i in range(2)
    ]
    (shown, reasoning), (silent, nothing) = (each.communicate(timeout=300) for each in both)
    assert [each.returncode for each in both] == [0, 0], reasoning + nothing
    assert silent == "" and "[analysis]" not in nothing
    alone = start(*words, "data=1", devices=1)
    answers, expected = (
        [json.loads(line) for line in lines.splitlines()]
        for lines in (shown, alone.communicate()[0])
    )
    assert [one["messages"] for one in answers] == [one["messages"] for one in expected]
    assert [one["finish_reason"] for one in answers] == ["stop", "stop"]
    assert all(len(place["top"]) == 2 for one in answers for place in one["logprobs"])
    assert "[analysis]" in reasoning


LOADING = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from gptoss_jax import load, sharding
from gptoss_jax.checkpoint import safetensors_file
from gptoss_jax.checkpoint.load import open_source
from gptoss_jax.loading import checkpoint_directory

config = open_source(checkpoint_directory("nano")).config
read, plainly = [], safetensors_file._read_into

def counted(stream, entry, at, out):
    read.append(out.nbytes)
    plainly(stream, entry, at, out)

safetensors_file._read_into = counted
mesh = sharding.make_mesh(config, {"expert": 2, "tensor": 2}, jax.devices())
model, _ = load("nano", mesh=mesh)
held = 0
for leaf in jax.tree.leaves(model):
    parts = {str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}
    held += sum(parts.values())
print(sum(read), held, sum(leaf.nbytes for leaf in jax.tree.leaves(model)))
"""


def test_each_process_reads_the_bytes_of_its_own_shards_and_no_others():
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    coordinator = f"localhost:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", LOADING, coordinator, str(process)],
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for process in range(2)
    ]
    for each in both:
        printed, _ = each.communicate(timeout=120)
        assert each.returncode == 0
        read, held, whole = map(int, printed.split())
        assert read == held < 0.7 * whole


def test_the_other_process_ends_with_one_that_is_killed():
    slurm = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "JAX_LOCAL_DEVICE_IDS": ""}
    words = ("1", "--raw", "--max-tokens", "1900", "--seed", "3", "--mesh", MESH)
    first, second = (
        start(*words, devices=4, SLURM_PROCID=str(i), SLURM_LOCALID=str(i), **slurm)
        for i in range(2)
    )
    assert first.stdout is not None
    assert first.stdout.read(1)  # both are in the middle of it
    second.send_signal(signal.SIGKILL)
    second.communicate()
    began = time.monotonic()
    _, said = first.communicate(timeout=60)
    assert first.returncode not in (0, None)
    assert time.monotonic() - began < 60
    assert said.splitlines()[-1].startswith("error: another process of this run has ended")
    assert "Check failure stack trace" not in said


CONFIG = """
from pathlib import Path
import gptoss_jax
from gptoss_jax.training.settings import defaults

def get_config():
    config = defaults()
    config.tokenizer = str(Path(gptoss_jax.__file__).parent / "nano")
    config.steps, config.batch_size, config.qat_start, config.log_every = 12, 2, 0, 1
    config.eval_batches, config.eval_every = 1, 6
    config.model.update(num_layers=1, num_experts=4, hidden_size=32, expert_width=32, num_heads=4)
    config.data.kind, config.data.sequence_length = "tasks", 1280
    return config
"""


def test_two_processes_train_one_model_and_stop_together(tmp_path):
    """Another run of the same two goes on; then one process alone, with both their data."""
    file, run = tmp_path / "config.py", tmp_path / "run"
    file.write_text(CONFIG)

    def pair():
        words = ("--config", str(file), "--workdir", str(run), "--mesh", "fsdp=2,expert=2")
        words = (*words, "--num-processes", "2", "--coordinator", f"localhost:{free_port()}")
        quick = {"verb": "train", "devices": 2, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        return [start(*words, "--process-id", str(i), **quick) for i in range(2)]

    first, second = pair()
    for line in first.stderr:
        if line.startswith("step 2/"):
            second.send_signal(signal.SIGTERM)  # of one: the step they stop at is agreed on
            break
    said = first.communicate(timeout=200)[1] + second.communicate()[1]
    assert (first.returncode, second.returncode) == (0, 0), said
    step = said.split("stopped by SIGTERM after step ")[1].split(",")[0]
    first, second = pair()
    said, silent = first.communicate(timeout=200)[1], second.communicate()[1]
    assert (first.returncode, second.returncode) == (0, 0), said + silent
    assert f"resumed after step {step}" in said and "packing: validation accuracy" in said
    assert "step" not in silent
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [entry["step"] for line in lines if (entry := json.loads(line))["split"] == "train"]
    assert steps == list(range(1, 13))
    assert (run / "export" / "model.safetensors").is_file()
    words = (
        "--config",
        str(file),
        "--config.steps=13",
        "--workdir",
        str(run),
        "--mesh",
        "fsdp=2,expert=2",
    )
    alone = start(*words, verb="train", devices=4, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    said = alone.communicate(timeout=200)[1]
    assert alone.returncode == 0, said
    assert "resumed after step 12" in said and "step 13/13" in said


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("host:1", 2, None), "go together; missing: --process-id"),
        (("host:1", 0, 0), "--num-processes 0: must be at least 1"),
        ((None, 0, None), "--num-processes 0: must be at least 1"),
        ((None, None, 0), "go together; missing: --coordinator, --num-processes"),
        (("host", 2, 0), "--coordinator host: give HOST:PORT"),
        (("host:1", 2, 2), "--process-id 2: there are processes 0 to 1"),
    ],
)
def test_flags_that_name_no_process_are_refused(flags, error):
    with pytest.raises(UsageError, match=error):
        distributed._check(*flags)


def test_an_environment_of_one_process_is_none_of_several(monkeypatch):
    assert not distributed._in_cluster()
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of a batch script, which is one process
    assert not distributed._in_cluster()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert distributed._in_cluster()


def test_a_process_that_says_it_is_alone_looks_for_no_others(monkeypatch):
    """As in a Kubernetes job of one pod, which has the variables of one of many."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert distributed._in_cluster()
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    distributed.join(parser.parse_args(["--num-processes", "1"]))
    assert not distributed.joined()


SLURM, JOB = {"SLURM_STEP_NUM_TASKS": "2"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("words", "env", "first"),
    [
        ("", {}, True),
        ("", SLURM | {"SLURM_PROCID": "0"}, True),
        ("", SLURM | {"SLURM_PROCID": "1"}, False),
        ("", {"SLURM_PROCID": "1"}, True),  # of a step of one task
        ("", JOB | {"JOB_COMPLETION_INDEX": "1"}, False),
        ("--num-processes 1", JOB | {"JOB_COMPLETION_INDEX": "1"}, True),
        ("", {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, False),
        ("", {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_ID": "1"}, False),
        (
            "",
            {"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_ID": "0", "MEGASCALE_SLICE_ID": "1"},
            False,
        ),
        ("--coordinator a:1 --num-processes 2 --process-id 0", {}, True),
        ("--coordinator a:1 --num-processes 2 --process-id 1", {}, False),
    ],
)
def test_one_process_does_what_is_no_work_for_several(monkeypatch, tmp_path, words, env, first):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "tiny"
    assert convert.main(["--synthetic", "tiny", "--layers", "1", str(out), *words.split()]) == 0
    assert (out / "config.json").exists() == first


def test_a_slurm_task_that_is_alone_on_its_node_has_all_devices(monkeypatch):
    assert distributed._own_devices() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    assert distributed._own_devices() is None
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "4")
    assert distributed._own_devices() == []


@pytest.mark.parametrize(
    ("said", "is_an_end"),
    [
        ("Gloo AllReduce failed: Connection closed by peer [127.0.0.1]:1", True),
        ("UNAVAILABLE: Socket closed", True),
        ("NCCL operation ncclCommInitRank failed: unhandled system error", False),
    ],
)
def test_only_a_lost_connection_is_called_another_process_end(monkeypatch, said, is_an_end):
    monkeypatch.setattr(distributed, "joined", lambda: True)
    assert (distributed.lost(RuntimeError(said)) is not None) is is_an_end


def test_native_noise_is_left_out_and_an_end_is_one_line():
    noise = "[Gloo] Rank 1 is connected to 7 peer ranks. Expected number of connected peer ranks is"
    fatal = "F1 client.h:80] Terminating: the JAX distributed service detected fatal errors.\n"
    stack = "*** Check failure stack trace: ***\n"
    ended = list(native_output.shown(["kept\n", noise, fatal, stack]))
    assert ended[0] == "kept\n" and "another process of this run has ended" in ended[1]


def test_an_end_is_told_before_the_process_has_ended():
    def lines():
        yield "Terminating: the JAX distributed service detected fatal errors.\n"
        yield "*** Check failure stack trace: ***\n"
        raise AssertionError("read on")

    assert "another process" in next(native_output.shown(lines()))


def test_processes_that_never_met_are_told_so():
    fatal = "F1 client.h:80] Terminating: the JAX distributed service detected fatal errors.\n"
    (late,) = native_output.shown([fatal, "RPC: /xla.coordination.Service/RegisterTask\n"])
    assert "not all processes came together" in late


def without_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    return parser.parse_args([])


@pytest.mark.parametrize(
    ("status", "number", "first"), [(200, "0", True), (200, "1", False), (404, "1", True)]
)
def test_a_cloud_tpu_vm_asks_the_metadata_server_for_its_number(monkeypatch, status, number, first):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_asked = self.path.endswith("/attributes/agent-worker-number")
            is_asked &= self.headers["Metadata-Flavor"] == "Google"
            self.send_response(status if is_asked else 403)
            self.end_headers()
            self.wfile.write(number.encode())

        def log_message(self, *_):
            """Says nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        monkeypatch.setattr(distributed, "_on_tpu_host", lambda: True)
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        assert distributed.is_first(without_flags()) == first
        answering.join()


def test_where_no_metadata_server_answers_a_host_is_alone(monkeypatch):
    monkeypatch.setattr(distributed, "_on_tpu_host", lambda: True)
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    assert distributed.is_first(without_flags())
