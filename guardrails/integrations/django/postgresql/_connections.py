"""Counts the connections of psycopg's pools, too. Must not import a guard."""

from __future__ import annotations

from functools import partial
from typing import Any

from guardrails._pool.figures import Connections, PoolFigures
from guardrails._runtime.fork import ForkedLock
from guardrails._util.weak_registry import WeakRegistry
from guardrails.integrations.django._database.connection_notes import note_closed
from guardrails.integrations.django._database.connections import DjangoConnections

__all__ = ["PooledConnections"]

_lock = ForkedLock()


class PooledConnections(DjangoConnections):
    """The connections behind one guard, some of which may be a pool's.

    Args:
        figures: The figures of the guard.

    Attributes:
        pools: The pools of psycopg that connections come from.
    """

    def __init__(self, figures: PoolFigures) -> None:
        super().__init__(figures)
        self.pools: WeakRegistry[Any] = WeakRegistry()

    def open_pools(self) -> list[Any]:
        """Returns the pools that are open: before, a pool may have no lock."""
        return [pool for pool in self.pools.living() if not pool.closed]

    def count_in(self, pool: Any) -> None:
        """Counts the connections that a pool opens and closes, in threads of its own, from now on.

        Several threads may ask for it at once, as each of them wants to make the pool.
        """
        with _lock:
            if not hasattr(pool.connection_class, "_guardrails_counted"):
                pool.connection_class = _counted(pool.connection_class, self)

    def count(self) -> Connections:
        """See DjangoConnections."""
        in_use, idle, _ = super().count()
        pools = self.open_pools()
        idle += sum(pool.get_stats()["pool_available"] for pool in pools)
        return Connections(in_use, idle, sum(pool.min_size for pool in pools) if pools else None)


def _counted(plain: Any, connections: DjangoConnections) -> type:
    """Returns a class of connections that are counted when they are opened and closed."""

    def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        started = connections.figures.clock()
        connection = connections.counted(partial(plain.connect.__func__, cls))(*args, **kwargs)
        connections.opened(connection, started)
        return connection

    def close(self: Any) -> None:
        plain.close(self)
        if self.closed:  # a pool's connection may have gone back to the pool instead
            note_closed(self)

    own = {
        "__module__": plain.__module__,
        "_guardrails_counted": True,
        "connect": classmethod(connect),
        "close": close,
    }
    return type(plain.__name__, (plain,), own)
