"""psycopg's pool as Django uses it. Must not import Django."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._util.checks import shown
from guardrails.errors import ConfigurationError

__all__ = ["Source", "largest", "refuse_kept_connections"]


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


def refuse_kept_connections(where: str, settings: dict[str, Any]) -> None:
    """Checks that each open connection has a slot: a lease counts the slots.

    Raises:
        ConfigurationError: Connections are kept without a slot.
    """
    kept = settings.get("CONN_MAX_AGE", 0)
    if kept != 0 or settings["OPTIONS"].get("pool"):
        what = "OPTIONS['pool']" if settings["OPTIONS"].get("pool") else f"CONN_MAX_AGE = {shown(kept)}"
        raise ConfigurationError(
            f"{where}: its guard has a part of a fleet's budget, which counts connections in use; "
            f"{what} keeps others open. Use CONN_MAX_AGE = 0 and no pool, or the guard without a budget"
        )
