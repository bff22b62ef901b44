"""A turn's text from its tokens, until the model or a stop string ends it."""

import dataclasses
from collections.abc import Iterable

from gptoss_jax.text import StreamDecoder, Tokenizer
from gptoss_jax.text.harmony import Delta, Event, HarmonyParser, Message, to_turn
from gptoss_jax.text.stops import StopStrings

Piece = tuple[str, str]


class TurnReader:
    """Takes tokens, gives (channel, text): "final", "analysis", "commentary", "raw" or "to TOOL".

    Stop strings are looked for in each message of the final channel, not in reasoning or in what
    goes to tools; in raw text everywhere. Neither they nor what follows is in `text` or `messages`.

    Attributes:
      stopped: whether a stop string was found: whoever reads is to cancel the sequence.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Iterable[str] = (), *, raw: bool = False):
        """Begins a turn.

        Args:
          tokenizer: of the model.
          stops: strings that end the answer.
          raw: no harmony: all is plain text, special tokens shown by name.
        """
        self.stopped = False
        self._tokenizer = tokenizer
        self._parser = None if raw else HarmonyParser(tokenizer)
        self._decoder = StreamDecoder(tokenizer)
        self._stops = tuple(stops)
        self._watch = StopStrings(self._stops)
        self._message = -1  # the final message that is watched, by its index
        self._shown: list[str] = []  # of it, or of raw text

    def push(self, token: int) -> list[Piece]:
        """Takes a token; nothing comes any more after a stop string."""
        if self.stopped:
            return []
        if self._parser is not None:
            return self._pieces(self._parser.push(token))
        if token in self._tokenizer.stop_ids:
            return []
        return self._watched("raw", self._decoder.push(token))

    def finish(self) -> list[Piece]:
        """Ends the turn; gives what was held back."""
        if self.stopped:
            return []
        if self._parser is not None:
            return self._pieces(self._parser.finish()) + self._released("final")
        return self._watched("raw", self._decoder.finish()) + self._released("raw")

    @property
    def messages(self) -> list[Message]:
        """Those that are complete; all, once the turn has ended."""
        if self._parser is None:
            return []
        if not self.stopped:
            return self._parser.messages
        self._parser.finish()
        *before, last = self._parser.messages[: self._message + 1]
        return [*before, dataclasses.replace(last, content="".join(self._shown))]

    @property
    def text(self) -> str:
        """The answer: of the final channel, or all that is raw."""
        return "".join(self._shown) if self._parser is None else to_turn(self.messages).content

    def _pieces(self, events: Iterable[Event]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            if self.stopped:
                break
            channel = _channel(event)
            if channel is None or not isinstance(event, Delta):
                pieces += self._released("final")
            elif channel == "final":
                self._begin(event.index)
                pieces += self._watched("final", event.text)
            else:
                pieces.append((channel, event.text))
        return pieces

    def _begin(self, message: int) -> None:
        if message != self._message:
            self._watch, self._message, self._shown = StopStrings(self._stops), message, []

    def _watched(self, channel: str, text: str) -> list[Piece]:
        shown = self._watch.push(text)
        self.stopped = self._watch.found is not None
        return self._noted(channel, shown)

    def _released(self, channel: str) -> list[Piece]:
        return self._noted(channel, self._watch.finish())

    def _noted(self, channel: str, text: str) -> list[Piece]:
        if not text:
            return []
        self._shown.append(text)
        return [(channel, text)]


def _channel(event: Event) -> str | None:
    """Of what the assistant says; of a call, on any channel, whom it calls."""
    if not isinstance(event, Delta) or event.role != "assistant":
        return None
    if event.recipient is not None:
        return f"to {event.recipient}"
    return event.channel if event.channel in ("analysis", "commentary") else "final"
