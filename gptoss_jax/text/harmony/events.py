"""What `HarmonyParser` reports while tokens come in."""

from __future__ import annotations

import dataclasses

from gptoss_jax.text.harmony.messages import Message


@dataclasses.dataclass(frozen=True, slots=True)
class MessageStart:
    """A message begins; `message` has its header and no content yet."""

    index: int
    message: Message


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """More text of message `index`; whole characters, never empty.

    `flagged` says this text could not be parsed and is shown as the model wrote it.
    """

    index: int
    text: str
    role: str
    channel: str | None
    recipient: str | None
    flagged: bool


@dataclasses.dataclass(frozen=True, slots=True)
class MessageEnd:
    """Message `index` is complete.

    `ended_by` is the special token that ended it, None if it was cut off (by the token limit, or by
    the next message).
    """

    index: int
    message: Message
    ended_by: str | None


Event = MessageStart | Delta | MessageEnd
