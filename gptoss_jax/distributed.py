"""Several processes as one program: how they find each other, who prints, how they end together."""

import argparse
import http.client
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from gptoss_jax import native_output
from gptoss_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    import numpy as np

_T = TypeVar("_T")
# A process that has said nothing for so long (seconds) has ended, and so do the others.
_SILENCE = 20
# How long one waits for the others at the beginning (seconds): schedulers start them one by one.
_GATHERING = 300
# How long the metadata server may take (seconds), and what it is asked.
_METADATA, _WORKER = 5, "/computeMetadata/v1/instance/attributes/agent-worker-number"

# Bytes that are always sent of what process 0 tells the others.
_HEAD = 1 << 14

# In errors of collectives: the words of a connection whose other end is gone.
_CLOSED = ("Connection closed by peer", "Connection reset", "Socket closed", "Broken pipe")
# What JAX says where neither flags nor environment name any process.
_ALONE = "coordinator_address should be defined"

_own_stderr: TextIO | None = None  # of a process that prints nothing, for when it fails


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that name the processes of one run."""
    group = parser.add_argument_group(
        "Several processes", "found in the environment on Cloud TPU, SLURM and Kubernetes"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    group.add_argument(
        "--num-processes", type=int, metavar="N", help="of the run; 1 alone: do not look for others"
    )


def join(arguments: argparse.Namespace) -> None:
    """Meets the other processes; to be called before anything asks JAX for its devices.

    Where neither flags nor environment tell of others, nothing happens. Otherwise only process 0
    prints from here on.

    Raises:
      UsageError: flags that do not go together.
      UserError: the others cannot be met.
    """
    flags = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if flags == (None, 1, None):
        return
    _check(*flags)
    expected = flags[0] is not None or _in_cluster()
    if not expected and not _on_tpu_host():
        return
    import jax

    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    _filter_native_output()
    try:
        jax.distributed.initialize(
            *flags,
            local_device_ids=_own_devices(),
            heartbeat_timeout_seconds=_SILENCE,
            initialization_timeout=_GATHERING,
        )
    except Exception as error:  # a cluster's own client has exceptions of its own
        if not expected and _ALONE in str(error):
            return
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot join the other processes ({reason}); name them with --coordinator, "
            "--process-id and --num-processes, or say --num-processes 1 if there are none"
        ) from error
    if jax.process_index():
        _mute()


def is_first(arguments: argparse.Namespace) -> bool:
    """Whether this is the process that does a verb's work, where one does it alone.

    The others have nothing to do, and do not wait for it.

    Raises:
      UsageError: flags that do not go together.
    """
    flags = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if flags == (None, 1, None):
        return True
    _check(*flags)
    if flags[0] is not None:
        return arguments.process_id == 0
    if not _in_cluster():
        return not _on_tpu_host() or _worker_of_metadata() == "0"
    numbers = ("SLURM_PROCID", "JOB_COMPLETION_INDEX", "TPU_WORKER_ID")
    own = next((os.environ[name] for name in numbers if name in os.environ), "0")
    return own == os.environ.get("MEGASCALE_SLICE_ID", "0") == "0"


def joined() -> bool:
    """Whether this process is one of several."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def part() -> None:
    """Waits until all processes are done, and knows them no more."""
    import jax

    jax.distributed.shutdown()


def prints() -> bool:
    """Whether this is the process that prints, and writes what one process is to write."""
    return _own_stderr is None


def unmute() -> str:
    """Lets a process that fails say so; gives what to put before its words."""
    global _own_stderr
    if _own_stderr is None:
        return ""
    sys.stderr, _own_stderr = _own_stderr, None
    import jax

    return f"process {jax.process_index()}: "


def lost(error: Exception) -> str | None:
    """What to say of an error that comes of another process's end, None of any other error."""
    text = " ".join(str(error).split())
    if not joined() or not any(word in text for word in _CLOSED):
        return None
    return f"another process of this run has ended ({text})"


def of_first(thing: _T) -> _T:
    """Process 0's thing, whatever can be pickled, in every process; all must come here to get it.

    It alone reads standard input, knows the date and schedules. What it says goes where activations
    go, between the devices: there is no address to be reached at.
    """
    if not joined():
        return thing
    import jax
    import numpy as np

    own = pickle.dumps(thing) if jax.process_index() == 0 else b""
    # Nearly all that is said fits in the first of two, and few sizes are compiled.
    head = np.zeros(_HEAD, np.uint8)
    sent = len(own).to_bytes(8, "little") + own
    head[: len(sent)] = np.frombuffer(sent[:_HEAD], np.uint8)
    got = _broadcast(head)
    length = 8 + int.from_bytes(got[:8], "little")
    if length > _HEAD:
        size = _HEAD
        while size < length - _HEAD:
            size *= 4
        rest = np.zeros(size, np.uint8)
        rest[: max(0, len(sent) - _HEAD)] = np.frombuffer(sent[_HEAD:], np.uint8)
        got += _broadcast(rest)
    return pickle.loads(got[8:length])


def _broadcast(bytes_N: "np.ndarray") -> bytes:
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(bytes_N).tobytes()


def _check(coordinator: str | None, number: int | None, identity: int | None) -> None:
    given = {"--coordinator": coordinator, "--num-processes": number, "--process-id": identity}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if number is not None and number < 1:
        raise UsageError(f"--num-processes {number}: must be at least 1")
    if coordinator is None or number is None or identity is None:
        raise UsageError(f"{', '.join(given)} go together; missing: {', '.join(missing)}")
    if not coordinator.rpartition(":")[2].isdecimal() or ":" not in coordinator:
        raise UsageError(f"--coordinator {coordinator}: give HOST:PORT, as 10.0.0.2:8476")
    if not 0 <= identity < number:
        raise UsageError(f"--process-id {identity}: there are processes 0 to {number - 1}")


def _in_cluster() -> bool:
    """Whether the environment is that of one process of several."""
    env = os.environ
    slurm = env.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    hosts = env.get("TPU_WORKER_HOSTNAMES", "") + env.get("TPU_PROCESS_ADDRESSES", "")
    slices = env.get("MEGASCALE_NUM_SLICES", "1") != "1"
    return slurm or kubernetes or slices or "," in hosts


def _own_devices() -> list[int] | None:
    """[]: all of the node's, where SLURM started one task on it; JAX would take the first alone."""
    env = os.environ
    alone = env.get("SLURM_NTASKS_PER_NODE") == "1"
    alone |= "SLURM_STEP_NUM_TASKS" in env and (
        env["SLURM_STEP_NUM_TASKS"] == env.get("SLURM_STEP_NUM_NODES")
    )
    return [] if alone else None


def _on_tpu_host() -> bool:
    """Whether this may be a host of a TPU slice; only the metadata server knows of how many."""
    devices = any(Path("/dev", name).exists() for name in ("accel0", "vfio/0"))
    return devices and os.environ.get("JAX_PLATFORMS", "") != "cpu"


def _worker_of_metadata() -> str:
    """A Cloud TPU VM's number in its slice; no variable has it. "0" where nobody knows of one."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    connection = http.client.HTTPConnection(server, timeout=_METADATA)
    try:
        connection.request("GET", _WORKER, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        return answer.read().decode().strip() if answer.status == 200 else "0"
    except OSError:
        return "0"
    finally:
        connection.close()


def _filter_native_output() -> None:
    """Gives stdout and stderr to Python alone; what libraries write there goes through a filter."""
    sys.stdout.flush()
    sys.stderr.flush()
    own = [os.fdopen(os.dup(fd), "w", errors="replace", buffering=1) for fd in (1, 2)]
    # -I: isolated from the user's environment, so that it starts whatever that holds.
    command = [sys.executable, "-I", native_output.__file__]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert reader.stdin is not None
    for fd in (1, 2):
        os.dup2(reader.stdin.fileno(), fd)
    reader.stdin.close()
    sys.stdout, sys.stderr = own


def _mute() -> None:
    global _own_stderr
    _own_stderr = sys.stderr
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as long as the process lives)
