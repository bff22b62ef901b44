"""Reads the header of a message: what stands between `<|start|>` and `<|message|>`.

Models write headers in many ways and break off in the middle of them, so this reads what it can,
in any order, and hands back the rest. Nothing here raises on what a model wrote.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from gptoss_jax.text.harmony.messages import CHANNELS, ROLES

Part = Literal["author", "channel", "constrain"]

_KNOWN_CHANNEL = re.compile(rf"\s*({'|'.join(CHANNELS)})")
_RECIPIENT = re.compile(r'\s*to=\s*([^\s{<\["]+)')
# Without `to=`: only what cannot be anything else.
_BARE_RECIPIENT = re.compile(r'\s*((?:functions|browser)\.[^\s{<\["]+|python(?=\s|$))')
_WORD = re.compile(r"\s*(\S+)")
_TYPE = re.compile(r"\s*([A-Za-z][\w.+/-]*)(?=\s|$)")
# In a header that never got its <|message|> almost any word is content instead.
_TYPE_BEFORE_JSON = re.compile(r"\s*(json)(?=\s*[{\[])")
_CONSTRAINED = re.compile(r"\s*([A-Za-z][\w.+/-]*)")
_CONSTRAINED_BEFORE_BODY = re.compile(r"\s*(json|code|[A-Za-z][\w.+/-]*(?=\s*[{\[]))")
_AUTHOR = re.compile(r"\s*([^\s:]+)(?::(\S+))?")
_TOOL_NAME = re.compile(r"(?:functions|browser)\..+|python|[^\s.]+\.[^\s.]+")

_MAX_CHANNEL_NAME = 32
# A header as long as this, or with as many unread words, has turned into content.
_MAX_TOKENS = 64
_MAX_REST_WORDS = 3
_MAX_REST_CHARS = 80


@dataclasses.dataclass(slots=True)
class Header:
    """What a header says.

    Attributes:
      role: of the message.
      name: of the tool or user that speaks.
      recipient: without its `to=`.
      channel: one of the known ones, or a made-up one (`flagged`).
      content_type: `<|constrain|>json`, or a bare word.
      rest: what could not be read; of a header that was broken off, the content.
      flagged: the role or the channel is not one the format has.
    """

    role: str
    name: str | None = None
    recipient: str | None = None
    channel: str | None = None
    content_type: str | None = None
    rest: str = ""
    flagged: bool = False


def read_header(parts: Sequence[tuple[Part, str]], role: str | None, complete: bool) -> Header:
    """Reads a header.

    Args:
      parts: its texts, each with the special token it followed ("author" for the beginning).
      role: if the text does not begin with it, because the prompt already ended with it.
      complete: it was ended by `<|message|>`. If not, content may have begun anywhere in it, and
        from the first unreadable word on all is `rest`.
    """
    header = Header(role or "assistant")
    for n, (part, text) in enumerate(parts):
        if header.rest and not complete:
            header.rest += text
            continue
        if part == "author" and role is None:
            text = _read_author(header, text, complete)
        elif part == "channel":
            text = _read_channel(header, text, complete)
        elif part == "constrain":
            text = _read_constrain(header, text, complete)
        header.rest += _read_words(header, text, complete, bare_channel=part == "author" and n == 0)
    return header


def is_content_by_now(parts: Sequence[tuple[Part, str]], role: str | None, tokens: int) -> bool:
    """Whether a header without a `<|message|>` so far should be taken for content."""
    if tokens > _MAX_TOKENS:
        return True
    rest = read_header(parts, role, complete=False).rest
    if not rest.strip():
        return False
    return (
        len(rest) > _MAX_REST_CHARS
        or len(rest.split()) > _MAX_REST_WORDS
        or any(c in rest for c in "\n{[")
    )


def _read_author(header: Header, text: str, complete: bool) -> str:
    match = _AUTHOR.match(text)
    if match is None:
        return text
    word, name = match[1], match[2]
    if word in ROLES:
        header.role, header.name = word, name
        return text[match.end() :]
    if word.replace("assistant", "") == "":
        # "assistantassistant": seen in the wild. A role said twice is not content.
        header.flagged = True
        return text[match.end() :]
    full = f"{word}:{name}" if name else word
    rest = text[match.end() :]
    if complete or _TOOL_NAME.fullmatch(full) or _RECIPIENT.match(rest):
        header.role, header.name = "tool", full
        return rest
    return text


def _read_channel(header: Header, text: str, complete: bool) -> str:
    match = _KNOWN_CHANNEL.match(text)
    if match:
        # A second channel in one header: the last known one is what the model settled on.
        header.channel = match[1]
        header.flagged = False
        return text[match.end() :]
    word = _WORD.match(text)
    made_up = complete and word is not None and len(word[1]) <= _MAX_CHANNEL_NAME
    if not made_up or word is None or header.channel is not None:
        return text
    probe = Header(header.role)
    if _read_words(probe, text[word.end() :], complete, bare_channel=False):
        # Several words: prose that strayed into the header rather than a name.
        header.flagged = True
        header.rest += text
        return ""
    header.channel, header.flagged = word[1], True
    return text[word.end() :]


def _read_constrain(header: Header, text: str, complete: bool) -> str:
    match = (_CONSTRAINED if complete else _CONSTRAINED_BEFORE_BODY).match(text)
    if match is None or header.content_type is not None:
        return text
    header.content_type = f"<|constrain|>{match[1]}"
    return text[match.end() :]


def _read_words(header: Header, text: str, complete: bool, bare_channel: bool) -> str:
    """Reads recipient and content type; returns what it cannot read."""
    rest = ""
    while text.strip():
        match = _RECIPIENT.match(text) or _BARE_RECIPIENT.match(text)
        if match and header.recipient in (None, match[1]):
            header.recipient = match[1]
        elif bare_channel and (match := _TYPE.match(text)) and match[1] in CHANNELS and complete:
            header.channel, bare_channel = match[1], False
        elif header.content_type is None and (
            match := (_TYPE if complete else _TYPE_BEFORE_JSON).match(text)
        ):
            header.content_type = match[1]
        elif complete and (match := _WORD.match(text)):
            rest += match[0]
        else:
            return rest + text
        text = text[match.end() :]
    return rest
