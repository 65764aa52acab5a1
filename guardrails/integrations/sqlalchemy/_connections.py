"""Counts the open connections of a guarded pool, of whichever class. Must not import the pool's hooks.

SQLAlchemy's own numbers count a closed connection as one in the pool, and a connection that is being opened
as one that is out. So this module counts the pool's records that have an open connection.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import AssertionPool, ConnectionPoolEntry, Pool, QueuePool

from guardrails._pool.figures import Connections, PoolFigures
from guardrails._util.weak_registry import WeakRegistry

__all__ = ["PoolConnections", "capacity", "capacity_in_words"]


def capacity(pool: Pool) -> int | None:
    """Returns how many connections a pool lets out at the same time at most; None without a limit."""
    if isinstance(pool, QueuePool):
        overflow: int = pool._max_overflow  # noqa: SLF001 - there is no public getter
        return None if overflow < 0 else pool.size() + overflow
    return 1 if isinstance(pool, AssertionPool) else None


def capacity_in_words(pool: Pool) -> str:
    """Returns what the capacity of a pool is made of."""
    if isinstance(pool, QueuePool):
        return f"the pool: pool_size {pool.size()} + max_overflow {pool._max_overflow}"  # noqa: SLF001 - likewise
    return "the pool's connections"


class PoolConnections:
    """The connections of one engine's pools: the current one, and those that were disposed of.

    Args:
        figures: The pool's figures.
        out: The records whose connections are checked out.

    Attributes:
        records: The pool's record of each connection.
    """

    def __init__(self, figures: PoolFigures, out: Container[Any]) -> None:
        self._figures = figures
        self._out = out
        self._kept: int | None = None
        self.records: WeakRegistry[Any] = WeakRegistry()
        figures.connections = self._count

    def attach(self, pool: Pool) -> None:
        """Finds the connections of a pool that is guarded from now on."""
        self._kept = pool.size() if isinstance(pool, QueuePool) else None
        for record in _waiting_in(pool):
            self.records.add(record)
        event.listen(pool, "invalidate", self._invalidated)

    def detach(self, pool: Pool) -> None:
        """Removes the listener from the engine's pool.

        `event.remove` needs the pool that the listener was added to. If a disposed pool were kept for that,
        its connections would stay open.
        """
        pool.dispatch.invalidate.listeners.remove(self._invalidated)

    def closer(self, base: type[Pool]) -> Callable[..., None]:
        """Returns the method of a guarded pool that closes a connection."""
        figures = self._figures

        def _close_connection(self: Pool, connection: Any, *, terminate: bool = False) -> None:
            try:
                base._close_connection(self, connection, terminate=terminate)  # noqa: SLF001 - the pool's hook
            finally:
                figures.closed()

        return _close_connection

    def _count(self) -> Connections:
        # SQLAlchemy keeps the record of a connection that was closed, for the next one.
        records = [record for record in self.records.living() if record.dbapi_connection is not None]
        in_use = sum(record in self._out for record in records)
        return Connections(in_use, len(records) - in_use, self._kept)

    def _invalidated(self, *_: object) -> None:
        self._figures.invalidated()


def _waiting_in(pool: Pool) -> list[Any]:
    """Returns the records of the connections in a pool, for which SQLAlchemy has no public way."""
    queue = getattr(pool, "_pool", None)
    queue = getattr(queue, "_queue", queue)  # of an asyncio pool
    waiting = getattr(queue, "queue", None) or getattr(queue, "_queue", None) or ()
    alone = [vars(pool).get("connection"), getattr(pool, "_conn", None)]  # a StaticPool's, an AssertionPool's
    return [
        record
        for record in (*waiting, *getattr(pool, "_all_conns", ()), *alone)
        if isinstance(record, ConnectionPoolEntry)
    ]
