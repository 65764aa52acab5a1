"""Counts the connections of psycopg's pools, too. Must not import a guard."""

from __future__ import annotations

from typing import Any

from guardrails._pool.figures import Connections, PoolFigures
from guardrails._util.weak_registry import WeakRegistry
from guardrails.integrations.django._database.connections import DjangoConnections

__all__ = ["PooledConnections"]


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
        """Counts the connections that a pool opens and closes, in threads of its own, from now on."""
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
        connection = plain.connect.__func__(cls, *args, **kwargs)
        connection._guardrails_closed = connections.opened(connection, started)  # noqa: SLF001 - of this class
        return connection

    def close(self: Any) -> None:
        plain.close(self)
        if self.closed:  # a pool's connection may have gone back to the pool instead
            self._guardrails_closed()

    own = {"__module__": plain.__module__, "connect": classmethod(connect), "close": close}
    return type(plain.__name__, (plain,), own)
