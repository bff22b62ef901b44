"""JSON whose objects have each name once: of two values one would be dropped without a word."""

import json
from typing import Any, NoReturn


def loads(text: bytes) -> Any:
    """What the text says.

    Args:
      text: UTF-8.

    Raises:
      ValueError: it is no JSON (a `json.JSONDecodeError`) or no UTF-8, or a name stands twice in an
        object.
    """
    text_ = text.decode("utf-8")
    return json.loads(text_, object_pairs_hook=_unique, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in an object")
    return result
