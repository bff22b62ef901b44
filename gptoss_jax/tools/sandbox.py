"""Code of a model's in a process that can do no harm; see `confine` for what is kept from it."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

from gptoss_jax.errors import UserError

_PROGRAM = Path(__file__).with_name("confine.py")
# Threads cannot be started, which numpy's and others' libraries otherwise try.
_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "TMPDIR": "/tmp",
}
_CHUNK = 1 << 16


class ConfinementError(RuntimeError):
    """The system does not allow what is needed to shut a process in."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a piece of code may take.

    Attributes:
      wall_s: seconds until it is ended.
      cpu_s: seconds of a processor, whole ones.
      memory: bytes of address space.
      files: bytes of all its files, which are in memory too; of each one that has no name.
      output: bytes it may print.
    """

    wall_s: float = 60.0
    cpu_s: int = 30
    memory: int = 1 << 30
    files: int = 32 << 20
    output: int = 1 << 20


def check() -> None:
    """Raises a UserError where code cannot be shut in."""
    try:
        run_code("")
    except ConfinementError as error:
        raise UserError(
            f"python cannot be shut in here ({error}): it needs Linux from 5.19 and namespaces, "
            "which containers and some distributions forbid; allow them (docker: --security-opt "
            "seccomp=unconfined --security-opt systempaths=unconfined; Ubuntu: sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0), or leave out --tool python"
        ) from None


def run_code(code: str, limits: Limits | None = None) -> str:
    """Runs Python code; what it printed, errors included, and how it ended if not by itself.

    Whatever ends this call ends the process.

    Raises:
      ConfinementError: nothing was run.
    """
    limits = limits or Limits()
    if sys.platform != "linux":
        raise ConfinementError(f"this is {sys.platform}")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(os.fdopen(os.memfd_create("code"), "w+b"))
        source.write(code.encode(errors="replace"))
        source.seek(0)
        ready, told = os.pipe()
        stack.callback(os.close, ready)
        try:
            process = _start(source.fileno(), told, limits)
        finally:
            os.close(told)
        stack.callback(_end, process)
        printed, why = _read(process, limits)
        text = printed.decode(errors="replace")
        if why is None and not os.read(ready, 16):
            raise ConfinementError(text.strip() or "no reason given")
    return _told(text, why or _how_it_ended(process.returncode, limits))


def _start(source: int, told: int, limits: Limits) -> subprocess.Popen:
    asked = {"cpu_s": limits.cpu_s, "memory": limits.memory, "files": limits.files, "ready": told}
    return subprocess.Popen(
        [sys.executable, "-I", str(_PROGRAM), json.dumps(asked)],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_ENVIRONMENT,
        cwd="/",
        pass_fds=[told],
        # A group of its own, to be ended as one; Ctrl-C is not for it but for whoever waits.
        start_new_session=True,
    )


def _end(process: subprocess.Popen) -> None:
    """Ends it and, as its namespace of processes goes with it, all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]


def _read(process: subprocess.Popen, limits: Limits) -> tuple[bytes, str | None]:
    """(what it printed, why it is to be stopped or None once it has ended)."""
    until = time.monotonic() + limits.wall_s
    late = f"stopped after {limits.wall_s:g} s"
    pipe = process.stdout
    printed = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)  # pyright: ignore[reportArgumentType]
        while selector.select(max(0.0, until - time.monotonic())):
            piece = os.read(pipe.fileno(), _CHUNK)  # pyright: ignore[reportOptionalMemberAccess]
            if not piece:
                break
            printed += piece
            if len(printed) > limits.output:
                most = f"stopped: it printed more than {limits.output} bytes"
                return bytes(printed[: limits.output]), most
        else:
            return bytes(printed), late
    try:  # it may have closed what it prints to and go on
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(printed), late
    return bytes(printed), None


def _how_it_ended(code: int, limits: Limits) -> str | None:
    if code == 128 + signal.SIGXCPU:
        return f"stopped after {limits.cpu_s} s of processor time"
    if code > 128:
        return f"ended by signal {code - 128}"
    # After 1 there is a traceback.
    return f"exit code {code}" if code > 1 else None


def _told(printed: str, note: str | None) -> str:
    if note is None:
        return printed or "[it printed nothing]"
    line_end = "" if not printed or printed.endswith("\n") else "\n"
    return f"{printed}{line_end}[{note}]"
