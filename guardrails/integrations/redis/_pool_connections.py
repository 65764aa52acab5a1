"""The connections of redis-py's pools, which have no public getters. Must not import a guard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis.connection
import redis.utils

from guardrails._pool.figures import Connections

__all__ = ["capacity", "checked_out", "idle", "open_connections", "unwrapped", "without_wrapper"]

_NO_LIMIT = 2**31
"""redis-py's ``max_connections`` of a pool without a limit."""


def capacity(pool: Any) -> int | None:
    """Returns how many connections a pool lets out at the same time at most; None without a limit."""
    most: int = pool.max_connections
    return most if most < _NO_LIMIT else None


def idle(pool: Any) -> Iterable[Any]:
    """Returns the connections in a pool."""
    if isinstance(pool, redis.connection.BlockingConnectionPool):
        return [connection for connection in list(pool.pool.queue) if connection is not None]
    return list(pool._available_connections)  # noqa: SLF001 - there is no public getter


def checked_out(pool: Any) -> list[Any]:
    """Returns the connections that are out of a pool."""
    if isinstance(pool, redis.connection.BlockingConnectionPool):
        waiting = set(idle(pool))
        return [connection for connection in list(pool._connections) if connection not in waiting]  # noqa: SLF001
    return list(pool._in_use_connections)  # noqa: SLF001


def open_connections(pool: Any) -> Connections:
    """Counts the connections that are open; redis-py keeps those that were closed for later."""
    in_use, waiting = checked_out(pool), idle(pool)
    return Connections(
        sum(connection.is_connected for connection in in_use),
        sum(connection.is_connected for connection in waiting),
    )


def unwrapped(connection: Any) -> Any:
    """Returns the connection inside one with a cache; any other one itself."""
    return vars(connection).get("_conn", connection)


def without_wrapper(method: Any) -> Any:
    """Returns a method without redis-py's check for deprecated arguments: it gets none of them."""
    is_wrapped = getattr(method, "__globals__", None) is vars(redis.utils)
    return method.__wrapped__ if is_wrapped else method
