"""Each limit of the sandbox against a real process that tries to get past it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptoss_jax.errors import UserError
from gptoss_jax.text.harmony import Message
from gptoss_jax.tools import sandbox
from gptoss_jax.tools.python import Python
from gptoss_jax.tools.sandbox import ConfinementError, Limits, run_code
from gptoss_jax.tools.tool import Toolbox


def can_confine() -> bool:
    try:
        run_code("")
    except ConfinementError:
        return False
    return True


pytestmark = pytest.mark.skipif(not can_confine(), reason="no namespaces here")

SMALL = Limits(wall_s=20.0, cpu_s=10, memory=512 << 20, files=4 << 20, output=1 << 16)


def run(code: str, **limits) -> str:
    return run_code(code, Limits(**vars(SMALL) | limits))


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("print('é', 1 + 1)", "é 2\n"),
        ("x = 6\nx * 7", "42\n"),  # as in a notebook
        ("import sys\nprint('a')\nprint('b', file=sys.stderr)", "a\nb\n"),
        ("x = 1", "[it printed nothing]"),
        ("", "[it printed nothing]"),
        ("import sys; sys.exit(7)", "[exit code 7]"),
        ("import os\nos.kill(os.getpid(), 11)", "[ended by signal 11]"),
        (
            "def f():\n    return 1 / 0\nf()",
            'Traceback (most recent call last):\n  File "<code>", line 3, in <module>\n    f()\n'
            '  File "<code>", line 2, in f\n    return 1 / 0\n           ~~^~~\n'
            "ZeroDivisionError: division by zero\n",
        ),
        (
            "x = (",
            "  File \"<code>\", line 1\n    x = (\n        ^\nSyntaxError: '(' was never closed\n",
        ),
        ("input()", "EOFError: EOF when reading a line"),
    ],
)
def test_what_is_printed_comes_back(code, printed):
    said = run(code)
    assert said == printed or (printed.startswith("EOF") and printed in said)


def test_nothing_is_left_of_an_earlier_program():
    assert run("x = 1\nopen('kept', 'w').write('1')") == "1\n"
    code = "import os\nprint('kept' in os.listdir(), 'x' in globals(), os.getcwd())"
    assert run(code) == "False False /tmp\n"


def test_an_endless_loop_is_stopped():
    began = time.monotonic()
    assert run("print('on')\nwhile True: pass", cpu_s=1) == (
        "on\n[stopped after 1 s of processor time]"
    )
    code = "import time\nprint('on')\nwhile True: time.sleep(1)"
    assert run(code, wall_s=1.5) == "on\n[stopped after 1.5 s]"
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(code, cpu_s=1) == "[ended by signal 9]"
    assert time.monotonic() - began < 15


def test_a_program_that_prints_no_more_and_goes_on_is_stopped():
    code = "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)"
    assert run(code, wall_s=1.0) == "[stopped after 1 s]"


def test_memory_ends():
    assert run("x = bytearray(400 << 20); print(len(x))") == f"{400 << 20}\n"
    assert run("x = bytearray(600 << 20)").endswith("MemoryError\n")
    assert run("x = []\nwhile True: x.append(bytes(1 << 20))").endswith("MemoryError\n")


def test_no_process_and_no_thread_can_be_started():
    code = """
import os, subprocess, threading
started = 0
for attempt in range(200):
    try:
        pid = os.fork()
    except OSError as error:
        said = str(error)
        continue
    if pid == 0:
        os._exit(0)
    started += 1
print(started, said)
for start in (lambda: subprocess.run(["/bin/true"]), threading.Thread(target=print).start):
    try:
        start()
    except (OSError, RuntimeError) as error:
        print(type(error).__name__)
"""
    assert run(code) == (
        "0 [Errno 11] Resource temporarily unavailable\nBlockingIOError\nRuntimeError\n"
    )


def test_files_end():
    assert "Errno 27" in run("open('a', 'wb').write(bytes(5 << 20))")  # one file
    code = "for i in range(9): open(str(i), 'wb').write(bytes(1 << 20))"
    assert "Errno 28" in run(code)  # all together
    assert "Errno 28" in run("for i in range(10_000): open(str(i), 'w')")  # empty ones
    code = "import os\nopen('a', 'w')\nbeside = b'x' * 60_000"
    code += "\nfor i in range(200): os.setxattr('a', f'user.{i}', beside)"
    assert "Errno" in run(code)  # what is written beside a file, where that is known at all


def test_memory_cannot_be_hoarded_where_no_limit_counts_it():
    code = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
for get in (lambda: libc.shmget(0, 1 << 20, 0o1600), lambda: libc.msgget(0, 0o1600),
            lambda: libc.semget(0, 1, 0o1600), lambda: libc.mq_open(b"/q", 0o102, 0o600, None)):
    print(get())
held = []
try:
    while True:
        held.append(os.memfd_create("x"))
except OSError as error:
    print(error.errno, len(held))
try:
    for _ in range(9):
        os.write(held[0], bytes(1 << 20))
except OSError as error:
    print(error.errno)
"""
    assert run(code).split() == ["-1"] * 4 + ["24", "29", "27"]


@pytest.mark.parametrize("where", ["/usr/x", "/x", "/etc/x", "/proc/sys/kernel/hostname"])
def test_nothing_outside_can_be_written(where):
    assert run(f"open({where!r}, 'w').write('x')").splitlines()[-1].split(":")[0] in (
        "OSError",
        "PermissionError",
    )


def test_python_itself_cannot_be_written():
    prefixes = {sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)}
    for prefix in prefixes:
        assert "Read-only file system" in run(f"open({prefix!r} + '/x', 'w')"), prefix
        assert not os.path.exists(f"{prefix}/x")


def test_the_users_files_are_not_there(tmp_path):
    (tmp_path / "secret").write_text("s3cret")
    here = Path(__file__).resolve()
    for path in (tmp_path / "secret", here, Path("/etc/passwd"), Path("/etc/hosts")):
        assert "FileNotFoundError" in run(f"print(open({str(path)!r}).read())"), path


def test_the_environment_is_not_there(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    code = """
import os, glob
print(sorted(os.environ))
for file in glob.glob("/proc/*/environ"):
    try:
        print("s3cret" in open(file).read())
    except OSError:
        pass
"""
    said = run(code)
    assert "SECRET" not in said and "PATH" in said and "True" not in said


def test_there_is_no_network(tmp_path):
    code = """
import socket
for family, where in (
    (socket.AF_INET, ("127.0.0.1", {port})),
    (socket.AF_INET, ("1.1.1.1", 53)),
    (socket.AF_INET6, ("::1", {port})),
    (socket.AF_UNIX, {unix!r}),
    (socket.AF_UNIX, "\\0gptoss-test"),
):
    s = socket.socket(family)
    s.settimeout(3)
    try:
        s.connect(where)
        print("connected", where)
    except OSError as error:
        print(error.errno)
print(len(socket.if_nameindex()))
"""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as file:
        file.bind(str(tmp_path / "s"))
        file.listen()
        with socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind("\0gptoss-test")
            abstract.listen()
            said = run(code.format(port=server.getsockname()[1], unix=str(tmp_path / "s")))
    assert "connected" not in said and said.endswith("1\n")  # its own loopback, which is down


def test_no_rights_can_be_gained():
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(os.getuid(), os.getgid(), os.getgroups())
for flag in (0x10000000, 0x00020000, 0x40000000):
    print(libc.unshare(flag))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapP", "CapE"))])
try:
    os.setuid(1)
except OSError:
    print("no")
print([p for p in os.listdir("/proc") if p.isdigit()])
"""
    uid, *rest = run(code).splitlines()
    assert uid == "65534 65534 []" or os.getuid()
    assert rest == ["-1"] * 3 + ["['0000000000000000', '0000000000000000']", "no", "['1', '2']"]


def test_endless_output_is_stopped():
    said = run("while True: print('x' * 1000)")
    assert said.endswith("[stopped: it printed more than 65536 bytes]")
    assert len(said) < (1 << 16) + 100


def children(mark: str) -> list[str]:
    """Processes of this machine whose command line has the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            found += [command] if mark in command else []
    return found


def wait_until(true) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_interrupt_ends_the_process_and_reaches_the_caller():
    limits = Limits(**vars(SMALL) | {"memory": (512 << 20) + 4096 * os.getpid()})
    mark = f'"memory": {limits.memory}'
    assert not children(mark)

    def interrupt() -> None:
        wait_until(lambda: len(children(mark)) == 3)  # and the code's own, which is Python by now
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_code("import time\ntime.sleep(60)", limits)
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    wait_until(lambda: not children(mark))


def test_it_ends_with_the_program_that_asked():
    """Killed, so that nothing of it can clean up."""
    memory = (300 << 20) + 4096 * os.getpid()
    code = (
        "from gptoss_jax.tools.sandbox import Limits, run_code\n"
        f"run_code('import time; time.sleep(60)', Limits(memory={memory}))"
    )
    asking = subprocess.Popen([sys.executable, "-c", code])
    mark = f'"memory": {memory}'
    wait_until(lambda: len(children(mark)) == 3)
    asking.kill()
    asking.wait()
    wait_until(lambda: not children(mark))


def test_where_it_cannot_be_had_it_is_refused_in_a_line(monkeypatch):
    sandbox.check()
    program = Path(__file__).with_name("no_such_program.py")
    monkeypatch.setattr(sandbox, "_PROGRAM", program)
    with pytest.raises(UserError, match="cannot be shut in here") as error:
        sandbox.check()
    assert "\n" not in str(error.value) and "leave out --tool python" in str(error.value)
    with pytest.raises(ConfinementError):
        Python().run("1")


def test_the_tool_says_what_is_true():
    tool = Python(Limits(wall_s=7))
    assert tool.recipient == "python"
    assert "ended after 7 seconds" in (tool.description.description or "")
    assert tool.run("2 ** 70") == f"{2**70}\n"


def test_what_a_model_s_message_prints_is_the_answer_to_it():
    call = Message(
        "assistant", "6 * 7", recipient="python", channel="analysis", content_type="code"
    )
    answer = Toolbox([Python()]).answer(call)
    assert (answer.name, answer.channel, answer.content) == ("python", "analysis", "42\n")


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_s_code_is_shut_in_as_root_s_is():
    """By the system's Python, as root's own may lie where nobody else comes."""
    python = "/usr/bin/python3"
    if not os.path.exists(python):
        pytest.skip("no Python of the system's")
    code = """
import ctypes, os
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")])
libc = ctypes.CDLL(None)
print([libc.unshare(flag) for flag in (0x10000000, 0x00020000)], libc.shmget(0, 9, 0o1600))
for forbidden in (os.fork, lambda: open("/proc/sys/kernel/shmmni", "w"), lambda: os.setuid(1)):
    try:
        forbidden()
    except OSError as error:
        print(error.errno)
"""
    ready, told = os.pipe()
    limits = {"cpu_s": 9, "memory": 1 << 29, "files": 1 << 22, "ready": told}
    done = subprocess.run(
        [python, "-I", "-c", sandbox._PROGRAM.read_text(), json.dumps(limits)],
        input=code,
        capture_output=True,
        text=True,
        pass_fds=[told],
        user=4321,
        group=4321,
        extra_groups=[],
        cwd="/",
        check=False,
    )
    os.close(told)
    assert os.read(ready, 9) == b"ready", done.stdout
    os.close(ready)
    assert done.stdout.splitlines() == [str(["0" * 16] * 5), "[-1, -1] -1", "11", "30", "22"]
    assert (done.stderr, done.returncode) == ("", 0)
