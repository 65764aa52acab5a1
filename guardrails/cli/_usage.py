"""Errors of usage that do not repeat what may be a secret; depends on click and the rules for settings."""

from __future__ import annotations

import sys
from typing import Any

import click

from guardrails._util.checks import shown

__all__ = ["Commands"]


class Commands(click.Group):
    """A group whose errors show of an argument what `guardrails._util.checks.shown` shows."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """See click."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            error.message = _without_secrets(error.message)  # type: ignore[misc]
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """See click."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.message = _without_secrets(error.message)  # type: ignore[misc]
            raise


def _without_secrets(message: str) -> str:
    given = {part for argument in sys.argv[1:] for part in (argument, argument.partition("=")[2]) if part}
    for value in sorted(given, key=len, reverse=True):
        if shown(value) != repr(value):
            for form in (repr(value), ascii(value), value):
                message = message.replace(form, shown(value))
    return message
