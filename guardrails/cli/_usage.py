"""Usage errors without secrets. Depends on click and the rules for settings."""

from __future__ import annotations

import sys
from typing import Any

import click

from guardrails._util.checks import shown

__all__ = ["Commands"]


class Commands(click.Group):
    """A group whose errors show arguments as `guardrails._util.checks.shown` does."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Does what click does, with errors that hold no secret."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            error.message = _without_secrets(error.message)  # type: ignore[misc]
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Does what click does, with errors that hold no secret."""
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
