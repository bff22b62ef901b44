"""How much memory this process had at most."""

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")


def most_resident() -> int:
    """Bytes.

    Linux's count of the program's own: `getrusage` begins with what the parent had at the fork.
    """
    if _STATUS.exists():
        named = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(named["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
