"""Errors of the text package: one line each, naming the file or field and the fix."""

from __future__ import annotations


class TextError(ValueError):
    """A mistake in what the caller gave: a file, a message, an option."""


class TokenizerError(TextError):
    """A tokenizer file is missing, damaged, or lacks a token that is needed."""


class HarmonyError(TextError):
    """A conversation cannot be rendered. Never raised for what a model emitted."""


class GrammarError(TextError):
    """A schema, expression or grammar that cannot be compiled; the message says why."""
