"""What every verb shares: help in groups, one-line errors, exit codes. Imports no JAX."""

import argparse
import contextlib
import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from gptoss_jax import distributed
from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.text.errors import TextError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_OVERRIDE = "--config."


def parser(verb: str, description: str, examples: list[str]) -> argparse.ArgumentParser:
    """An argument parser whose help ends with examples; wrong usage exits with 2."""
    commands = "\n".join(f"  python -m gptoss_jax.{verb} {example}" for example in examples)
    result = argparse.ArgumentParser(
        prog=f"python -m gptoss_jax.{verb}",
        description=description,
        epilog=f"examples:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return result


def add_parallelism(parser: argparse.ArgumentParser) -> None:
    """The flags of verbs that run a model: its mesh, and the processes of one run."""
    add_mesh(parser)
    distributed.add_flags(parser)


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """The flag of the mesh, where one process is all there is."""
    group = parser.add_argument_group("Parallelism")
    group.add_argument(
        "--mesh",
        metavar="AXIS=N,…",
        help="as expert=4,tensor=2; without it all devices, chosen by the model's sizes",
    )


def add_cache(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flag of the format of what is cached."""
    parser.add_argument(
        "--cache",
        choices=["int8", "fp8"],
        help="keys and values of full layers in 8 bits: half the memory of a long context",
    )


def add_overrides(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The help of what `parse_with_overrides` takes beside `--config FILE`."""
    parser.add_argument(
        f"{_OVERRIDE}NAME",
        metavar="VALUE",
        help="a field instead of the file's, as --config.data.seed=1; lists are a,b,c",
    )


def parse_with_overrides(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> argparse.Namespace:
    """Parses flags; `overrides` has the pairs of `--config.a=1` or `--config.a 1`."""
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(_OVERRIDE):
            rest.append(word)
            continue
        field, equals, value = word.removeprefix(_OVERRIDE).partition("=")
        overrides.append((field, value if equals else next(words, "")))
    arguments = parser.parse_args(rest)
    arguments.overrides = overrides
    return arguments


def number(kind: type[int] | type[float], least: float, most: float | None = None):
    """An argparse type: a number in least..most."""

    def parse(text: str) -> int | float:
        value = kind(text)
        # Compared, because whole numbers may be larger than any float.
        finite = -math.inf < value < math.inf
        if not (finite and least <= value <= (value if most is None else most)):
            span = f"at least {least:g}" if most is None else f"in {least:g}..{most:g}"
            raise argparse.ArgumentTypeError(f"{text} must be {span}")
        return value

    parse.__name__ = kind.__name__  # argparse's "invalid int value"
    return parse


def check_picture(file: Path | None) -> None:
    """Raises a UsageError if a picture cannot be written there; None: none is wanted."""
    if file is not None and file.suffix != ".png":
        raise UsageError(f"--plot {file}: give a file that ends with .png")
    if file is not None and not file.absolute().parent.is_dir():
        raise UsageError(f"--plot {file}: no such directory")


def dimmed(text: str, stream: TextIO) -> str:
    """The text in a terminal's faint style, where the stream is one and colour is wanted."""
    faint = stream.isatty() and "NO_COLOR" not in os.environ
    return f"\x1b[2m{text}\x1b[0m" if faint else text


def run_first(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """`run`, of a verb that the first of several processes does alone."""

    def work(arguments: argparse.Namespace) -> None:
        if distributed.is_first(arguments):
            main(arguments)

    return run(work, arguments)


def run(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Runs a verb: 0 done, 1 failed (one line on stderr), 2 wrongly used, 130 interrupted.

    A `UserError` or `TextError` is the user's to mend and shows only its message, as does an
    OSError (a full disk, a missing right); anything else is a defect of ours and keeps its
    traceback.
    """
    # JAX reserves 75 % of a GPU by default, which is less than 120b needs of 80 GB.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    # A terminal or file that cannot hold a character gets a question mark for it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        main(arguments)
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader, `head` perhaps, has what it wanted
        _leave(EXIT_FAILED)
    except Exception as error:
        known = isinstance(error, UserError | TextError | OSError)
        said = str(error) if known else distributed.lost(error)
        several, which = distributed.joined(), distributed.unmute()
        if said is not None and not arguments.debug:
            print(f"{which}error: {said}", file=sys.stderr)
        elif several:
            traceback.print_exc()
        else:
            raise
        code = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
        # The others are not waited for: they may be waiting for this one.
        return _leave(code) if several else code
    if distributed.joined():
        # A call may be under way, as after a stop string; the interpreter's end would end its
        # threads where they are, and the process with them.
        distributed.part()
        _leave(0)
    return 0


def leave(code: int) -> NoReturn:
    """Ends a verb's process; one that failed at once.

    The interpreter's own end would wait for threads: Orbax's wait for a checkpoint that cannot be
    written any more.
    """
    if code == EXIT_FAILED:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Ends the process at once.

    The interpreter's own end waits for the device call under way: a minute, if that is a prefill
    chunk of 20b on two cores.
    """
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
