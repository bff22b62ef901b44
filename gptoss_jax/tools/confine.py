"""A program of its own: shuts itself in, then becomes Python on the code in its standard input.

Of nothing but the standard library; `sandbox` starts it. What is left to the code:

- files: Python and the system's libraries to read, an empty /tmp of limited size to write; the
  user's own are not there at all (a mount namespace with a root of its own);
- no network, not even the machine's own (a network namespace without interfaces);
- itself: it sees no other process, can start none and no thread either, is nobody if the user is
  root, and gains no right by any program (namespaces of processes and users, RLIMIT_NPROC);
- so much memory, time of the processor, and bytes of files; files without a name are not counted
  with /tmp, and up to 32 can be open.

What it cannot be kept from is using a hole in the kernel.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_CLONE = {
    "NEWNS": 0x00020000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 8192, 16384, 1 << 18
_RDONLY, _NOSUID, _NODEV = 1, 2, 4  # of mount_setattr
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_NOBODY = 65534
_OPEN_FILES = 32
_MOST_FILES = 4096  # in /tmp; names and attributes take the kernel's memory

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_NEW_ROOT = "/tmp"  # there everywhere, and to be hidden anyway

# A last line that is an expression shows its value, as the notebooks do that models know; a
# traceback has the code's lines and not these.
_RUN = """
import ast, linecache, sys, traceback
code = sys.stdin.read()
linecache.cache["<code>"] = (len(code), None, code.splitlines(True), "<code>")
def show(kind, error, trace):
    while trace and trace.tb_frame.f_code.co_filename != "<code>":
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)
sys.excepthook = show
tree = ast.parse(code, "<code>")
last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
names = {"__name__": "__main__"}
exec(compile(tree, "<code>", "exec"), names)
if last is not None:
    value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
    if value is not None:
        print(repr(value))
"""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Argument: JSON of `cpu_s`, `memory`, `files` (bytes) and `ready`, a descriptor.

    "ready" is written there before the code begins; without it what is printed says what failed.
    """
    limits = json.loads(sys.argv[1])
    root = os.geteuid() == 0
    try:
        _end_with_parent()
        _enter_namespaces(root)
        _go_on_in_a_child()  # the first process of its namespace, with which all others end
        _build_root(limits["files"])
        _forbid_hoards()
        _go_on_in_a_child()  # the first is spared most signals, and so the limits
        _give_up_rights(limits, root)
        os.write(limits["ready"], b"ready")
        os.close(limits["ready"])
        os.execv(sys.executable, [sys.executable, "-I", "-u", "-X", "utf8", "-c", _RUN])
    except OSError as error:
        print(error)
        sys.exit(1)


def _check(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", str(arguments[0]))


def _go_on_in_a_child() -> None:
    """This process waits and ends as the child does; what follows is the child's."""
    pid = os.fork()
    if pid:
        _end_as(pid)
    _end_with_parent()


def _end_with_parent() -> None:
    """To be said again after every fork and change of rights, which forget it."""
    _check("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_as(pid: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _enter_namespaces(root: bool) -> None:
    """In a child, whose ids this process maps: what an ordinary user may, and root too."""
    entered, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _check("unshare", sum(_CLONE.values()))
        _end_with_parent()
        os.write(entered[1], b".")
        if not os.read(mapped[0], 1):
            sys.exit(1)
        for end in (*entered, *mapped):
            os.close(end)
        return
    os.close(entered[1])
    os.close(mapped[0])
    if os.read(entered[0], 1):
        _map_ids(pid, root)
        os.write(mapped[1], b".")
    os.close(mapped[1])
    _end_as(pid)


def _map_ids(pid: int, root: bool) -> None:
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        if kind == "gid" and not root:
            _write(f"/proc/{pid}/setgroups", "deny")
        ids = f"0 {own} 1\n{_NOBODY} {_NOBODY} 1" if root else f"0 {own} 1"
        _write(f"/proc/{pid}/{kind}_map", ids)


def _write(file: str, text: str) -> None:
    with open(file, "w") as out:
        out.write(text)


def _build_root(files: int) -> None:
    """A root of what Python needs to run, read-only, and an empty /tmp."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    shown = _shown()
    # Held open, because what lies below the new root's place is hidden from now on.
    handles = {path: os.open(path, os.O_PATH) for path in shown}
    handles |= {path: os.open(path, os.O_PATH) for path in _DEVICES}
    _mount("tmpfs", _NEW_ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.chdir(_NEW_ROOT)
    for folder, kind, options in (
        ("tmp", "tmpfs", f"size={files},nr_inodes={_MOST_FILES},mode=1777"),
        ("proc", "proc", ""),
    ):
        os.mkdir(folder)
        _mount(kind, folder, kind, _MS_NOSUID | _MS_NODEV, options)
    for path, handle in handles.items():
        _bind(f"/proc/self/fd/{handle}", path, 0 if path in _DEVICES else _NODEV)
        os.close(handle)
    for link in filter(os.path.islink, _SYSTEM):
        if not os.path.lexists(f".{link}"):
            os.symlink(os.readlink(link), f".{link}")
    _read_only(".", 0, recursive=False)
    _mount(".", "/", None, _MS_MOVE)
    os.chroot(".")
    os.chdir("/tmp")


def _shown() -> list[str]:
    """Paths of the system and of Python that exist, none within another."""
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    wanted = [p for p in (*_SYSTEM, *python) if os.path.exists(p) and not os.path.islink(p)]
    shown: list[str] = []
    for path in sorted(set(wanted)):
        if not any(path.startswith(f"{above}/") for above in shown):
            shown.append(path)
    return shown


def _bind(source: str, path: str, forbidden: int) -> None:
    target = f".{path}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    _read_only(target, forbidden, recursive=True)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def _read_only(path: str, forbidden: int, *, recursive: bool) -> None:
    # attr_set, attr_clr, propagation, userns_fd; the call has no wrapper in older C libraries.
    attributes = (ctypes.c_uint64 * 4)(_RDONLY | _NOSUID | forbidden, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    where = (_AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), size)
    _check("syscall", _SYS_MOUNT_SETATTR, *where)


def _forbid_hoards() -> None:
    """Memory that no limit of a process counts: of mounts in a namespace of its own, and of IPC."""
    _write("/proc/sys/user/max_user_namespaces", "0")
    for name, none in (("shmmni", "0"), ("msgmni", "0"), ("sem", "0 0 0 0")):
        _write(f"/proc/sys/kernel/{name}", none)
    _mount("/proc/sys", "/proc/sys", None, _MS_BIND | _MS_REC)
    _read_only("/proc/sys", _NODEV, recursive=True)


def _give_up_rights(limits: dict, root: bool) -> None:
    # Else the names' root, which an ordinary user is in here, would have them again as Python.
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if root:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _check("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _end_with_parent()
    for what, most in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(what, (most, most))
    # At the first a signal that says why, at the second the one that cannot be caught.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))


if __name__ == "__main__":
    main()
