"""Guesses of what a sequence says next: what followed the last time it said the same."""

from collections.abc import Sequence

# Tokens that must be the same for what followed them to be guessed.
_GRAM = 3


class Lookup:
    """Where each run of tokens of a sequence last ended; takes the sequence as it grows."""

    def __init__(self):
        """Of an empty sequence."""
        self._end_of: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def guess(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """Up to `most` tokens that may come next, none where nothing was said before.

        Args:
          tokens: all of the sequence; at the next call the same and more.
          most: how many are of use.
        """
        # The last run itself is where a guess is asked for, not one.
        for end in range(max(self._seen, _GRAM), len(tokens)):
            self._end_of[tuple(tokens[end - _GRAM : end])] = end
        self._seen = max(self._seen, len(tokens))
        end = self._end_of.get(tuple(tokens[-_GRAM:]))
        return tokens[end : end + most] if end is not None else ()
