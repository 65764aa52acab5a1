"""Replaces Django's connections when the primary has moved. Must not import a driver.

A connection that a thread keeps is closed at the end of its request, or before the next one. Under a fleet's
budget also in between, and if there are more than the lease allows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails._guard.attachment import Lease
from guardrails._guard.guard import Guard
from guardrails._pool.life import Age, LifeSettings
from guardrails._pool.open_limit import OpenLimit
from guardrails._pool.upkeep import PoolUpkeep
from guardrails.integrations.django._database.connection_notes import note_age, note_closed, own_age
from guardrails.integrations.django._database.kept import KeptConnections

__all__ = ["Renewable", "Renewal"]


class Renewal(PoolUpkeep):
    """The connections that Django's threads have open, each owned by its thread.

    Nothing but a renewal is ever due: the settings of a life are off.

    Args:
        guard: The guard.
        endpoint: Returns the host that a connection was opened to, and its address.

    Attributes:
        kept: The connections that threads keep between requests; None without a budget.
    """

    kept: KeptConnections | None = None
    _limit: OpenLimit | None = None

    def __init__(self, guard: Guard, endpoint: Callable[[Any], tuple[str | None, str | None]]) -> None:
        super().__init__(guard, LifeSettings())
        self._endpoint = endpoint

    def keep_within(self, limit: OpenLimit, lease: Lease, kept: KeptConnections) -> None:
        """Closes idle connections above a lease from now on."""
        self._limit, self.lease, self.kept = limit, lease, kept
        self.life.acts = True

    def created(self, connection: Any) -> None:
        """Notes a new connection."""
        host = peer = None
        with suppress(Exception):  # closed meanwhile
            host, peer = self._endpoint(connection)
        note_age(connection, self.opened(None, host, peer))

    def is_over(self, connection: Any) -> bool:
        """Notes the return of a connection, or the end of its request; True if it must be closed."""
        age = own_age(connection)
        return self.life.acts and age is not None and self.must_close(age)

    # --- IdlePool: without a budget no connection is idle outside of its thread ---------------------

    def idle(self) -> list[tuple[Any, Age]]:
        """See IdlePool."""
        return [] if self.kept is None else self.kept.idle()

    def open_count(self) -> int:
        """See IdlePool. Without a budget nothing is closed for its sake."""
        return 0 if self._limit is None else self._limit.open_count()

    def take(self, connection: Any) -> bool:
        """See IdlePool."""
        return self.kept is not None and self.kept.take(connection)

    def put_back(self, connection: Any) -> None:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def close(self, connection: Any) -> None:
        """See IdlePool. Its thread notices before its next work."""
        with suppress(Exception):  # the server has closed it
            connection.close()
        note_closed(connection)

    async def ping(self, connection: Any) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def open(self) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError


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
