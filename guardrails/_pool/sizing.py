"""The pool size that a load needs, by queueing theory (M/M/c).

Depends on arithmetic only; must not import a pool or a driver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from guardrails._util.checks import Faults, finite

__all__ = ["RESERVED", "Demand", "Fleet", "Pool", "pools", "room_for", "wanted"]

RESERVED = 3
"""Connections that PostgreSQL keeps for superusers (``superuser_reserved_connections``)."""

BUSY_AT_MOST = 0.8
"""Maximum utilization of a pool. Real arrivals come in bursts, which the formulas ignore, and above this
value a few per cent more load double the wait."""

WAITERS_IN_TIME = 0.99
"""The share of callers that get a connection within the target wait."""

_MOST = 10_000
"""Connections of one pool; no server has as many for one process."""


@dataclass(frozen=True)
class Demand:
    """The load of one process on its pool.

    Attributes:
        rate: Checkouts per second.
        hold: Mean seconds for which a connection is held.
        target_wait: Maximum seconds that 99 % of the callers wait for a connection.

    Raises:
        ConfigurationError: A value is out of range, or the load exceeds the largest pool.
    """

    rate: float
    hold: float
    target_wait: float = 0.05

    def __post_init__(self) -> None:
        faults = Faults("size")
        if not finite(self.rate) or self.rate <= 0:
            faults.add("rate", self.rate, "a number of checkouts per second above 0")
        faults.seconds("hold", self.hold)
        faults.seconds("target_wait", self.target_wait, zero=True)
        faults.raise_if_any()
        if self.load > _MOST * BUSY_AT_MOST:
            busy = f"{self.load:,.0f} connections of one process busy at once"
            faults.add("rate x hold", busy, f"at most {_MOST * BUSY_AT_MOST:,.0f}")
        faults.raise_if_any()

    @property
    def load(self) -> float:
        """Connections busy on average (Little's law: rate times hold)."""
        return self.rate * self.hold


@dataclass(frozen=True)
class Pool:
    """The performance of a pool of one size under a demand.

    Attributes:
        size: Number of connections.
        busy: Utilization of each connection, from 0; above 1 the queue grows without limit.
        waiting: The share of callers that have to wait, from 0 to 1.
        wait: Maximum wait of 99 % of the callers in seconds; infinite if the queue grows.
    """

    size: int
    busy: float
    waiting: float
    wait: float


@dataclass(frozen=True)
class Fleet:
    """The server's connection limit and the processes that share it.

    Attributes:
        workers: Processes, each with a pool of its own.
        max_connections: The server's limit; None if unknown.
        reserved: Connections of that limit that are kept for others.
        kept: Connections that each process keeps open whatever its pool's size: Django's ``CONN_MAX_AGE``
            keeps one for each thread and alias.

    Raises:
        ConfigurationError: A value is out of range.
    """

    workers: int = 1
    max_connections: int | None = None
    reserved: int = RESERVED
    kept: int = 0

    def __post_init__(self) -> None:
        faults = Faults("size")
        faults.count("workers", self.workers)
        faults.count("max_connections", self.max_connections, none=True)
        faults.count("reserved", self.reserved, least=0)
        faults.count("kept", self.kept, least=0)
        faults.raise_if_any()

    @property
    def share(self) -> int | None:
        """Connections for each process; None if the server's limit is unknown."""
        if self.max_connections is None:
            return None
        return max(0, self.max_connections - self.reserved) // self.workers

    def open_at_most(self, pool: Pool) -> int:
        """Returns the connections that each process may have open with a pool."""
        return max(pool.size, self.kept)

    def fits(self, pool: Pool) -> bool:
        """True if the server has the connections, or its limit is unknown."""
        return self.share is None or self.open_at_most(pool) <= self.share


def pools(demand: Demand, start: int = 1) -> Iterator[Pool]:
    """Yields pools for a demand, of ``start`` connections and more.

    Assumes independent arrivals and exponentially distributed hold times (M/M/c, Erlang's C formula:
    A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic
    telephone exchanges", 1917).
    """
    load = demand.load
    blocked = 1.0  # Erlang's B formula, by recursion, which avoids large factorials
    size = 0
    while True:
        size += 1
        blocked = load * blocked / (size + load * blocked)
        if size >= start:
            yield _pool(demand, size, blocked)


def _pool(demand: Demand, size: int, blocked: float) -> Pool:
    load = demand.load
    busy = load / size
    if busy >= 1:
        return Pool(size, busy, 1.0, math.inf)
    waiting = blocked / (1 - busy * (1 - blocked))
    late = 1 - WAITERS_IN_TIME
    # P(wait > t) = waiting * exp(-(size - load) * t / hold)
    wait = 0.0 if waiting <= late else math.log(waiting / late) * demand.hold / (size - load)
    return Pool(size, busy, waiting, wait)


def wanted(demand: Demand) -> Pool:
    """The smallest pool that keeps the target wait and the maximum utilization."""
    start = max(1, math.ceil(demand.load / BUSY_AT_MOST - 1e-9))
    return next(pool for pool in pools(demand, start) if pool.wait <= demand.target_wait)


def room_for(demand: Demand, size: int) -> float:
    """The highest rate that a pool of ``size`` connections serves within the target, by bisection."""
    low, high = 0.0, BUSY_AT_MOST * size / demand.hold
    for _ in range(60):
        middle = (low + high) / 2
        if middle > 0 and wanted(Demand(middle, demand.hold, demand.target_wait)).size > size:
            high = middle
        else:
            low = middle
    return low
