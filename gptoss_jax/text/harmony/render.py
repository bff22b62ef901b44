"""Messages → token ids. Structure goes by special ids, everything written by someone by `encode`.

Two modes. The default follows the format's specification. `compat="openai-harmony-0.0.8"` gives
that library's tokens exactly; it differs in
  - which analysis is dropped (history.py),
  - `recipient="all"`, which it ends with `<|call|>` although no tool is called,
  - types it prints as `any`, and functions without arguments (typescript.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_jax.text.errors import HarmonyError
from gptoss_jax.text.harmony.history import drop_as_openai_harmony, drop_finished_analysis
from gptoss_jax.text.harmony.messages import FINAL, ROLES, Compat, Message
from gptoss_jax.text.tokenizer import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    Tokenizer,
)


def render_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    for_completion: bool = True,
    keep_analysis: bool = False,
    compat: Compat | None = None,
) -> list[int]:
    """Renders a conversation.

    Args:
      tokenizer: must have the harmony specials.
      messages: system, developer, then the history; content is never read as structure.
      for_completion: end with `<|start|>assistant`, for the model to go on.
      keep_analysis: show the analysis of finished turns too.
      compat: reproduce openai-harmony 0.0.8 token for token.

    Returns:
      Token ids.

    Raises:
      HarmonyError: a role is unknown or a tool has no name.
      TokenizerError: the tokenizer lacks a harmony special.
    """
    if not keep_analysis and compat:
        messages = drop_as_openai_harmony(messages)
    elif not keep_analysis:
        messages = drop_finished_analysis(messages, for_completion)
    ids: list[int] = []
    for message in messages:
        header, body = _header(tokenizer, message), tokenizer.encode(message.content)
        ids += [*header, *body, tokenizer.token_id(_end(message, compat))]
    return ids + assistant_start(tokenizer) if for_completion else ids


def render_for_training(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    keep_analysis: bool = False,
) -> tuple[list[int], list[bool]]:
    """Renders a finished conversation and marks what the model is to learn.

    Args:
      tokenizer: must have the harmony specials.
      messages: ending with the assistant's last message; if that is a `final` it gets `<|return|>`.
      keep_analysis: show the analysis of earlier turns too.

    Returns:
      ids: token ids.
      learn: for each, whether the model would have sampled it: all of an assistant message after
        `<|start|>assistant`. An earlier `final`'s `<|end|>` is not: sampled, it was `<|return|>`.

    Raises:
      HarmonyError: a role is unknown or a tool has no name.
      TokenizerError: the tokenizer lacks a harmony special.
    """
    if not keep_analysis:
        messages = drop_finished_analysis(messages, for_completion=False)
    given = len(assistant_start(tokenizer))
    ids: list[int] = []
    learn: list[bool] = []
    for n, message in enumerate(messages):
        is_last = n == len(messages) - 1
        is_final = message.role == "assistant" and message.channel == FINAL
        end = RETURN if is_last and is_final else _end(message, None)
        piece = [*_header(tokenizer, message), *tokenizer.encode(message.content)]
        sampled = message.role == "assistant"
        ids += [*piece, tokenizer.token_id(end)]
        learn += [False] * given + [sampled] * (len(piece) - given)
        learn.append(sampled and not (is_final and end == END))
    return ids, learn


def assistant_start(tokenizer: Tokenizer) -> list[int]:
    """Ids after which the model's turn begins, `<|start|>assistant`."""
    return [tokenizer.token_id(START), *tokenizer.encode("assistant")]


def _header(tokenizer: Tokenizer, message: Message) -> list[int]:
    # The parts are encoded one by one, as openai-harmony does: a joint encoding may differ.
    ids = [tokenizer.token_id(START)]
    for part in _author(message):
        ids += tokenizer.encode(part)
    if message.recipient not in (None, "all"):
        ids += tokenizer.encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [tokenizer.token_id(CHANNEL), *tokenizer.encode(message.channel)]
    ids += _content_type(tokenizer, message.content_type)
    return [*ids, tokenizer.token_id(MESSAGE)]


def _author(message: Message) -> list[str]:
    if message.role not in ROLES:
        raise HarmonyError(f"role {message.role!r} is unknown; use one of {', '.join(ROLES)}")
    if message.role == "tool":
        if not message.name:
            raise HarmonyError("a tool message has no name; give the tool's, as functions.NAME")
        return [message.name]
    return [message.role, f":{message.name}"] if message.name else [message.role]


def _content_type(tokenizer: Tokenizer, content_type: str | None) -> list[int]:
    if content_type is None:
        return []
    if not content_type.startswith(CONSTRAIN):
        return tokenizer.encode(f" {content_type}")
    rest = tokenizer.encode(content_type.removeprefix(CONSTRAIN))
    return [*tokenizer.encode(" "), tokenizer.token_id(CONSTRAIN), *rest]


def _end(message: Message, compat: Compat | None) -> str:
    addressed = message.recipient is not None if compat else message.is_tool_call
    return CALL if message.role == "assistant" and addressed else END
