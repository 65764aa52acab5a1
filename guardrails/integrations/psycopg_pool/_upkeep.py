"""The idle connections of a pool of psycopg_pool under a fleet's budget: those above its lease are closed.

psycopg_pool looks after their life itself. Depends on psycopg_pool; must not import the pool's hooks.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from guardrails._guard.guard import Guard
from guardrails._pool.life import Age, LifeSettings
from guardrails._pool.open_limit import OpenLimit, PoolEntry
from guardrails._pool.upkeep import PoolUpkeep
from guardrails._pool.upkeep_on_loop import LoopUpkeep

__all__ = ["AsyncPsycopgPoolUpkeep", "PsycopgPoolUpkeep", "note_dropped", "taken_out"]

_AGE = "_guardrails_age"


def taken_out(pool: Any, connection: Any) -> bool:
    """Takes an idle connection out of its pool; False if it is no longer there. The caller has the lock."""
    try:
        pool._pool.remove(connection)  # noqa: SLF001 - it has no public way to any of this
    except ValueError:
        return False
    return True


def note_dropped(pool: Any) -> None:
    """Has a pool count one connection less; it opens one if a caller waits. The caller has the lock."""
    pool._nconns -= 1  # noqa: SLF001 - as the pool does when it shrinks
    if hasattr(pool, "_nconns_min"):
        pool._nconns_min = min(pool._nconns_min, len(pool._pool))  # noqa: SLF001
    if pool._waiting:  # noqa: SLF001
        pool._maybe_grow_pool()  # noqa: SLF001


class PsycopgPoolUpkeep(PoolUpkeep):
    """The upkeep of one pool in threads.

    Args:
        pool: The pool.
        guard: Its guard.

    Attributes:
        limit: The entries of the open connections.
    """

    def __init__(self, pool: Any, guard: Guard) -> None:
        super().__init__(guard, LifeSettings())
        self._pool = pool
        self.limit = OpenLimit(guard, self.close_oldest)

    def reserve(self) -> PoolEntry | None:
        """Returns the entry of a connection to be opened; None without a budget; see `OpenLimit`."""
        return None if self.lease is None else self.limit.reserve()

    async def reserve_async(self) -> PoolEntry | None:
        """Returns an entry without blocking the event loop."""
        return None if self.lease is None else await self.limit.reserve_async()

    def adopt(self, connection: Any, closed: Callable[[], object]) -> Callable[[], object]:
        """Counts a connection that was open before the guard was attached; see `created`."""
        return self.created(connection, None if self.lease is None else self.limit.adopt(), closed)

    def created(
        self, connection: Any, entry: PoolEntry | None, closed: Callable[[], object]
    ) -> Callable[[], object]:
        """Notes a connection, its entry, and what counts its closing; returns what to call then."""
        setattr(connection, _AGE, self.opened(self.loop()))
        if entry is None:
            return closed
        with suppress(Exception):  # it is closed already
            entry.opened(connection.fileno())
        weakref.finalize(connection, entry.end).atexit = False

        def ended() -> None:
            closed()
            entry.end()

        return ended

    def must_drop(self, connection: Any) -> bool:
        """Notes the return of a connection; True if the pool must not get it, or another one for it."""
        age: Age | None = getattr(connection, _AGE, None)
        if self.lease is None or age is None or not self._acts():
            return False
        return bool(connection.closed) or self.must_close(age)

    # --- IdlePool ----------------------------------------------------------------------------------

    def idle(self) -> list[tuple[Any, Age]]:
        """See IdlePool. A null pool has none, and opens connections while it holds its lock."""
        if not self._pool._pool:  # noqa: SLF001
            return []
        with self._lock():
            connections = list(self._pool._pool)  # noqa: SLF001
        found = [(each, getattr(each, _AGE, None)) for each in connections]
        return [(each, age) for each, age in found if age is not None and age.process == os.getpid()]

    def open_count(self) -> int:
        """See IdlePool."""
        return self.limit.open_count()

    def take(self, connection: Any) -> bool:
        """See IdlePool."""
        with self._lock():
            return taken_out(self._pool, connection)

    async def close(self, connection: Any) -> None:
        """See IdlePool. The pool opens no other for it."""
        connection._pool = None  # noqa: SLF001 - with it, closing may return it
        try:
            await self._close(connection)
        finally:
            with self._lock():
                note_dropped(self._pool)

    async def _close(self, connection: Any) -> None:
        connection.close()

    def put_back(self, connection: Any) -> None:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def ping(self, connection: Any) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    async def open(self) -> bool:
        """See IdlePool; never asked for."""
        raise NotImplementedError

    def _lock(self) -> Any:
        return self._pool._lock  # noqa: SLF001


class AsyncPsycopgPoolUpkeep(LoopUpkeep, PsycopgPoolUpkeep):
    """The upkeep of one pool on an event loop."""

    async def _close(self, connection: Any) -> None:
        await connection.close()

    def _lock(self) -> Any:
        return nullcontext()  # one thread touches it
