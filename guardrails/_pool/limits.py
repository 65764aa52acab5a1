"""Slots, compartment and time limit of work on a pool. Depends on the guard; must not import a pool."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace

from guardrails._core.adaptive import Adaptive
from guardrails._guard.auto_compartments import DEFAULT
from guardrails._guard.compartments import COMPARTMENTS, compartment_for
from guardrails._guard.environment import variable_of
from guardrails._guard.guard import Guard
from guardrails._guard.guard_settings import OPTIONS
from guardrails._pool.life import LifeSettings
from guardrails._runtime.scope import RequestScope, ambient
from guardrails._runtime.timeouts import NOT_GIVEN, given_timeout, outer_seconds_left
from guardrails._util.checks import Faults, shown, unknown_option
from guardrails.errors import ConfigurationError

__all__ = [
    "asks_server",
    "check_compartments",
    "check_leak_after",
    "check_least",
    "guarded_already",
    "innermost",
    "raises_as_driver",
    "refuse_unknown_options",
    "slots_for",
    "time_allowed",
]


def guarded_already(what: str, guard: Guard) -> ConfigurationError:
    """Builds the error for a target that has a guard; ``what`` names the target."""
    return ConfigurationError(
        f"protect: {what} is guarded already, by {guard!r}; use that guard, or call its detach() first"
    )


def refuse_unknown_options(options: Iterable[str], attach: Callable[..., object]) -> None:
    """Checks the names of the options that ``protect`` was given beside those that a function names.

    Args:
        options: The names.
        attach: The function; its first parameter is the target, and its last takes these options.

    Raises:
        ConfigurationError: There is no such option; it names the nearest.
    """
    further = {*OPTIONS, *LifeSettings.__slots__}
    for option in options:
        if option not in further:
            _, *own, _ = inspect.signature(attach).parameters
            raise unknown_option("protect", option, {*own, *further})


def slots_for(
    name: str, asked: object, most: int | None, unlimited: str, capacity: str = "the pool's connections"
) -> int | Adaptive:
    """The slots of a guard in front of a pool: the setting, or the pool's capacity.

    Args:
        name: The guard's name.
        asked: The user's ``max_concurrent_calls``, or None.
        most: The pool's capacity; None is unlimited.
        unlimited: The name of an unlimited pool in the error.
        capacity: What ``most`` is made of, for the error.

    Raises:
        ConfigurationError: The setting exceeds the pool's capacity, or is missing for an unlimited pool.
    """
    faults, why = Faults(f"guard {shown(name)}"), "" if most is None else f" ({capacity})"
    if isinstance(asked, Adaptive):
        faults.count("max_concurrent_calls.maximum", asked.maximum, none=True, most=most, why=why)
        if most is not None:
            faults.count("max_concurrent_calls.minimum", asked.minimum, most=most, why=why)
    else:
        field = variable_of(name, "max_concurrent_calls", asked)
        faults.count(field, asked, none=True, most=most, why=why)
    faults.raise_if_any()
    if isinstance(asked, Adaptive) and (asked.maximum or most):
        return replace(asked, maximum=asked.maximum or most)
    if isinstance(asked, int):
        return asked
    if most is None:
        raise ConfigurationError(
            f"guard {shown(name)}: {unlimited} lets out any number of connections; "
            "set the number of concurrent calls: max_concurrent_calls=..."
        )
    return most


def check_compartments(name: str, compartments: object) -> str:
    """Reads the setting ``compartments`` of a pool's guard.

    Raises:
        ConfigurationError: It is none of `COMPARTMENTS`.
    """
    faults = Faults(f"guard {shown(name)}")
    faults.choice("compartments", compartments, COMPARTMENTS)
    faults.raise_if_any()
    return str(compartments)


def asks_server(name: str, value: object) -> bool:
    """Reads the setting ``ask_server`` of a pool's guard.

    Raises:
        ConfigurationError: It is neither True nor False.
    """
    faults = Faults(f"guard {shown(name)}")
    faults.flag("ask_server", value)
    faults.raise_if_any()
    return bool(value)


def check_leak_after(name: str, leak_after: object, max_idle_hold: object = None) -> None:
    """Checks the settings ``leak_after`` and ``max_idle_hold`` of a pool's guard.

    Raises:
        ConfigurationError: One is neither None nor a number of seconds above 0.
    """
    faults = Faults(f"guard {shown(name)}")
    faults.seconds("leak_after", leak_after, none=True)
    faults.seconds("max_idle_hold", max_idle_hold, none=True)
    faults.raise_if_any()


def check_least(name: str, fleet: object, least: int) -> None:
    """Checks that a pool keeps no connections that a fleet's lease may not allow.

    Args:
        name: The guard's name.
        fleet: What the pool joins; None, or a verdict, limits no connections.
        least: The number of connections that the pool keeps in any case.

    Raises:
        ConfigurationError: It keeps some.
    """
    if least and hasattr(fleet, "lease"):
        raise ConfigurationError(
            f"guard {shown(name)}: the pool's min_size must be 0, got {least}: it would keep that many "
            "connections open whatever its part of the fleet's budget is"
        )


def raises_as_driver(name: str, raise_as: object) -> bool:
    """Reads the setting ``raise_as``; True if a pool's errors are also errors of the driver's library.

    Raises:
        ConfigurationError: It is neither None nor ``"driver"``.
    """
    faults = Faults(f"guard {name!r}")
    faults.choice("raise_as", raise_as, (None, "driver"))
    faults.raise_if_any()
    return raise_as == "driver"


def innermost(guard: Guard) -> Guard:
    """The compartment of ``guard`` in which this code runs, or ``guard`` itself.

    With automatic compartments, code outside a declared one belongs to that of its request's route.
    """
    call_settings, request, part = guard.call_settings, None, None
    root, auto_compartments = call_settings.root, call_settings.auto_compartments
    scope = ambient.get()
    while scope is not None:
        if not scope.closed:
            inside: Guard | None = scope.guard
            if inside is not None and inside.call_settings.root is root:
                if auto_compartments is None:
                    return inside
                if inside is not guard:
                    part = inside
                    break
            if request is None:
                request = scope.request
        scope = scope.outer
    if auto_compartments is None:
        return guard
    if part is None:
        part = _of_request(guard, request)
    return (
        part
        if auto_compartments.divided or auto_compartments.is_divided_for(part.call_settings.gates[0])
        else guard
    )


def _of_request(guard: Guard, request: RequestScope | None) -> Guard:
    """The compartment of a request's route."""
    name = DEFAULT if request is None else request.name or request.find_name() or DEFAULT
    auto_compartments = guard.call_settings.auto_compartments
    known: Guard | None = None if auto_compartments is None else auto_compartments.formed.get(name)
    return known or compartment_for(guard, name)


def time_allowed(guard: Guard, timeout: float | None = None) -> tuple[float | None, bool]:
    """The time limit of a piece of work in seconds, and True if it is the guard's own timeout.

    Args:
        guard: The guard or compartment of the work.
        timeout: The work's own timeout, which replaces the other timeouts of the guard.
    """
    scope = ambient.get()
    while scope is not None and scope.closed:  # `current` inlined, because each statement needs it
        scope = scope.outer
    own = guard.timeout if timeout is None else timeout
    if scope is None:
        return own, True
    gate = guard.call_settings.root
    if timeout is None and (scope.guard is not None or scope.outer is not None):
        given = given_timeout(scope, gate)
        own = own if given == NOT_GIVEN else given
    left = None if scope.at is None else outer_seconds_left(scope, gate)
    if left is None or (own is not None and own <= left):
        return own, True
    return left, False
