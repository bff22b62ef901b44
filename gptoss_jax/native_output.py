"""What native libraries write while several processes run: noise kept from users, ends in one line.

Run as a script by `distributed.join`, between those libraries and the terminal. JAX's distributed
runtime ends a process whose peer has gone with SIGABRT and a stack trace, and gives Python no say.
"""

import sys
from collections.abc import Iterable, Iterator

_FATAL = ("distributed service detected fatal errors", "Polled an error from coordination service")
_UNREACHED = "RegisterTask"
_NOISE = ("connected peer ranks is", "could not find cuda drivers", "absl::initializelog")


def shown(lines: Iterable[str]) -> Iterator[str]:
    """The lines people are to see; once the process is being ended, one that says why."""
    lines = iter(lines)
    for line in lines:
        if any(fatal in line for fatal in _FATAL):
            if any(_UNREACHED in rest for rest in [line, *lines]):
                yield "error: not all processes came together in time; see --coordinator\n"
            else:
                yield "error: another process of this run has ended; its own output says why\n"
            return
        if not any(noise.lower() in line.lower() for noise in _NOISE):
            yield line


if __name__ == "__main__":
    for each in shown(sys.stdin):
        print(each, end="", file=sys.stderr, flush=True)
