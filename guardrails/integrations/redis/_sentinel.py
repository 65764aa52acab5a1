"""Bounds the queries to sentinels by the deadline of the checkout that needs the answer.

Depends on guarded connections; must not import the pool's hooks or change slots. Each sentinel gets a share
of the time, so that a frozen one leaves enough for the next. The outcome belongs to opening the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import redis
import redis.asyncio

from guardrails.integrations.redis._async_connection import GuardedAsyncConnection
from guardrails.integrations.redis._checkout import current_checkout
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._connection import GuardedConnection
from guardrails.integrations.redis._guarded_connection import CleanUp, IsRetryable, Work, derive, is_guarded

__all__ = ["Discovery", "restore_pool"]

_POOLS = (redis.ConnectionPool, redis.asyncio.ConnectionPool)
_MAKE = "make_connection"


class _SentinelConnection(GuardedConnection):
    """A connection to a sentinel.

    Attributes:
        shares: Number of parts that the caller's time is divided into.
    """

    takes_checkout = False  # the checkout belongs to the connection to the server
    shares: int

    def call_with_retry(
        self,
        do: Work,
        fail: CleanUp,
        is_retryable: IsRetryable = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> Any:
        """Asks once, within a share of the caller's time."""
        share = _share(self.shares)
        if self._busy:
            return self._try_once(do, fail, counts=with_failure_count)
        if share is None:
            return self.policy.run(do, fail, is_retryable, with_failure_count)
        self._busy = True
        self._limit.at = monotonic() + share
        try:
            return self._try_once(do, fail, counts=with_failure_count)
        finally:
            self._busy = False
            self._limit.at = None


class _AsyncSentinelConnection(GuardedAsyncConnection):
    """A connection to a sentinel on an event loop."""

    takes_checkout = False
    shares: int

    async def call_with_retry(
        self,
        do: Work,
        fail: CleanUp,
        is_retryable: IsRetryable = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> Any:
        """See the synchronous twin."""
        share = _share(self.shares)
        if self._busy:
            return await self._try(do, fail, counts=with_failure_count, until=None)
        if share is None:
            return await self.policy.run(do, fail, is_retryable, with_failure_count)
        self._busy = True
        try:
            async with asyncio.timeout(share):
                return await self._try(do, fail, counts=with_failure_count, until=None)
        except TimeoutError as late:
            await self._abort()
            raise redis.TimeoutError("the sentinel did not answer in time") from late
        finally:
            self._busy = False


def restore_pool(pool: Any) -> None:
    """Removes the hook from a sentinel's pool; its client may then get a guard of its own."""
    vars(pool).pop(_MAKE, None)


def _share(shares: int) -> float | None:
    """Returns the seconds that one sentinel may take; None without a deadline."""
    checkout = current_checkout.get()
    if checkout is None or checkout.at is None:
        return None
    return max(0.001, (checkout.at - monotonic()) / shares)


class Discovery:
    """The hooks on the sentinels of one pool; a pool without sentinels has none.

    Args:
        pool: The pool of a guarded client.
        work: Records the work of that client.
    """

    def __init__(self, pool: Any, work: CommandRunner) -> None:
        manager = getattr(pool, "sentinel_manager", None)
        self._sentinels: list[Any] = [] if manager is None else list(manager.sentinels)
        self._work = work
        self._classes: dict[type, Any] = {}
        self._pools: list[Any] = []

    def attach(self) -> None:
        """Replaces the classes of the connections to the sentinels."""
        for sentinel in self._sentinels:
            pool = getattr(sentinel, "connection_pool", None)
            if not isinstance(pool, _POOLS) or hasattr(pool, "_guardrails") or _MAKE in vars(pool):
                continue  # guarded by itself, or through another client of the same Sentinel
            vars(pool)[_MAKE] = partial(self._make, pool.make_connection)
            self._pools.append(pool)
            for connection in pool._available_connections:  # noqa: SLF001 - there is no public getter
                self._take_over(connection)

    def _make(self, make_plain: Callable[[], Any]) -> Any:
        connection = make_plain()
        self._take_over(connection)
        return connection

    def _take_over(self, connection: Any) -> None:
        if is_guarded(connection):
            return
        plain = type(connection)
        if plain not in self._classes:
            on_loop = issubclass(plain, redis.asyncio.connection.AbstractConnection)
            self._classes[plain] = derive(
                plain, _AsyncSentinelConnection if on_loop else _SentinelConnection, self._work
            )
            # Two for each sentinel, to connect and to ask, and one for the server.
            self._classes[plain].shares = 2 * len(self._sentinels) + 1
        connection.__class__ = self._classes[plain]
        connection.guard()

    def detach(self) -> None:
        """Restores the classes."""
        for pool in self._pools:
            restore_pool(pool)
            for connection in [*pool._available_connections, *pool._in_use_connections]:  # noqa: SLF001
                if type(connection) in self._classes.values():
                    connection.__class__ = type(connection).plain
        self._pools.clear()
