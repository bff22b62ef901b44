"""JSON whose objects have each name once: of two values one would be dropped without a word."""

import json
from typing import Any


def loads(text: bytes) -> Any:
    """What the text says.

    Args:
      text: UTF-8.

    Raises:
      ValueError: it is no JSON (a `json.JSONDecodeError`) or no UTF-8, or a name stands twice in an
        object.
    """
    return json.loads(text.decode("utf-8"), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in an object")
    return result
