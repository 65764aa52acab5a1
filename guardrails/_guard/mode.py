"""The mode of a guard: what it is given in code, and what the environment says. Must not import guards."""

from __future__ import annotations

import os

from guardrails._core.shadow import MODES, Mode
from guardrails._util.checks import Faults

__all__ = ["VARIABLE", "is_switched_off", "resolve"]

VARIABLE = "GUARDRAILS_MODE"
"""The environment variable. ``off`` is a kill switch; the others are for guards that were given no mode."""


def from_environment() -> Mode | None:
    """The mode that the environment gives; None if it gives none.

    Raises:
        ConfigurationError: It is no mode.
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


def resolve(given: Mode | None) -> Mode:
    """The mode of a new guard.

    Raises:
        ConfigurationError: The environment gives no mode.
    """
    environment = from_environment()
    if environment == "off":
        return "off"
    return given or environment or "enforce"
