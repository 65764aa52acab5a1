"""Makes, finds and lists the compartments of a guard, for the integrations. Depends on guards.

Must not import a pool or a framework.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from guardrails._guard.auto_compartments import OTHER, AutoCompartments
from guardrails._guard.guard import Guard
from guardrails._guard.guard_settings import LONGEST_NAME
from guardrails._guard.workload_names import WorkloadName

__all__ = [
    "COMPARTMENTS",
    "compartment_for",
    "form_compartments",
    "forms_compartments",
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
        if guard._part(wanted) is not None:
            wanted = _fitting(found)
        known = guard._part(wanted)
        return known or guard._new_part(WorkloadName(wanted, guard.name), None, {}, elastic=True)

    part: Guard = guard._auto_compartments.find(key, form)
    return part


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
