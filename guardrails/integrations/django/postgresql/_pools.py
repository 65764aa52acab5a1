"""psycopg's pool, asked for a connection with a time limit. Must not import Django."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._dbapi.drivers.psycopg import Psycopg
from guardrails._dbapi.stopping import StoppedError

__all__ = ["DjangoPsycopg", "FromPool", "Source", "borrow", "largest"]


class Source:
    """Stands where Django looks for a pool while it opens one connection.

    Args:
        get: Opens the connection, or takes it from the pool that is really there.
        pool: That pool, or None.
    """

    def __init__(self, get: Callable[[], Any], pool: Any) -> None:
        self.getconn = get
        self._pool = pool

    def open(self) -> None:
        """See psycopg_pool."""
        if self._pool is not None:
            self._pool.open()


def borrow(pool: Any, seconds: float | None = None) -> Any:
    """Takes a connection from a pool, in the caller's own thread.

    The pool is told how long to wait: a connection that comes too late then stays in the pool. Whoever
    waited in another thread and gave up would get that connection and lose it.

    Args:
        pool: The pool.
        seconds: The longest wait; None is the pool's own.

    Raises:
        StoppedError: There was none in this time.
        PoolTimeout: There was none in the pool's own time, which is shorter.
    """
    from psycopg_pool import PoolTimeout  # noqa: PLC0415 - only who has a pool has the package

    if seconds is None or pool.timeout <= seconds:
        return pool.getconn()
    try:
        return pool.getconn(seconds)
    except PoolTimeout as error:
        raise StoppedError from error


class DjangoPsycopg(Psycopg):
    """See Driver. Django itself gives a connection back to its pool, also one that was closed for good."""

    def _return(self, owner: Any, connection: Any) -> None:
        pass


class FromPool(Psycopg):
    """See Driver. The pool connects in threads of its own, and takes back what it has lent."""

    connects_anywhere = False

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,
        backstop: float | None,  # noqa: ARG002 - the pool's connections are made elsewhere
    ) -> Any:
        """See Driver."""
        return connect(seconds=seconds, **arguments)


_MIN_SIZE = 4
"""psycopg_pool's default for ``min_size``; ``max_size`` is then the same."""


def largest(options: Any) -> int | None:
    """The size of a pool with Django's ``OPTIONS["pool"]``; None without a pool."""
    if not options:
        return None
    given = options if isinstance(options, dict) else {}
    most = given.get("max_size")
    most = given.get("min_size", _MIN_SIZE) if most is None else most
    return most if isinstance(most, int) else None  # psycopg_pool refuses it in its own words
