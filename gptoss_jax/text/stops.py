"""Strings that end a text, across the borders of the pieces it comes in."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Lets text through until a stop string, and shows nothing that may be the beginning of one.

    The string that is complete first ends the text, however that is cut into pieces.

    Attributes:
      found: the string that ended the text; None: it goes on.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Begins a text.

        Args:
          stops: none of them empty.
        """
        self.found: str | None = None
        self._stops = tuple(stops)
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> str:
        """Takes a piece; gives what is certain to stand before any stop string."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        text, self._held = self._held + text, ""
        complete = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if complete:
            _, at, self.found = min(complete)
            return text[:at]
        at = self._beginning(text)
        self._held = text[at:]
        return text[:at]

    def finish(self) -> str:
        """Ends the text; gives what was held back."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Where the longest end of the text begins that a stop string may begin with."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._firsts and any(s.startswith(text[at:]) for s in self._stops):
                return at
        return len(text)
