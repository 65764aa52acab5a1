"""Notes on Django's connections: their times, and their entries under a fleet's budget.

Must not import a driver.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails._pool.life import Age
from guardrails._pool.open_limit import OpenLimit, PoolEntry

__all__ = ["CountedConnect", "entry_of", "note_age", "note_closed", "note_opened", "own_age"]

_AGE = "_guardrails_age"
_CLOSED = "_guardrails_closed"
_ENTRY = "_guardrails_entry"


def entry_of(connection: Any) -> PoolEntry | None:
    """Returns the entry of a connection; None without a budget."""
    return getattr(connection, _ENTRY, None)


def note_opened(connection: Any, closed: Callable[[], object]) -> None:
    """Notes what counts the closing of a connection."""
    setattr(connection, _CLOSED, closed)


def note_closed(connection: Any) -> None:
    """Counts the closing of a connection, once."""
    getattr(connection, _CLOSED, bool)()


def note_age(connection: Any, age: Age) -> None:
    """Notes the times of a connection."""
    setattr(connection, _AGE, age)


def own_age(connection: Any) -> Age | None:
    """Returns the times of a connection that this process has opened; None for another."""
    age: Age | None = getattr(connection, _AGE, None)
    return age if age is not None and age.process == os.getpid() else None


class CountedConnect:
    """Opens a connection that a fleet's budget counts.

    It equals another one of the same function: a caller may take over an opening that another one no longer
    waits for.

    Args:
        connect: Opens a connection.
        limit: Counts the open connections.
        descriptor_of: Returns the descriptor of a connection's socket.
    """

    def __init__(
        self, connect: Callable[..., Any], limit: OpenLimit, descriptor_of: Callable[[Any], int]
    ) -> None:
        self._connect = connect
        self._limit = limit
        self._descriptor_of = descriptor_of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CountedConnect) and self._connect == other._connect

    def __hash__(self) -> int:
        return hash(self._connect)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Opens a connection.

        Raises:
            BulkheadFullError: The budget has no room for it.
        """
        entry = self._limit.reserve()
        try:
            connection = self._connect(*args, **kwargs)
        except BaseException:
            entry.end()
            raise
        descriptor = None
        with suppress(Exception):  # it is closed already
            descriptor = self._descriptor_of(connection)
        entry.opened(descriptor)
        weakref.finalize(connection, entry.end).atexit = False
        setattr(connection, _ENTRY, entry)
        return connection
