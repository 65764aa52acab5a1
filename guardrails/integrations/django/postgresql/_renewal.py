"""Replaces the connections of psycopg's pools when the primary has moved. Must not open or look for a pool.

psycopg's pool looks after the life of its connections itself. It opens another one for each that is too old
when it comes back. So a connection whose time is over gets a past date, and is returned. One that is above a
fleet's lease is taken out of the pool's number and closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._guard.guard import Guard
from guardrails._pool.life import Age
from guardrails.integrations.django._database.connection_notes import own_age
from guardrails.integrations.django._database.renewal import Renewable, Renewal
from guardrails.integrations.psycopg_pool._upkeep import note_dropped, taken_out

__all__ = ["PoolRenewal", "RenewableInPool"]


class PoolRenewal(Renewal):
    """The connections of psycopg's pools, besides those that Django's threads keep.

    Args:
        guard: The guard.
        endpoint: Returns the host that a connection was opened to, and its address.
        open_pools: Returns the pools behind it that are open.
    """

    def __init__(
        self,
        guard: Guard,
        endpoint: Callable[[Any], tuple[str | None, str | None]],
        open_pools: Callable[[], list[Any]],
    ) -> None:
        super().__init__(guard, endpoint)
        self._open_pools = open_pools

    def idle(self) -> list[tuple[Any, Age]]:
        """See IdlePool."""
        found: list[tuple[Any, Age | None]] = [*super().idle()]
        for pool in self._open_pools():
            with pool._lock:  # noqa: SLF001 - it has no public way to look
                connections = list(pool._pool)  # noqa: SLF001
            found += [(each, own_age(each)) for each in connections]
        return [(each, age) for each, age in found if age is not None]

    def take(self, connection: Any) -> bool:
        """See IdlePool."""
        for pool in self._open_pools():
            with pool._lock:  # noqa: SLF001
                if taken_out(pool, connection):
                    connection._pool = pool  # noqa: SLF001 - as it does itself
                    return True
        return super().take(connection)

    def put_back(self, connection: Any) -> None:
        """See IdlePool."""
        connection._pool.putconn(connection)  # noqa: SLF001 - see `take`

    async def close(self, connection: Any) -> None:
        """See IdlePool. Without a lease the pool closes it, and opens another one in a thread of its own."""
        if getattr(connection, "_pool", None) is None:
            await super().close(connection)
        elif self.lease is None:
            _expire(connection)
            self.put_back(connection)
        else:
            _drop(connection)


class RenewableInPool(Renewable):
    """Mixed into Django's wrapper of a connection that may be a pool's."""

    def _close(self) -> None:
        if self._is_over():
            if (
                self._guarded.renewal.lease is not None
                and getattr(self.connection, "_pool", None) is not None
            ):
                connection, self.connection = self.connection, None
                _drop(connection)
                return
            _expire(self.connection)
        super()._close()  # type: ignore[misc]  # of the other base


def _expire(connection: Any) -> None:
    """Has psycopg's pool replace a connection when it gets it back."""
    connection._expire_at = 0.0  # noqa: SLF001 - the pool's own limit of its life


def _drop(connection: Any) -> None:
    """Closes a connection that is out of its pool, which opens another only for a caller that waits."""
    pool, connection._pool = connection._pool, None  # noqa: SLF001 - with it, closing would return it
    try:
        connection.close()
    finally:
        with pool._lock:  # noqa: SLF001
            note_dropped(pool)
