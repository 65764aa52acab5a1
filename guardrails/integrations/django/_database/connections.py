"""Counts the connections of Django's threads. Must not import a guard."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardrails._pool.figures import Connections, PoolFigures
from guardrails._pool.open_limit import OpenLimit, PoolEntry
from guardrails._util.weak_registry import WeakRegistry
from guardrails.integrations.django._database.connection_notes import CountedConnect, entry_of, note_opened

if TYPE_CHECKING:
    from guardrails.integrations.django._database.renewal import Renewal

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
        renewal: Replaces the connections when the primary has moved.
        limit: Keeps the open connections within a fleet's budget; None without one.
        descriptor_of: Returns the descriptor of a connection's socket.
    """

    renewal: Renewal
    limit: OpenLimit | None = None
    descriptor_of: Callable[[Any], int]

    def __init__(self, figures: PoolFigures) -> None:
        self.figures = figures
        self.wrappers: WeakRegistry[Any] = WeakRegistry()
        figures.connections = self.count

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
        self.renewal.created(connection)
        closed = weakref.finalize(connection, self._closed, entry_of(connection))
        closed.atexit = False
        note_opened(connection, closed)
        return closed

    def _closed(self, entry: PoolEntry | None) -> None:
        self.figures.closed()
        if entry is not None:
            entry.end()

    def counted(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that opens a connection, and counts it under a budget."""
        return connect if self.limit is None else CountedConnect(connect, self.limit, self.descriptor_of)

    def add(self, wrapper: Any, connection: Any, started: float | None) -> Callable[[], object]:
        """Adds a wrapper and its new connection; returns what `opened` does.

        Args:
            wrapper: Django's wrapper.
            connection: The driver's connection.
            started: When its opening began; None for one of a pool, which is counted by the pool.
        """
        self.wrappers.add(wrapper)
        return bool if started is None else self.opened(connection, started)

    def count(self) -> Connections:
        """Returns the numbers of connections of this moment."""
        in_use = idle = 0
        for wrapper in self.wrappers.living():
            if wrapper.has_open():
                if wrapper.is_checked_out:
                    in_use += 1
                else:
                    idle += 1
        return Connections(in_use, idle)
