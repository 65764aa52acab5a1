"""Has a pool of psycopg_pool replace a connection that it will not get back. Must not import its guard."""

from __future__ import annotations

import asyncio
from typing import Any

from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool, NullConnectionPool
from psycopg_pool.pool import AddConnection
from psycopg_pool.pool_async import AddConnection as AddAsyncConnection

__all__ = ["replace_lost_connection"]


def replace_lost_connection(pool: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    """Has a pool open another connection, or count one less where it keeps none.

    Args:
        pool: The pool.
        loop: The event loop of an asyncio pool; None if it was not used yet.
    """
    if pool.closed:
        return
    if not isinstance(pool, AsyncConnectionPool):
        _replace(pool)
    elif loop is not None and not loop.is_closed():
        loop.call_soon_threadsafe(_replace, pool)


def _replace(pool: Any) -> None:
    if isinstance(pool, NullConnectionPool | AsyncNullConnectionPool):
        pool._nconns -= 1  # noqa: SLF001 - psycopg_pool has no public way
        return
    add = AddAsyncConnection if isinstance(pool, AsyncConnectionPool) else AddConnection
    pool.run_task(add(pool))
