"""The guard's own part of an alias's ``OPTIONS``. Must not import a driver."""

from __future__ import annotations

from typing import Any, NamedTuple

from guardrails._guard.compartments import COMPARTMENTS
from guardrails._guard.guard import Guard
from guardrails._util.checks import Faults, shown
from guardrails.errors import ConfigurationError
from guardrails.integrations.django._names import named

__all__ = ["Options", "read_options"]

_OF_GUARDS = ("breaker", "max_concurrent_calls", "max_wait_duration", "mode", "timeout")
"""Settings of guards that stand in ``OPTIONS`` by mistake. No driver has an option of such a name."""


class Options(NamedTuple):
    """What an alias asks of its guard.

    Attributes:
        compartments: Whether compartments form by themselves: one of ``COMPARTMENTS``.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.
        max_idle_hold: Seconds after which such a connection is taken back; None is never.
        ask_server: Whether to ask the server for locks when the connections run out, and for the sessions of
            connections that were taken back.
    """

    compartments: str = COMPARTMENTS[0]
    leak_after: float | None = 60.0
    max_idle_hold: float | None = None
    ask_server: bool = True

    def check_equal(self, where: str, guard: Guard, first: Options) -> None:
        """Checks that an alias asks for the same as the first one that its guard protects.

        Raises:
            ConfigurationError: It does not.
        """
        for option, value, known in zip(self._fields, self, first, strict=True):
            if value != known:
                raise ConfigurationError(
                    f"{where}: OPTIONS[{option!r}] must be {shown(known)}, as for the other databases behind "
                    f"guard {guard.name!r}, got {shown(value)}"
                )


def read_options(where: str, given: dict[str, Any]) -> tuple[Guard, Options]:
    """Returns the guard and the options of an alias.

    Args:
        where: The alias, for messages.
        given: Its ``OPTIONS``.

    Raises:
        ConfigurationError: They are wrong.
    """
    faults = Faults(where)
    guard = named(f"{where}: OPTIONS['guard']", given.get("guard"))
    if not isinstance(guard, Guard):
        faults.add("OPTIONS['guard']", guard, "a Guard or its dotted name")
    for name in _OF_GUARDS:
        if name in given:
            raise ConfigurationError(
                f"{where}: OPTIONS[{name!r}] is a setting of the guard: Guard(..., {name}=...)"
            )
    options = Options(**{name: given[name] for name in Options._fields if name in given})
    faults.choice("OPTIONS['compartments']", options.compartments, COMPARTMENTS)
    faults.seconds("OPTIONS['leak_after']", options.leak_after, none=True)
    faults.seconds("OPTIONS['max_idle_hold']", options.max_idle_hold, none=True)
    faults.flag("OPTIONS['ask_server']", options.ask_server)
    faults.raise_if_any()
    return guard, options
