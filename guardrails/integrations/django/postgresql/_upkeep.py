"""Replaces Django's connections when the primary has moved. Must not open, make or look for a pool.

psycopg's pool looks after the life of its connections itself. It opens another one for each that is too old
when it comes back. So a connection whose time is over gets a past date, and is returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails._guard.guard import Guard
from guardrails._pool.life import Age, LifeSettings
from guardrails._pool.upkeep import PoolUpkeep
from guardrails._util.weak_registry import WeakRegistry

__all__ = ["DjangoUpkeep", "Renewable"]

_AGE = "_guardrails_age"


class DjangoUpkeep(PoolUpkeep):
    """The connections of psycopg's pools, and those that Django's threads keep between requests.

    Nothing but a renewal is ever due: the settings of a life are off.

    Args:
        guard: The guard.
        pools: The pools behind it.
        endpoint: Returns the host that a connection was opened to, and its address.
    """

    def __init__(
        self,
        guard: Guard,
        pools: WeakRegistry[Any],
        endpoint: Callable[[Any], tuple[str | None, str | None]],
    ) -> None:
        super().__init__(guard, LifeSettings())
        self._pools = pools
        self._endpoint = endpoint

    def created(self, connection: Any) -> None:
        """Notes a new connection."""
        host = peer = None
        with suppress(Exception):  # closed meanwhile
            host, peer = self._endpoint(connection)
        setattr(connection, _AGE, self.opened(None, host, peer))

    def is_over(self, connection: Any) -> bool:
        """Notes the return of a connection, or the end of its request; True if it must be closed."""
        age: Age | None = getattr(connection, _AGE, None)
        return self.life.acts and age is not None and age.process == os.getpid() and self.must_close(age)

    # --- IdlePool: the idle connections of psycopg's pools -----------------------------------------

    def idle(self) -> list[tuple[Any, Age]]:
        """See IdlePool."""
        found = []
        for pool in self._open_pools():
            with pool._lock:  # noqa: SLF001 - it has no public way to look
                connections = list(pool._pool)  # noqa: SLF001
            found += [(each, getattr(each, _AGE, None)) for each in connections]
        return [(each, age) for each, age in found if age is not None and age.process == os.getpid()]

    def open_count(self) -> int:
        """See IdlePool. The pools keep to their own sizes."""
        return 0

    def take(self, connection: Any) -> bool:
        """See IdlePool."""
        for pool in self._open_pools():
            with pool._lock, suppress(ValueError):  # noqa: SLF001 - it gives out the oldest only
                pool._pool.remove(connection)  # noqa: SLF001
                connection._pool = pool  # noqa: SLF001 - as it does itself
                return True
        return False

    def _open_pools(self) -> list[Any]:
        # Before it is opened a pool may have no lock.
        return [pool for pool in self._pools.living() if not pool.closed]

    def put_back(self, connection: Any) -> None:
        """See IdlePool."""
        connection._pool.putconn(connection)  # noqa: SLF001 - see `take`

    async def close(self, connection: Any) -> None:
        """See IdlePool. The pool closes it, and opens another one in a thread of its own."""
        _expire(connection)
        self.put_back(connection)

    async def ping(self, connection: Any) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def open(self) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError


class Renewable:
    """Mixed into Django's wrapper of a connection: its side of a pool that is being renewed."""

    connection: Any
    close_at: float | None
    _guarded: Any

    def close_if_unusable_or_obsolete(self) -> None:
        """See Django, which calls it before and after each request."""
        if self._is_over():
            self.close_at = 0.0
        super().close_if_unusable_or_obsolete()  # type: ignore[misc]  # of the other base

    def _close(self) -> None:
        if self._is_over():
            _expire(self.connection)
        super()._close()  # type: ignore[misc]  # of the other base

    def _is_over(self) -> bool:
        protection, connection = self._guarded, self.connection
        return protection is not None and connection is not None and protection.renewal.is_over(connection)


def _expire(connection: Any) -> None:
    """Has psycopg's pool replace a connection when it gets it back."""
    connection._expire_at = 0.0  # noqa: SLF001 - the pool's own limit of its life
