"""A pool's connection as its user sees it: cursors, COMMIT and ROLLBACK are driver work. Knows no statements.

SQLAlchemy calls it a fairy, makes it itself and lets nobody choose its class; so a guarded pool swaps the
class of what it hands out, as the guard does with the pool's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionFairy

from guardrails.errors import CallTimeoutError
from guardrails.integrations.sqlalchemy._cursors import RawCursor

__all__ = ["Proxy", "ProxyWork", "guarded_proxy"]

Proxy = type[PoolProxiedConnection]


class ProxyWork(Protocol):
    """How a proxied connection's work is done."""

    def check_timeout(self, timeout: Any) -> float:
        """A number of seconds, or a ConfigurationError."""

    def allow(self, statement: Any, timeout: float | None) -> Any:
        """The statement, worded so that the server gives it ``timeout`` seconds."""

    def run(
        self,
        connection: Any,
        call: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        timeout: float | None,
    ) -> Any:
        """Runs a call of a proxied connection's cursor."""

    def lend(self, connection: Any) -> None:
        """Notes that somebody is about to work with the driver's own connection."""

    def finish(
        self, connection: Any, close: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Any:
        """Runs what closes a cursor of a proxied connection."""

    def commit(self, connection: Any) -> None:
        """Commits on a proxied connection."""

    def rollback(self, connection: Any) -> None:
        """Rolls back on a proxied connection."""


class _GuardedConnection(_ConnectionFairy):
    # Empty slots, or CPython refuses the swap ("object layout differs").
    __slots__ = ()

    _work: ClassVar[ProxyWork]

    @property
    def guardrails_timeout(self) -> float | None:
        """Seconds each piece of work of this checkout's cursors may take; None for the guard's timeout."""
        timeout: float | None = self.__dict__.get("guardrails_timeout")
        return timeout

    @guardrails_timeout.setter
    def guardrails_timeout(self, timeout: float) -> None:
        self.__dict__["guardrails_timeout"] = self._work.check_timeout(timeout)

    @property
    def driver_connection(self) -> Any:  # type: ignore[override] # as SQLAlchemy's own
        """The driver's own connection. It is stopped at the ambient deadline if it is not back by then."""
        if self.is_valid:
            self._work.lend(self)
        return super().driver_connection

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return RawCursor(super().cursor(*args, **kwargs), self._step, self._finish, self._allow)

    def commit(self) -> None:
        self._end(self._work.commit)

    def rollback(self) -> None:
        if self.is_valid:  # what was stopped has been dropped, and its transaction with it
            self._end(self._work.rollback)

    def _step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.is_valid:
            return call(*args, **kwargs)  # returned or dropped: the driver says what it thinks of it
        return self._end(self._work.run, call, args, kwargs, self.guardrails_timeout)

    def _finish(self, close: Callable[..., Any], *error: object) -> Any:
        if not self.is_valid:
            return close(*error)
        return self._end(self._work.finish, close, error, self.guardrails_timeout)

    def _allow(self, statement: Any) -> Any:
        return self._work.allow(statement, self.guardrails_timeout)

    def _end(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return work(self, *args)
        except BaseException as error:
            # Whoever was cancelled or interrupted in the middle of it leaves it in any state.
            if isinstance(error, CallTimeoutError) or not isinstance(error, Exception):
                self.invalidate(error)
            raise


def guarded_proxy(work: ProxyWork) -> Proxy:
    """The class of connections whose work is done by ``work``."""
    return type("GuardedConnection", (_GuardedConnection,), {"__slots__": (), "_work": work})
