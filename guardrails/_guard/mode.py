"""Finds the mode of a guard, from code and from the environment. Must not import guards."""

from __future__ import annotations

import os

from guardrails._core.shadow import MODES, Mode
from guardrails._util.checks import Faults

__all__ = ["VARIABLE", "is_switched_off", "resolve"]

VARIABLE = "GUARDRAILS_MODE"
"""The environment variable. ``off`` wins over the code; another mode is for guards without ``mode=``."""


def from_environment() -> Mode | None:
    """The mode in the environment; None if the variable is missing or empty.

    Raises:
        ConfigurationError: The variable has another value.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    faults = Faults("environment")
    faults.choice(VARIABLE, value, MODES)
    faults.raise_if_any()
    return value  # type: ignore[return-value] # checked


def is_switched_off() -> bool:
    """True if the environment switches every guard of this process off, whatever the code says."""
    return os.environ.get(VARIABLE) == "off"


def resolve(given: Mode | None, own: Mode | None = None) -> Mode:
    """The mode of a new guard.

    Args:
        given: The mode in the code.
        own: The mode in the guard's own variable. It can only make the guard less intrusive.

    Raises:
        ConfigurationError: The variable in the environment is not a mode.
    """
    environment = from_environment()
    wanted = "off" if environment == "off" else given or environment or "enforce"
    return wanted if own is None else max(wanted, own, key=MODES.index)
