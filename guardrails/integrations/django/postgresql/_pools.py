"""psycopg's pool, asked with patience that has an end. Knows pools, no Django."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails.integrations.sqlalchemy._drivers.psycopg import Psycopg
from guardrails.integrations.sqlalchemy._stopping import StoppedError

__all__ = ["FromPool", "LendingPool"]


class LendingPool:
    """A pool that is asked for one connection.

    Args:
        pool: The pool.
        seconds: How long to wait for a connection; None is the pool's own time.
    """

    def __init__(self, pool: Any, seconds: float | None) -> None:
        self._pool = pool
        self._seconds = seconds

    def open(self) -> None:
        """See psycopg_pool."""
        self._pool.open()

    def getconn(self) -> Any:
        """See psycopg_pool.

        Raises:
            StoppedError: There was none in time.
        """
        from psycopg_pool import PoolTimeout  # noqa: PLC0415 - only who has a pool has the package

        try:
            return self._pool.getconn(self._seconds)
        except PoolTimeout as error:
            if self._seconds is None:
                raise
            raise StoppedError from error


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
