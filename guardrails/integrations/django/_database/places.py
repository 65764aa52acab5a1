"""What is noted on Django's connections: their ages, and their places under a fleet's budget.

Must not import a driver.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails._pool.life import Age
from guardrails._pool.open_limit import OpenLimit, Place

__all__ = ["InPlace", "note_age", "note_closed", "note_opened", "own_age", "place_of"]

_AGE = "_guardrails_age"
_CLOSED = "_guardrails_closed"
_PLACE = "_guardrails_place"


def place_of(connection: Any) -> Place | None:
    """Returns the place of a connection; None without a budget."""
    return getattr(connection, _PLACE, None)


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


class InPlace:
    """Opens a connection in a place of its own, where a budget counts those that are open.

    It equals another one of the same function: a caller may take over what another no longer waits for.

    Args:
        connect: Opens a connection.
        limit: Has the places.
        descriptor_of: Returns the descriptor of a connection's socket.
    """

    def __init__(
        self, connect: Callable[..., Any], limit: OpenLimit, descriptor_of: Callable[[Any], int]
    ) -> None:
        self._connect = connect
        self._limit = limit
        self._descriptor_of = descriptor_of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InPlace) and self._connect == other._connect

    def __hash__(self) -> int:
        return hash(self._connect)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Opens a connection.

        Raises:
            BulkheadFullError: There is no place for it.
        """
        place = self._limit.reserve()
        try:
            connection = self._connect(*args, **kwargs)
        except BaseException:
            place.end()
            raise
        descriptor = None
        with suppress(Exception):  # it is closed already
            descriptor = self._descriptor_of(connection)
        place.opened(descriptor)
        weakref.finalize(connection, place.end).atexit = False
        setattr(connection, _PLACE, place)
        return connection
