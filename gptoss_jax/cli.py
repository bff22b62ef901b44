"""What every verb shares: help in groups, one-line errors, exit codes. Imports no JAX."""

import argparse
import sys
from collections.abc import Callable

from gptoss_jax.errors import UserError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


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


def run(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Runs a verb: 0 done, 1 failed (one line on stderr), 130 interrupted.

    A `UserError` is the user's to mend and shows only its message, as does an OSError (a full disk,
    a missing right); anything else is a defect of ours and keeps its traceback.
    """
    try:
        main(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (UserError, OSError) as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0
