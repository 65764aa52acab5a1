"""Replaces Django's connections when the primary has moved. Must not import a driver.

A connection that a thread keeps is closed at the end of its request, or before the next one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails._guard.guard import Guard
from guardrails._pool.life import Age, LifeSettings
from guardrails._pool.upkeep import PoolUpkeep

__all__ = ["Renewable", "Renewal", "own_age"]

_AGE = "_guardrails_age"


class Renewal(PoolUpkeep):
    """The connections that Django's threads have open, each in the hands of its thread.

    Nothing but a renewal is ever due: the settings of a life are off.

    Args:
        guard: The guard.
        endpoint: Returns the host that a connection was opened to, and its address.
    """

    def __init__(self, guard: Guard, endpoint: Callable[[Any], tuple[str | None, str | None]]) -> None:
        super().__init__(guard, LifeSettings())
        self._endpoint = endpoint

    def created(self, connection: Any) -> None:
        """Notes a new connection."""
        host = peer = None
        with suppress(Exception):  # closed meanwhile
            host, peer = self._endpoint(connection)
        setattr(connection, _AGE, self.opened(None, host, peer))

    def is_over(self, connection: Any) -> bool:
        """Notes the return of a connection, or the end of its request; True if it must be closed."""
        age = own_age(connection)
        return self.life.acts and age is not None and self.must_close(age)

    # --- IdlePool: no connection is idle outside of its thread --------------------------------------

    def idle(self) -> list[tuple[Any, Age]]:
        """See IdlePool."""
        return []

    def open_count(self) -> int:
        """See IdlePool. Nothing is closed for its sake."""
        return 0

    def take(self, connection: Any) -> bool:  # noqa: ARG002 - there is none
        """See IdlePool."""
        return False

    def put_back(self, connection: Any) -> None:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def close(self, connection: Any) -> None:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def ping(self, connection: Any) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def open(self) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError


def own_age(connection: Any) -> Age | None:
    """Returns the times of a connection that this process has opened; None for another."""
    age: Age | None = getattr(connection, _AGE, None)
    return age if age is not None and age.process == os.getpid() else None


class Renewable:
    """Mixed into Django's wrapper of a connection: its side of connections that are being replaced."""

    connection: Any
    close_at: float | None
    _guarded: Any

    def close_if_unusable_or_obsolete(self) -> None:
        """See Django, which calls it before and after each request."""
        if self._is_over():
            self.close_at = 0.0
        super().close_if_unusable_or_obsolete()  # type: ignore[misc]  # of the other base

    def _is_over(self) -> bool:
        protection, connection = self._guarded, self.connection
        return protection is not None and connection is not None and protection.renewal.is_over(connection)
