"""psycopg's connections where psycopg_pool owns them, and that pool asked for one with a time limit.

Depends on psycopg; must not import another driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._dbapi.drivers.psycopg import Psycopg, PsycopgAsync
from guardrails._dbapi.stopping import StoppedError

__all__ = ["FromPool", "PooledPsycopg", "PooledPsycopgAsync", "borrow", "borrow_async"]


class PooledPsycopg(Psycopg):
    """See Driver. Whoever took a connection gives it back to its pool, also one that was closed for good."""

    def _return(self, owner: Any, connection: Any) -> None:
        pass


class PooledPsycopgAsync(PsycopgAsync):
    """See `PooledPsycopg`."""

    def _return(self, owner: Any, connection: Any) -> None:
        pass


class FromPool(Psycopg):
    """See Driver. The pool connects in threads or tasks of its own, and takes back what it has lent."""

    connects_anywhere = False

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,
        backstop: float | None,  # noqa: ARG002 - the pool's connections are made elsewhere
    ) -> Any:
        """See Driver. For a coroutine function it returns the coroutine."""
        return connect(seconds=seconds, **arguments)


def borrow(
    pool: Any, get: Callable[..., Any], given: float | None = None, seconds: float | None = None
) -> Any:
    """Takes a connection from a pool, in the caller's own thread.

    The pool is told how long to wait: a connection that comes too late then stays in the pool. Whoever
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
    from psycopg_pool import PoolTimeout  # noqa: PLC0415 - only who has a pool has the package

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
    from psycopg_pool import PoolTimeout  # noqa: PLC0415 - likewise

    if seconds is None or (pool.timeout if given is None else given) <= seconds:
        return await get(given)
    try:
        return await get(seconds)
    except PoolTimeout as error:
        raise StoppedError from error
