"""Counts the connections of Django's threads and of psycopg's pools. Must not import a guard."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardrails._pool.figures import Connections, PoolFigures
from guardrails._util.weak_registry import WeakRegistry

if TYPE_CHECKING:
    from guardrails.integrations.django.postgresql._upkeep import DjangoUpkeep

__all__ = ["DjangoConnections", "ages_of"]

_OPENED = "_guardrails_opened"


def ages_of(connection: Any) -> tuple[float, float]:
    """Returns the seconds since a counted connection was open, and since its opening began.

    Raises:
        AttributeError: It is older than the guard.
    """
    now = time.monotonic()
    opened, began = getattr(connection, _OPENED)
    return now - opened, now - began


class DjangoConnections:
    """The connections behind one guard.

    Args:
        figures: The figures of the guard.

    Attributes:
        wrappers: Django's wrappers of connections, each of one thread.
        pools: The pools of psycopg that connections come from.
        upkeep: Replaces the connections when the primary has moved.
    """

    upkeep: DjangoUpkeep

    def __init__(self, figures: PoolFigures) -> None:
        self.figures = figures
        self.wrappers: WeakRegistry[Any] = WeakRegistry()
        self.pools: WeakRegistry[Any] = WeakRegistry()
        figures.connections = self._count

    def opened(self, connection: Any, started: float) -> Callable[[], object]:
        """Counts a connection that was opened, and its closing.

        Args:
            connection: The driver's connection.
            started: When its opening began.

        Returns:
            The function to call when it has been closed; else its end counts as its closing.
        """
        self.figures.connected(started)
        now = time.monotonic()
        setattr(connection, _OPENED, (now, now - max(0.0, self.figures.clock() - started)))
        self.upkeep.created(connection)
        closed = weakref.finalize(connection, self.figures.closed)
        closed.atexit = False
        return closed

    def add(self, wrapper: Any, connection: Any, started: float | None) -> Callable[[], object]:
        """Adds a wrapper and its new connection; returns what `opened` does.

        Args:
            wrapper: Django's wrapper.
            connection: The driver's connection.
            started: When its opening began; None for one of a pool, which is counted by the pool.
        """
        self.wrappers.add(wrapper)
        return bool if started is None else self.opened(connection, started)

    def count_in(self, pool: Any) -> None:
        """Counts the connections that a pool opens and closes, in threads of its own, from now on."""
        pool.connection_class = _counted(pool.connection_class, self)

    def _count(self) -> Connections:
        in_use = idle = 0
        for wrapper in self.wrappers.living():
            if wrapper.connection is not None and not wrapper.connection.closed:
                if wrapper.is_checked_out:
                    in_use += 1
                else:
                    idle += 1
        pools = [pool for pool in self.pools.living() if not pool.closed]
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
