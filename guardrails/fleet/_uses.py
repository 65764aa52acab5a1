"""Sums over the workers of each budget, for people. Depends on the rule of leases and the stores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from guardrails.fleet._lease import members
from guardrails.fleet._stores import NoStoreError, StoreError, StoreView
from guardrails.fleet._worker import FleetWorker

__all__ = ["BudgetUse", "reported", "uses"]


class BudgetUse(NamedTuple):
    """What the workers of one budget report.

    Attributes:
        fleet: The name of the fleet.
        name: The name of the budget.
        connections: The budget.
        has: Connections that are open, those of silent workers included.
        connected: Of these, connections of workers in contact.
    """

    fleet: str
    name: str
    connections: int
    has: int
    connected: int


def uses(view: StoreView) -> Iterable[BudgetUse]:
    """Yields the sums of each budget that has workers."""
    for (fleet, name), fields in sorted(view.budgets.items()):
        known = [record for record in members(fields, view.now).values() if not record.left]
        if known:
            yield BudgetUse(
                fleet,
                name,
                min(record.budget for record in known),
                sum(record.has for record in known),
                sum(record.has for record in known if not record.is_silent(view.now)),
            )


def reported(worker: FleetWorker, budget: str) -> int | None:
    """Returns the connections that the workers of a budget report; None if the store cannot be read."""
    store = worker.new_store()
    try:
        found = {each.name: each.has for each in uses(store.read()) if each.fleet == worker.fleet}
    except NoStoreError:
        return 0
    except StoreError:
        return None
    finally:
        store.close()
    return found.get(budget, 0)
