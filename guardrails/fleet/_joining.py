"""A pool's part in a fleet: a lease on a budget, and a verdict. Depends on fleets; must not import a pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from guardrails._guard.attachment import Lease
from guardrails._guard.guard import Guard
from guardrails._pool.figures import PoolFigures
from guardrails._pool.life import PoolLife
from guardrails._util.checks import Faults
from guardrails.fleet._fleet import Budget, Verdict
from guardrails.fleet._pool_lease import PoolLease

__all__ = ["join_fleet"]


class Joining(Protocol):
    """The upkeep of a pool, as far as a fleet needs it; see `PoolUpkeep`."""

    life: PoolLife
    lease: Lease | None
    joins: Callable[[], None] | None

    def open_count(self) -> int:
        """Returns the number of open connections, idle and checked out."""


def join_fleet(
    fleet: object, guard: Guard, upkeep: Joining, figures: PoolFigures
) -> tuple[PoolLease | None, Callable[[], None]]:
    """Limits the pool's connections by a fleet's lease, and lets the guard follow its verdict.

    Args:
        fleet: The budget or the verdict; None for neither.
        guard: The pool's guard.
        upkeep: Closes the connections above a lease.
        figures: Counts the connections.

    Returns:
        The lease, which admits checkouts, or None without a budget; and a function that leaves the fleet.

    Raises:
        ConfigurationError: It is neither a budget nor a verdict, or the guard has no circuit for a verdict.
    """
    if fleet is None:
        return None, _nothing
    if not isinstance(fleet, Budget | Verdict):
        faults = Faults(f"guard {guard.name!r}")
        faults.add("fleet", fleet, "a budget or verdict, as a Fleet's methods return them, or None")
        faults.raise_if_any()
        return None, _nothing
    parts = fleet.followers(guard)
    leaving = [part.leave for part in parts]
    lease = None

    def join() -> None:
        for part in parts:
            part.join()

    upkeep.joins = join
    if isinstance(fleet, Budget):

        def count() -> int:
            in_use, idle, _ = figures.connections()
            return max(in_use + idle, upkeep.open_count())

        lease = upkeep.lease = fleet.lease(guard, count)
        figures.lease = lease.snapshot
        upkeep.life.acts = True
        leaving.append(lease.leave)

    def leave() -> None:
        for each in leaving:
            each()

    return lease, leave


def _nothing() -> None:
    """Leaves no fleet."""
