"""Imports objects that Django's settings give by dotted name. Must not import a guard."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string

from guardrails._util.checks import shown
from guardrails.errors import ConfigurationError

__all__ = ["named"]


def named(where: str, value: object) -> Any:
    """Returns the object of a dotted name, and any other value as it is.

    Raises:
        ConfigurationError: The name cannot be imported. The message gives the setting.
    """
    if not isinstance(value, str):
        return value
    try:
        return import_string(value)
    except ImportError as error:
        if shown(value) != repr(value):  # not a name, perhaps a secret, which the error would show
            raise ConfigurationError(
                f"{where}: {shown(value)} cannot be imported: {type(error).__name__}"
            ) from None
        raise ConfigurationError(f"{where}: {value!r} cannot be imported: {error}") from error
