"""What Orbax's threads print: of a failed write a thousand lines of what is raised as well."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any


def keep_short() -> None:
    """From here on a write says what its caller says of it, and nothing else.

    Not taken back: what is left of a failed write ends after whoever waited for it.
    """
    logging.getLogger("absl").addFilter(_is_news)
    if getattr(sys.unraisablehook, "func", None) is not _show:
        sys.unraisablehook = functools.partial(_show, sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    # It warns where a checkpoint waits for the one before, which is how training keeps two apart.
    return record.levelno not in (logging.WARNING, logging.ERROR) or "orbax" not in record.pathname


def _show(before: Callable[[Any], Any], unraisable: Any) -> None:
    # TensorStore reports each array's end to the event loop that the first failure has closed.
    if str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)
