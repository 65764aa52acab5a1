"""A few connections beside a pool, to give something back with while the guard refuses everything else.

They are opened for one call and closed after it, so the pool's own connections stay what the slots count.
Depends on redis-py's pools and the checkouts of a client; must not import the pool's hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis.asyncio.connection import BlockingConnectionPool as AsyncBlockingPool
from redis.connection import BlockingConnectionPool
from redis.maint_notifications import MaintNotificationsConfig

from guardrails.integrations.redis._checkout import under_way
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._releases import GRACE

__all__ = ["AsyncReserve", "Reserve"]

RESERVE = 2
"""Connections that a guarded client may have besides the pool's. A release takes about a millisecond."""


class _GuardedPool:
    """A pool of its own for the server of another one; stands before redis-py's pool class.

    Args:
        pool: The pool of a guarded client.
        work: Runs its checkouts.
        take_over: Guards a new connection.
    """

    def __init__(self, pool: Any, work: CommandRunner, take_over: Callable[[Any], None]) -> None:
        super().__init__(**_settings(pool))
        self.connection_kwargs = pool.connection_kwargs  # one dictionary: what changes later holds for both
        self._work = work
        self._take_over = take_over

    def make_connection(self) -> Any:
        """See redis-py."""
        connection = super().make_connection()  # type: ignore[misc]  # of the pool class that follows
        self._take_over(connection)
        return connection


class Reserve(_GuardedPool, BlockingConnectionPool):
    """The reserve of a synchronous client."""

    def lend(self) -> Any:
        """An open connection, or None if all of them are out for the time that the call has.

        Raises:
            RedisError: The server cannot be reached.
            CallTimeoutError: Likewise, within that time.
        """
        checkout = self._work.extra()
        entering = under_way.set(checkout)
        try:
            connection = self.get_connection()  # type: ignore[no-untyped-call]
        except redis.ConnectionError:
            if checkout.used:
                raise
            return None
        finally:
            under_way.reset(entering)
        connection.closes = True
        return connection

    def release(self, connection: Any) -> None:
        """See redis-py."""
        connection.disconnect()
        connection.checkout = None
        super().release(connection)  # type: ignore[no-untyped-call]


class AsyncReserve(_GuardedPool, AsyncBlockingPool):
    """The same on an event loop."""

    async def lend(self) -> Any:
        """See the synchronous twin."""
        checkout = self._work.extra()
        entering = under_way.set(checkout)
        try:
            connection = await self.get_connection()  # type: ignore[no-untyped-call]
        except redis.ConnectionError:
            if checkout.used:
                raise
            return None
        finally:
            under_way.reset(entering)
        connection.closes = True
        return connection

    async def release(self, connection: Any) -> None:
        """See redis-py."""
        await connection.disconnect(nowait=True)
        connection.checkout = None
        await super().release(connection)


def _settings(pool: Any) -> dict[str, Any]:
    return {
        "max_connections": RESERVE,
        "timeout": GRACE,
        "connection_class": pool.connection_class,
        # The pool's own handler is among its arguments for connections, if there is one.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
