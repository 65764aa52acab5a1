"""Objects that Django's settings call by their dotted names. Knows no guard."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string

from guardrails._util.checks import shown
from guardrails.errors import ConfigurationError

__all__ = ["named"]


def named(where: str, value: object) -> Any:
    """What a dotted name stands for; anything else is itself.

    Raises:
        ConfigurationError: There is nothing of that name, or it cannot be imported. It says where the name
            was found, and was caused by the error.
    """
    if not isinstance(value, str):
        return value
    try:
        return import_string(value)
    except ImportError as error:
        if shown(value) != repr(value):  # what was given is no name, and the import's error would show it
            raise ConfigurationError(
                f"{where}: {shown(value)} cannot be imported: {type(error).__name__}"
            ) from None
        raise ConfigurationError(f"{where}: {value!r} cannot be imported: {error}") from error
