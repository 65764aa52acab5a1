"""Makes, finds and lists the compartments of a guard, for the integrations. Depends on guards.

Must not import a pool or a framework.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from guardrails._core.gate import Gate
from guardrails._core.policy import BreakerPolicy
from guardrails._guard.auto_compartments import OTHER, AutoCompartments
from guardrails._guard.guard import Guard, set_state
from guardrails._guard.guard_settings import LONGEST_NAME

__all__ = [
    "COMPARTMENTS",
    "compartment_for",
    "compartment_of_server",
    "drop_compartment",
    "fixed_cores",
    "form_compartments",
    "forms_compartments",
    "guard_of_servers",
    "judged_guards",
    "set_compartments",
    "shown_compartments",
    "with_compartments",
]

COMPARTMENTS = ("auto", "declared", "none")
"""The allowed values of a pool's setting ``compartments``; the first is the default."""


def set_compartments(guard: Guard, how: str) -> None:
    """Sets how a guard's compartments are made: one of `COMPARTMENTS`."""
    guard._may_have_compartments = how != "none"
    if how == "auto":
        form_compartments(guard)


def form_compartments(guard: Guard) -> None:
    """Makes a guard that has no compartments yet form them automatically, one for each workload."""
    guard._auto_compartments = guard.call_settings.auto_compartments = AutoCompartments(guard._gate)


def forms_compartments(guard: Guard) -> bool:
    """True if a guard forms compartments automatically."""
    return guard._auto_compartments is not None


def compartment_for(guard: Guard, key: str, name: str | None = None) -> Guard:
    """The compartment of one workload, made if it is new; the guard itself if it forms none automatically.

    Args:
        guard: The guard.
        key: Identifies the workload.
        name: The compartment's name, unless another compartment has it; None is the key.
    """
    if guard._auto_compartments is None:
        return guard

    def form(found: str) -> Guard:
        wanted = _fitting(found if name is None or found == OTHER else name)
        if guard._find_compartment(wanted) is not None:
            wanted = _fitting(found)
        known = guard._find_compartment(wanted)
        return known or guard._new_compartment(wanted, None, {}, automatic=True)

    compartment: Guard = guard._auto_compartments.find(key, form)
    return compartment


def guard_of_servers(
    name: str, max_concurrent_calls: int, mode: Any, options: dict[str, Any]
) -> tuple[Guard, BreakerPolicy | None]:
    """Makes a guard that stands for several servers, and returns it with the rules of their circuits.

    It has no circuit, because the servers fail one by one; see `compartment_of_server`.

    Args:
        name: The guard's name.
        max_concurrent_calls: Its slots.
        mode: As for `Guard`.
        options: The other options of `Guard`.

    Raises:
        ConfigurationError: One or more arguments are wrong.
    """
    checked = Guard(name, max_concurrent_calls=max_concurrent_calls, mode=mode, **options)
    settings = {**checked._inherited(), "breaker": None}
    guard = Guard(name, max_concurrent_calls=max_concurrent_calls, mode=mode, **settings)
    guard._may_have_compartments = False
    return guard, checked.call_settings.policy


def compartment_of_server(guard: Guard, name: str, slots: int, breaker: BreakerPolicy | None) -> Guard:
    """Makes the compartment of one of the servers that a guard stands for, or returns the one there is.

    Args:
        guard: A guard of `guard_of_servers`.
        name: The server's name.
        slots: Its slots.
        breaker: The rules of its circuit; None is no circuit.
    """
    known = guard._find_compartment(name)
    if known is not None:
        return known
    compartment = guard._new_compartment(name, slots, {"breaker": breaker}, automatic=False)
    compartment._may_have_compartments = False
    states = {each.state for each in guard._compartments if each is not compartment}
    if states in ({"disabled"}, {"metrics_only"}):
        set_state(compartment, *states)  # the others were set by hand
    return compartment


def drop_compartment(guard: Guard, compartment: Guard) -> None:
    """Drops a compartment. Its calls under way end as before."""
    gate, own = compartment.call_settings.gates[-1], guard._gate
    with own.lock:
        guard._compartments = tuple(each for each in guard._compartments if each is not compartment)
        if gate in own.workload_gates:
            own.workload_gates.remove(gate)


def judged_guards(guard: Guard) -> tuple[Guard, ...]:
    """The guards that readiness judges for a guard: itself, or its servers if it stands for several."""
    stands_for_servers = guard._compartments and not guard._may_have_compartments
    return guard._compartments if stands_for_servers else (guard,)


def fixed_cores(guard: Guard) -> list[Gate]:
    """The cores of the compartments that were given a number of slots: it does not follow the guard's."""
    return [
        compartment.call_settings.gates[0].core
        for compartment in guard.compartments
        if compartment._share is not None
    ]


def with_compartments(guards: Iterable[Guard]) -> Iterator[Guard]:
    """The guards, each followed by its compartments, and theirs."""
    for guard in guards:
        yield guard
        yield from with_compartments(guard.compartments)


def shown_compartments(guard: Guard) -> tuple[Guard, ...]:
    """The compartments to show with a guard: none while the guard has one workload only."""
    auto_compartments = guard._auto_compartments
    return guard.compartments if auto_compartments is None or auto_compartments.divided else ()


def _fitting(name: str) -> str:
    """Shortens a compartment's name to the longest allowed one; a checksum keeps it unique."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}~{zlib.crc32(name.encode(errors='replace')):08x}"
