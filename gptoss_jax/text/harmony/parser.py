"""Streaming parser of model output. It never raises on what a model emits, and loses no text.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>

It is always in one of three places: in a header, in a message's content, or between messages.
What it cannot read comes out as content of the current channel (no channel if none is named),
flagged. Reading a header is header.py's matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from gptoss_jax.text.harmony.events import Delta, Event, MessageEnd, MessageStart
from gptoss_jax.text.harmony.header import Header, Part, is_content_by_now, read_header
from gptoss_jax.text.harmony.messages import COMMENTARY, Message
from gptoss_jax.text.tokenizer import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    MESSAGE,
    RETURN,
    START,
    StreamDecoder,
    Tokenizer,
)

_FINISH = {RETURN: "return", ENDOFTEXT: "return", CALL: "call", END: "end"}


@dataclasses.dataclass(slots=True)
class _Open:
    """A message whose content is coming in."""

    header: Header
    # All its text is flagged; `has_odd_text` if only some of it was.
    flagged: bool
    # Opened without <|message|>: one that comes later ends the stray text.
    implicit: bool
    has_odd_text: bool = False
    pieces: list[str] = dataclasses.field(default_factory=list)

    def message(self) -> Message:
        h = self.header
        return Message(
            role=h.role,
            content="".join(self.pieces),
            name=h.name,
            recipient=h.recipient,
            channel=h.channel,
            content_type=h.content_type,
            flagged=self.flagged or self.has_odd_text,
        )


class HarmonyParser:
    """Turns token ids into messages, one token at a time.

    Not done here: stopping (the caller watches `Tokenizer.stop_ids`), and checking that a tool
    exists or that its arguments are JSON.

    Attributes:
      messages: the messages complete so far.
      finish_reason: "return", "call" or "end" after the token of that name was the last to end a
        message; None while there is none, as in output cut off by a token limit.
    """

    def __init__(self, tokenizer: Tokenizer, role: str | None = "assistant") -> None:
        """Starts right after `<|start|>` and the role, where generation starts.

        Args:
          tokenizer: must have the harmony specials.
          role: the role the prompt ended with; None to read whole conversations, which begin with
            `<|start|>` and in which other roles than the assistant's are not flagged.

        Raises:
          TokenizerError: the tokenizer lacks a harmony special.
        """
        self.messages: list[Message] = []
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._kinds = {tokenizer.token_id(t): t for t in (START, MESSAGE, CHANNEL, CONSTRAIN)}
        self._kinds |= {tokenizer.token_id(t): t for t in (END, RETURN, CALL)}
        self._kinds |= {i: t for t, i in tokenizer.specials.items() if t == ENDOFTEXT}
        self._generating = role is not None
        self._role = role
        self._parts: list[tuple[Part, str]] | None = None if role is None else [("author", "")]
        self._header_tokens = 0
        self._open: _Open | None = None
        self._events: list[Event] = []

    def push(self, token_id: int) -> list[Event]:
        """Takes the next token, any integer; returns what it made certain."""
        self._events = []
        kind = self._kinds.get(token_id)
        if kind is None:
            self._text(self._decoder.push(token_id), self._is_odd(token_id))
        else:
            self._special(kind)
        return self._events

    def finish(self) -> list[Event]:
        """Ends the output where it is; returns the remaining events. Further calls return none."""
        self._events = []
        self._flush_decoder()
        self._end(None)
        return self._events

    def parse(self, token_ids: Iterable[int]) -> list[Message]:
        """Takes all the tokens, ends, and returns the messages."""
        for token_id in token_ids:
            self.push(token_id)
        self.finish()
        return self.messages

    @property
    def text(self) -> str:
        """The answer so far: `final`, and whatever stands in no channel the format has."""
        return "".join(m.content for m in self._so_far() if m.is_answer)

    @property
    def reasoning(self) -> str:
        """The analysis so far, messages separated by a line break."""
        return "\n".join(m.content for m in self._so_far() if m.is_reasoning and m.content)

    @property
    def preamble(self) -> str:
        """The text on the commentary channel that calls no tool: meant for the user."""
        messages = [m for m in self._so_far() if m.role == "assistant"]
        return "".join(
            m.content for m in messages if m.channel == COMMENTARY and not m.is_tool_call
        )

    @property
    def tool_calls(self) -> list[Message]:
        """The messages to tools so far, one still coming in included."""
        return [m for m in self._so_far() if m.is_tool_call]

    def _so_far(self) -> list[Message]:
        return [*self.messages, self._open.message()] if self._open else self.messages

    def _is_odd(self, token_id: int) -> bool:
        # Specials without a part in harmony, and ids that stand for nothing.
        return self._tokenizer.is_special(token_id) or self._tokenizer.token_bytes(token_id) is None

    def _special(self, kind: str) -> None:
        self._flush_decoder()
        if kind in _FINISH:
            self._end(kind)
            self.finish_reason = _FINISH[kind]
        elif kind == START:
            self._end(None)
            self._begin_header(None, "author")
        elif kind == MESSAGE:
            self._message_token()
        elif self._parts is not None:
            part: Part = "channel" if kind == CHANNEL else "constrain"
            self._parts.append((part, ""))
            self._header_grew()
        elif kind == CHANNEL:
            # <|end|><|start|>assistant left out.
            role = self._open.header.role if self._open else "assistant"
            self._end(None)
            self._begin_header(role, "channel")
        else:
            self._text(CONSTRAIN, odd=True)

    def _begin_header(self, role: str | None, part: Part) -> None:
        self._role, self._header_tokens = role, 0
        self._parts = [(part, "")]

    def _message_token(self) -> None:
        if self._parts is not None:
            header = read_header(self._parts, self._role, complete=True)
            self._parts = None
            self._start_content(header)
        elif self._open is None:
            self._open_message(Header("assistant"), flagged=True, implicit=False)
        elif self._open.implicit:
            # What came before was a header after all, too odd to read: it stays as flagged text.
            header = dataclasses.replace(self._open.header)
            self._end(None)
            self._open_message(header, flagged=True, implicit=False)
        else:
            self._text(MESSAGE, odd=True)

    def _start_content(self, header: Header) -> None:
        if header.rest:
            # In a message of its own, so that a tool's arguments stay clean.
            stray = Header(header.role, header.name, channel=header.channel)
            self._open_message(stray, flagged=True, implicit=False)
            self._emit(header.rest)
            self._end(None)
        self._open_message(header, flagged=header.flagged, implicit=False)

    def _text(self, text: str, odd: bool = False) -> None:
        if self._parts is not None:
            part, before = self._parts[-1]
            self._parts[-1] = (part, before + text)
            self._header_grew()
        elif text:
            if self._open is None:
                self._open_message(Header("assistant"), flagged=True, implicit=True)
            self._emit(text, odd)

    def _header_grew(self) -> None:
        self._header_tokens += 1
        if self._parts and is_content_by_now(self._parts, self._role, self._header_tokens):
            self._give_up_header()

    def _give_up_header(self) -> None:
        """The header has no `<|message|>`: what could not be read of it is content."""
        if self._parts is None:
            return
        header = read_header(self._parts, self._role, complete=False)
        self._parts = None
        if not (header.name or header.channel or header.recipient or header.rest):
            if header.content_type is None:
                return  # says nothing: a doubled <|start|>, or a token that ends nothing
            # A type of nothing is text like any other.
            header.rest = header.content_type.removeprefix(CONSTRAIN)
            header.content_type = None
        self._open_message(header, flagged=True, implicit=True)
        self._emit(header.rest)

    def _open_message(self, header: Header, flagged: bool, implicit: bool) -> None:
        flagged = flagged or (self._generating and header.role != "assistant")
        self._open = _Open(header, flagged, implicit)
        if self.finish_reason == "end":
            self.finish_reason = None
        self._events.append(MessageStart(len(self.messages), self._open.message()))

    def _emit(self, text: str, odd: bool = False) -> None:
        if self._open is None or not text:
            return
        self._open.pieces.append(text)
        self._open.has_odd_text |= odd
        h, flagged = self._open.header, odd or self._open.flagged
        self._events.append(
            Delta(len(self.messages), text, h.role, h.channel, h.recipient, flagged)
        )

    def _flush_decoder(self) -> None:
        text = self._decoder.finish()
        if text:
            self._text(text)

    def _end(self, ended_by: str | None) -> None:
        self._give_up_header()
        if self._open is None:
            return
        message = self._open.message()
        self._events.append(MessageEnd(len(self.messages), message, ended_by))
        self.messages.append(message)
        self._open = None
