"""psycopg's pool as Django uses it. Must not import Django."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Source", "largest", "least"]


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


def least(options: Any) -> object:
    """The number of connections that a pool with Django's ``OPTIONS["pool"]`` keeps; 0 without a pool."""
    if not options:
        return 0
    return options.get("min_size", _MIN_SIZE) if isinstance(options, dict) else _MIN_SIZE
