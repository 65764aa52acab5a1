"""A few connections beside a pool, for releases that the guard refuses.

Depends on redis-py's pools and the checkouts of a client; must not import the pool's hooks. Each connection
is opened for one call and closed after it, so the slots still count the pool's own connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.asyncio.connection import BlockingConnectionPool as AsyncBlockingPool
from redis.connection import BlockingConnectionPool
from redis.maint_notifications import MaintNotificationsConfig

from guardrails.integrations.redis._checkout import current_checkout
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._releases import GRACE

__all__ = ["AsyncReserve", "Reserve"]

RESERVE = 2
"""Connections that a guarded client may have beside its pool's. A release takes about a millisecond."""


class _GuardedPool:
    """A second pool for the server of a guarded client's pool; a mixin for redis-py's pool classes.

    Args:
        pool: The pool of the guarded client.
        work: Makes the checkouts.
        take_over: Guards a new connection.
    """

    def __init__(self, pool: Any, work: CommandRunner, take_over: Callable[[Any], None]) -> None:
        super().__init__(**_settings(pool))
        self.connection_kwargs = pool.connection_kwargs  # the same dictionary: a later change applies to both
        self._work = work
        self._take_over = take_over

    def make_connection(self) -> Any:
        """See redis-py."""
        connection = super().make_connection()  # type: ignore[misc]  # of redis-py's pool class
        self._take_over(connection)
        return connection

    @contextmanager
    def _checking_out(self) -> Iterator[None]:
        """Makes the checkout of the block; ends the block quietly if all connections are out."""
        checkout = self._work.for_reserve()
        token = current_checkout.set(checkout)
        try:
            yield
        except redis.ConnectionError:
            if checkout.used:
                raise
        finally:
            current_checkout.reset(token)


class Reserve(_GuardedPool, BlockingConnectionPool):
    """The reserve of a synchronous client."""

    def open(self) -> Any:
        """Returns an open connection; None if all of them stay out for `GRACE` seconds.

        Raises:
            RedisError: The server cannot be reached.
            CallTimeoutError: The server did not answer within `GRACE` seconds.
        """
        with self._checking_out():
            connection = self.get_connection()  # type: ignore[no-untyped-call]
            connection.close_on_release = True
            return connection
        return None

    def release(self, connection: Any) -> None:
        """See redis-py."""
        connection.disconnect()
        connection.checkout = None
        super().release(connection)  # type: ignore[no-untyped-call]


class AsyncReserve(_GuardedPool, AsyncBlockingPool):
    """The reserve of an asyncio client."""

    async def open(self) -> Any:
        """See the synchronous twin."""
        with self._checking_out():
            connection = await self.get_connection()  # type: ignore[no-untyped-call]
            connection.close_on_release = True
            return connection
        return None

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
        # The pool's handler of notifications, if any, is among its connections' arguments.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
