"""Asking the sentinels, inside the deadline of whoever needs the answer. Knows no slots and no evidence.

Each sentinel gets a share of the time, so that one that is frozen leaves enough to ask the next. What
comes of it is part of opening the connection that asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any

import redis
import redis.asyncio

from guardrails.integrations.redis._async_connection import GuardedAsyncConnection
from guardrails.integrations.redis._checkout import under_way
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._connection import GuardedConnection
from guardrails.integrations.redis._guarded_connection import derive, is_guarded

__all__ = ["Discovery", "leave"]

_POOLS = (redis.ConnectionPool, redis.asyncio.ConnectionPool)
_MAKE = "make_connection"


class _Asking(GuardedConnection):
    """A connection to a sentinel.

    Attributes:
        shares: Into how many parts the caller's time is divided.
    """

    meets_callers = False  # it stays its own pool's: the caller has the server's connection on his mind
    shares: int

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> Any:
        """Asks once, for a share of the caller's time."""
        share = _share(self.shares)
        if self._busy:
            return self._once(do, fail, counts=with_failure_count)
        if share is None:
            return self.policy.run(do, fail, is_retryable, with_failure_count)
        self._busy = True
        self._bounds.at = monotonic() + share
        try:
            return self._once(do, fail, counts=with_failure_count)
        finally:
            self._busy = False
            self._bounds.at = None


class _AskingAsync(GuardedAsyncConnection):
    """The same on an event loop."""

    meets_callers = False
    shares: int

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Awaitable[Any]],
        is_retryable: Callable[[Exception], bool] | None = None,
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


def leave(pool: Any) -> None:
    """Has a sentinel's pool make its own connections again: its client gets a guard of its own."""
    vars(pool).pop(_MAKE, None)


def _share(shares: int) -> float | None:
    """Seconds one sentinel may take; None where nobody's deadline asks."""
    checkout = under_way.get()
    if checkout is None or checkout.at is None:
        return None
    return max(0.001, (checkout.at - monotonic()) / shares)


class Discovery:
    """The connections to the sentinels of one pool; nothing for any other pool.

    Args:
        pool: The pool of a guarded client.
        work: What the pieces of work of that client are reported to.
    """

    def __init__(self, pool: Any, work: CommandRunner) -> None:
        manager = getattr(pool, "sentinel_manager", None)
        self._sentinels: list[Any] = [] if manager is None else list(manager.sentinels)
        self._work = work
        self._classes: dict[type, Any] = {}
        self._pools: list[Any] = []

    def attach(self) -> None:
        """Swaps the classes of their connections."""
        for sentinel in self._sentinels:
            pool = getattr(sentinel, "connection_pool", None)
            if not isinstance(pool, _POOLS) or hasattr(pool, "_guardrails") or _MAKE in vars(pool):
                continue  # it is guarded itself, or another client of the same Sentinel is
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
            self._classes[plain] = derive(plain, _AskingAsync if on_loop else _Asking, self._work)
            # Connecting and asking, for each sentinel, and the server after that.
            self._classes[plain].shares = 2 * len(self._sentinels) + 1
        connection.__class__ = self._classes[plain]
        connection.guard()

    def detach(self) -> None:
        """Puts the classes back."""
        for pool in self._pools:
            leave(pool)
            for connection in [*pool._available_connections, *pool._in_use_connections]:  # noqa: SLF001
                if type(connection) in self._classes.values():
                    connection.__class__ = type(connection).plain
        self._pools.clear()
