"""An engine's part in a fleet: its lease on a budget, and the verdict. Depends on fleets and pools."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrails._guard.guard import Guard
from guardrails._util.checks import Faults
from guardrails.fleet._fleet import Budget, Verdict

if TYPE_CHECKING:
    from guardrails.integrations.sqlalchemy._pool import EngineAdmission
    from guardrails.integrations.sqlalchemy._upkeep import EngineUpkeep

__all__ = ["join_fleet"]


def join_fleet(
    fleet: object,
    guard: Guard,
    admission: EngineAdmission,
    upkeep: EngineUpkeep,
    wait: Callable[[Any], Any] | None,
) -> Callable[[], None]:
    """Limits the pool's connections by a fleet's lease, and lets the guard follow its verdict.

    Args:
        fleet: The budget or the verdict; None for neither.
        guard: The engine's guard.
        admission: Waits for the first lease.
        upkeep: Closes the connections above a lease.
        wait: Runs a coroutine to its end, for asyncio behind a greenlet; None for a synchronous engine.

    Returns:
        A function that leaves the fleet.

    Raises:
        ConfigurationError: It is neither a budget nor a verdict, or the guard has no circuit for a verdict.
    """
    if fleet is None:
        return _nothing
    if not isinstance(fleet, Budget | Verdict):
        faults = Faults(f"guard {guard.name!r}")
        faults.add("fleet", fleet, "a budget or verdict, as a Fleet's methods return them, or None")
        faults.raise_if_any()
        return _nothing
    verdict = fleet.follow(guard)
    upkeep.joins = None if verdict is None else verdict.join
    leaving = [] if verdict is None else [verdict.leave]
    if isinstance(fleet, Budget):
        figures = admission.registry.figures

        def count() -> int:
            in_use, idle, _ = figures.connections()
            return max(in_use + idle, upkeep.open_count())

        lease = fleet.lease(guard, count)
        upkeep.lease = admission.lease = lease
        upkeep.admits, figures.lease = partial(lease.admit, wait), lease.snapshot
        leaving.append(lease.leave)

    def leave() -> None:
        for each in leaving:
            each()

    return leave


def _nothing() -> None:
    """Leaves no fleet."""
