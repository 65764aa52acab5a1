"""psycopg_pool, asked for a connection with a time limit. Must not import its guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg_pool import PoolTimeout

from guardrails._dbapi.stopping import StoppedError

__all__ = ["borrow", "borrow_async"]


def borrow(
    pool: Any, get: Callable[..., Any], given: float | None = None, seconds: float | None = None
) -> Any:
    """Takes a connection from a pool, in the caller's own thread.

    The pool is told how long to wait, so a connection that comes too late stays in the pool. A caller that
    waited in another thread and gave up would get that connection and lose it.

    Args:
        pool: The pool.
        get: Its ``getconn``.
        given: The caller's own timeout; None is the pool's.
        seconds: The longest wait; None is the caller's.

    Raises:
        StoppedError: There was none in ``seconds``.
        PoolTimeout: There was none in the caller's or the pool's time, which is shorter.
    """
    if seconds is None or (pool.timeout if given is None else given) <= seconds:
        return get(given)
    try:
        return get(seconds)
    except PoolTimeout as error:
        raise StoppedError from error


async def borrow_async(
    pool: Any, get: Callable[..., Any], given: float | None = None, seconds: float | None = None
) -> Any:
    """Takes a connection from an asyncio pool; see `borrow`."""
    if seconds is None or (pool.timeout if given is None else given) <= seconds:
        return await get(given)
    try:
        return await get(seconds)
    except PoolTimeout as error:
        raise StoppedError from error
