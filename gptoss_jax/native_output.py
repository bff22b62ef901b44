"""What native libraries write while several processes run: noise kept from users, ends in one line.

Run as a script by `distributed.join`, between those libraries and the terminal. JAX's distributed
runtime ends a process whose peer has gone with SIGABRT and a stack trace, and gives Python no say.
"""

import io
import itertools
import signal
import sys
from collections.abc import Iterable, Iterator

_FATAL = ("distributed service detected fatal errors", "Polled an error from coordination service")
_UNREACHED = "RegisterTask"
_STACK = "stack trace"  # follows all that the error says
_NOISE = ("connected peer ranks is", "could not find cuda drivers", "absl::initializelog")


def shown(lines: Iterable[str]) -> Iterator[str]:
    """The lines people are to see; once the process is being ended, one that says why."""
    lines = iter(lines)
    for line in lines:
        if any(fatal in line for fatal in _FATAL):
            said = [line, *itertools.takewhile(lambda rest: _STACK not in rest, lines)]
            if any(_UNREACHED in each for each in said):
                yield "error: not all processes came together in time; see --coordinator\n"
            else:
                yield "error: another process of this run has ended; its own output says why\n"
            return
        if not any(noise.lower() in line.lower() for noise in _NOISE):
            yield line


if __name__ == "__main__":
    # Meant for the process it serves, which may have things to say until it has ended.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    assert isinstance(sys.stdin, io.TextIOWrapper)
    sys.stdin.reconfigure(errors="replace")
    for said in shown(sys.stdin):
        print(said, end="", file=sys.stderr, flush=True)
    for _ in sys.stdin:  # to the end, so that nobody writes into a closed pipe
        pass
