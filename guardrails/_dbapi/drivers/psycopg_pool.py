"""psycopg's connections where psycopg_pool owns them. Depends on psycopg; must not import another driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._dbapi.drivers.psycopg import Psycopg, PsycopgAsync

__all__ = ["FromPool", "PooledPsycopg", "PooledPsycopgAsync"]

_REFUSALS = frozenset({"PoolClosed", "TooManyRequests"})
"""psycopg_pool's errors about its own queue and life."""


class PooledPsycopg(Psycopg):
    """See Driver. The code that took a connection returns it to its pool, even a closed one."""

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

    def unsent(self, error: BaseException) -> bool:
        """True if the pool itself refused, which says nothing about the server."""
        kind = type(error)  # by its name: psycopg_pool may be missing where Django has no pool
        return kind.__module__.startswith("psycopg_pool") and kind.__name__ in _REFUSALS
