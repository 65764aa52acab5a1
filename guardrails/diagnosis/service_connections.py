"""Adds up the connections that a service may open, and compares them with the limits of its server.

Depends on guards and the leases of fleets; must not connect to a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from guardrails._guard.guard import Guard, lease_of
from guardrails.diagnosis.findings import Finding
from guardrails.diagnosis.surroundings import Surroundings

__all__ = ["budget", "most_slots"]

_LEAST_SPARE, _SPARE = 3, 10
"""Connections, and the part of a budget, that a role's limit leaves for those that guards open for a moment
(to ask who holds a lock, to cancel) and for a person."""

_MYSQL = {"mysql", "mariadb"}


def most_slots(guard: Guard) -> int:
    """Returns the most slots that a guard may have; a lease may have given it fewer now."""
    lease = lease_of(guard)
    return guard.snapshot().max_concurrent_calls if lease is None else lease.ceiling


@dataclass
class _Demand:
    """The connections that the pools of one server may open.

    Attributes:
        workers: Processes.
        leases: One lease for each budget of a fleet, by its fleet and its name.
        divided: The connections that each process has without a budget, by guard and words for them.
    """

    workers: int
    leases: dict[tuple[str, str], Any] = field(default_factory=dict)
    divided: dict[tuple[Guard, str], int] = field(default_factory=dict)

    def add(self, guard: Guard, words: str, connections: int) -> None:
        """Adds a pool: by its words and connections, or by the budget of its guard."""
        lease: Any = lease_of(guard)
        if lease is None:
            self.divided[guard, words] = connections
        else:
            self.leases[lease.worker.fleet, lease.budget] = lease

    @property
    def leased(self) -> int:
        """The budgets in sum, which all processes share."""
        return sum(lease.connections for lease in self.leases.values())

    @property
    def of_each(self) -> int:
        """The connections that each process has beside them."""
        return sum(self.divided.values())

    @property
    def total(self) -> int:
        return self.leased + self.workers * self.of_each

    @property
    def parts(self) -> Iterator[str]:
        for (_, name), lease in self.leases.items():
            yield f"budget {name!a}: {lease.connections}"
        for (_, words), connections in self.divided.items():
            yield f"{words}: {connections}"

    def __str__(self) -> str:
        budgets = f"{self.leased} of budgets" if self.leases else ""
        divided = f"{self.workers} x {self.of_each}" if self.divided else ""
        return " and ".join(filter(None, (budgets, divided)))


def budget(targets: Iterable[tuple[str, Any, Guard | None]], around: Surroundings) -> Iterator[Finding]:
    """Yields servers with fewer connections than the service may open, and a role without a limit.

    Args:
        targets: Each with its kind, the engine, client or Django database, and its guard.
        around: The surroundings of the service.
    """
    demands: dict[tuple[Any, ...], _Demand] = {}
    for kind, target, guard in targets:
        if guard is None or kind not in {"engine", "database"}:
            continue
        words, connections = f"{guard.name!a}", guard.snapshot().max_concurrent_calls
        if kind == "engine":
            address = (_kind(target.url), target.url.host, target.url.port)
        else:
            address = target.address
            if target.kept:
                words, connections = f"{words}, one for each thread and {target.alias!a}", around.threads
            elif target.pool is not None:
                words, connections = f"{words}, the pool of {target.alias!a}", target.pool
        demands.setdefault(address, _Demand(around.workers)).add(guard, words, connections)
    if around.max_connections is not None:
        for demand in demands.values():
            yield from _exceeded(demand, around.max_connections - around.reserved)
    if around.role is not None and around.address is not None:
        of_kind = [each for each in demands if each[0] == _kind(around.address)]
        here = [each for each in of_kind if each[1:] == (around.address.host, around.address.port)]
        for address in here or of_kind:
            yield from _backstop(demands[address], around)


def _exceeded(demand: _Demand, room: int) -> Iterator[Finding]:
    if demand.total > room:
        yield Finding(
            "budget",
            f"{demand} connections are more than the {room} there are for applications",
            tuple(demand.parts),
            "smaller budgets or pools (guardrails size), fewer processes, or a pooler in between"
            if demand.leases
            else "smaller pools (guardrails size), fewer processes, or a pooler in between",
        )


def _backstop(demand: _Demand, around: Surroundings) -> Iterator[Finding]:
    """Judges the limit of the role by the budgets: it holds where no promise of a fleet does."""
    role = around.role
    if not demand.leases:
        return
    if role.is_superuser:
        yield Finding(
            "backstop",
            f"role {role.name!a} is a superuser: no limit of its connections counts for it, and it takes "
            "those that are reserved for people",
            (),
            "a role of its own for the service, without SUPERUSER",
        )
        return
    others, spare = _others(demand, around), max(_LEAST_SPARE, demand.total // _SPARE)
    least = min(demand.total + others + spare, role.room)
    words = (
        f"{demand} for the service",
        f"{others} that the role has now beside them",
        f"{spare} for the questions of guards, cancels and a person",
    )
    if role.limit is None or role.limit >= role.room > least:
        yield Finding(
            "backstop",
            f"the server does not hold role {role.name!a} to its budget",
            words,
            f"as a backstop, should clocks or workers fail: {role.change.format(least)}",
        )
    elif demand.total <= role.limit < demand.total + others:
        yield Finding(
            "backstop",
            f"the limit of role {role.name!a} is {role.limit}: too few for its budget and its other uses",
            words,
            role.change.format(least),
        )


def _others(demand: _Demand, around: Surroundings) -> int:
    """Returns the role's connections that no budget has; 0 if that is not known."""
    known = [around.reported(lease.worker, lease.budget) for lease in demand.leases.values()]
    if demand.divided or None in known:
        return 0
    sessions: int = around.role.sessions
    return max(0, sessions - sum(filter(None, known)))


def _kind(url: Any) -> str:
    name: str = url.get_backend_name()
    return "mysql" if name in _MYSQL else name
