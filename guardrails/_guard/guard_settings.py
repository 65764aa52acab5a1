"""The settings of a guard: their names, some defaults, and their checks. Must not import guards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from guardrails._core.adaptive import Adaptive
from guardrails._core.policy import BreakerPolicy
from guardrails._core.shadow import MODES
from guardrails._util.checks import Faults, shown

__all__ = ["DEFAULTS", "INHERITED", "LONGEST_NAME", "OPTIONS", "check_settings"]

INHERITED = ("max_wait_duration", "max_waiting", "timeout", "breaker", "listeners", "clock", "random")
"""Settings that a compartment inherits from its guard, unless it is given its own."""

LONGEST_NAME = 200
"""Maximum length of a guard's name, which is in every error, log line and metric."""

OPTIONS = ("name", "max_concurrent_calls", "mode", *INHERITED)
"""The names of the options of a guard."""

DEFAULTS = {"max_wait_duration": 0.05, "max_waiting": None, "timeout": 5.0}
"""The defaults of the settings that the environment may fill."""


def check_settings(name: object, limit: object, mode: object, settings: Mapping[str, Any]) -> int:
    """Checks the settings of a new guard or compartment; returns its number of slots.

    Raises:
        ConfigurationError: One or more are wrong; all faults are named at once.
    """
    faults = Faults(f"guard {shown(name)}")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        faults.add("name", name, f"a text of 1 to {LONGEST_NAME} characters")
    slots = limit
    if isinstance(limit, Adaptive):
        slots = limit.maximum
        faults.count("max_concurrent_calls.maximum", slots, least=limit.minimum)
    else:
        faults.count("max_concurrent_calls", limit)
    faults.seconds("max_wait_duration", settings["max_wait_duration"], zero=True)
    faults.count("max_waiting", settings["max_waiting"], least=0, none=True)
    faults.seconds("timeout", settings["timeout"], none=True)
    if not isinstance(settings["breaker"], BreakerPolicy | None):
        faults.add("breaker", settings["breaker"], "a BreakerPolicy or None")
    faults.choice("mode", mode, (*MODES, None))
    listeners = settings["listeners"]
    if not isinstance(listeners, tuple) or not all(map(callable, listeners)):
        faults.add("listeners", listeners, "callables")
    faults.callable("clock", settings["clock"], none=False)
    faults.callable("random", settings["random"], none=False)
    faults.raise_if_any()
    return cast("int", slots)
