"""Runs the cursors, commits and rollbacks of a pool's connection as driver work.

Depends on SQLAlchemy's proxied connection, which SQLAlchemy calls a fairy; must not import statements.
SQLAlchemy offers no way to choose its class, so a guarded pool replaces the class of each connection that it
hands out. The class keeps its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionFairy

from guardrails._dbapi.cursors import raw_cursor
from guardrails._runtime.scope import ambient
from guardrails.errors import CallTimeoutError
from guardrails.integrations.sqlalchemy._proxied import (
    get_dbapi_connection,
    set_dbapi_connection,
)

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout
    from guardrails._dbapi.limit import Limit
    from guardrails.integrations.sqlalchemy._revoking import Revocation

__all__ = ["Proxy", "ProxyWork", "guarded_proxy"]

Proxy = type[PoolProxiedConnection]

_TWO_PHASE = frozenset({"tpc_begin", "tpc_prepare", "tpc_recover"})
"""PEP 249's two-phase methods that run as plain work; commit and rollback are handled below."""


class ProxyWork(Protocol):
    """Does the work of a proxied connection. Every method gets that connection first."""

    def check_timeout(self, timeout: Any) -> float:
        """Returns the seconds, or raises a `ConfigurationError`."""

    def allow(self, statement: Any, timeout: float | None) -> Any:
        """Returns the statement, changed so that the server lets it run for ``timeout`` seconds."""

    def run(
        self,
        connection: Any,
        call: Callable[..., Any],
        args: Sequence[Any],
        timeout: float | None,
        *,
        proves: bool,
    ) -> Any:
        """Runs a call of a cursor; its success is evidence if ``proves``."""

    def is_out_of_step(self, connection: Any, error: BaseException) -> bool:
        """Returns True if the connection would give wrong answers after an error of work on it."""

    revocation: Revocation | None
    """Takes connections back that are held idle; None if they may be held."""

    def bound_unwrapped(self, connection: Any) -> None:
        """Bounds the user's work on the driver's own connection by the ambient deadline.

        Such work cannot be seen, so the connection is no longer taken back.
        """

    def finish(
        self, connection: Any, close: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Any:
        """Runs the close of a cursor."""

    def commit(self, connection: Any) -> None:
        """Commits."""

    def rollback(self, connection: Any) -> None:
        """Rolls back."""

    def end(
        self, connection: Any, call: Callable[..., Any], args: Sequence[Any], *, commit: bool, ending: bool
    ) -> Any:
        """Runs the end of a two-phase transaction; with ``ending`` even if no time is left."""

    checkout_of: Callable[[Any], DBAPICheckout | None]
    """Returns the checkout of a pool's record, or None."""

    def checking_in(self, connection: Any) -> Limit | None:
        """Bounds the listeners of a check-in that begins; None if there is no limit."""

    def checked_in(
        self, connection: Any, record: Any, limit: Limit | None, error: BaseException | None
    ) -> None:
        """Ends a check-in; returns the connection to its pool if an error in it has not."""


class _GuardedConnection(_ConnectionFairy):
    # Empty slots, else CPython refuses the new class ("object layout differs").
    __slots__ = ()

    _work: ClassVar[ProxyWork]
    _bare: ClassVar[Proxy]

    @property
    def guardrails_timeout(self) -> float | None:
        """Seconds that each call of this checkout's cursors may take; None is the guard's timeout."""
        timeout: float | None = self.__dict__.get("guardrails_timeout")
        return timeout

    @guardrails_timeout.setter
    def guardrails_timeout(self, timeout: float) -> None:
        self.__dict__["guardrails_timeout"] = self._work.check_timeout(timeout)

    @property
    def driver_connection(self) -> Any:  # type: ignore[override] # as SQLAlchemy's own
        """The driver's own connection. Work on it is stopped at the ambient deadline."""
        if self.is_valid:
            self._work.bound_unwrapped(self)
        return super().driver_connection

    @property
    def is_valid(self) -> bool:
        return get_dbapi_connection(self) is not None

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        cursor = get_dbapi_connection(self).cursor(*args, **kwargs)
        return raw_cursor(cursor, self._run, self._step, self._finish, self._allow)

    def _checkin(self, transaction_was_reset: bool = False) -> None:  # noqa: FBT001, FBT002
        self.__class__ = self._bare  # type: ignore[assignment] # from here on SQLAlchemy alone reads its attributes
        revocation = self._work.revocation
        if revocation is not None and not revocation.claim(self):
            set_dbapi_connection(self, None)  # there is nothing to reset
        record, limit = self._connection_record, None
        reset, returned = self._pool.dispatch.reset, self._pool.dispatch.checkin
        checkout = self._work.checkout_of(record)
        # The truth value of a collection would be a Python call.
        listened = (
            reset.listeners or reset.parent_listeners or returned.listeners or returned.parent_listeners
        )
        if checkout is not None and (checkout.below is not None or listened):
            limit = self._work.checking_in(self)
        try:
            super()._checkin(transaction_was_reset)
        except BaseException as error:
            self._work.checked_in(self, record, limit, error)
            raise
        if limit is not None:
            self._work.checked_in(self, record, limit, None)

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: FBT001, FBT002
        revocation = self._work.revocation
        if soft or revocation is None or revocation.claim(self):
            super().invalidate(e, soft)
        else:
            self._checkin()

    def detach(self) -> None:
        revocation = self._work.revocation
        if revocation is not None and not revocation.claim(self):
            raise get_dbapi_connection(self).error()
        super().detach()

    def commit(self) -> None:
        self._guarded(self._work.commit)

    def rollback(self) -> None:
        if self.is_valid:  # a stopped connection was closed, which ended its transaction
            self._guarded(self._work.rollback)

    def _run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._work_on(call, args, kwargs, proves=True)

    def _step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Most drivers have read all rows by now, so a fetch succeeds while every statement fails.
        return self._work_on(call, args, kwargs, proves=False)

    def _work_on(
        self, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, proves: bool
    ) -> Any:
        if not self.is_valid:
            return call(*args, **kwargs)  # returned or invalidated: the driver raises its own error
        if kwargs:
            call = partial(call, **kwargs)
        work = partial(self._work.run, proves=proves)
        return self._guarded(work, call, args, self.guardrails_timeout)

    def _finish(self, close: Callable[..., Any], *error: object) -> Any:
        if not self.is_valid:
            with suppress(Exception):  # mysqlclient asks the connection that was stopped and closed
                return close(*error)
            return None
        return self._guarded(self._work.finish, close, error, self.guardrails_timeout)

    def guardrails_end(
        self, call: Callable[..., Any], *args: Any, commit: bool, ending: bool | None = None
    ) -> Any:
        """Runs the end of a two-phase transaction; with ``ending`` even if no time is left."""
        if not self.is_valid:
            return call(*args)
        ending = not commit if ending is None else ending
        checkout = self._work.checkout_of(self._connection_record)
        if checkout is not None and checkout.ends:
            # pg8000's dialect ends it with the methods of this connection, and not with the driver's.
            return call(*args)
        work = partial(self._work.end, commit=commit, ending=ending)
        if checkout is None:
            return self._guarded(work, call, args)
        checkout.ends = True
        try:
            result = self._guarded(work, call, args)
        finally:
            checkout.ends = False
        self._set_prepared(on=False)
        return result

    def _set_prepared(self, *, on: bool) -> None:
        checkout = self._work.checkout_of(self._connection_record)
        if checkout is not None and checkout.hold is not None:
            checkout.hold.set_exempt(on=on)

    def _prepare(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = self._run(call, *args, **kwargs)
        self._set_prepared(on=True)
        return result

    def _allow(self, statement: Any) -> Any:
        return self._work.allow(statement, self.guardrails_timeout)

    def _guarded(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return work(self, *args)
        except BaseException as error:
            # After an interrupt or a cancellation the connection can be in any state.
            is_stopped = isinstance(error, CallTimeoutError) or not isinstance(error, Exception)
            if is_stopped or self._work.is_out_of_step(self, error):
                self.invalidate(error)
            raise


class _UnwrappableConnection(_GuardedConnection):
    """A connection whose user may take the driver's own, past all hooks."""

    __slots__ = ()

    def _unwrap(self) -> Any:
        """The DBAPI connection. Work on it is stopped at the ambient deadline."""
        connection = get_dbapi_connection(self)
        # SQLAlchemy reads it too, for work that is hooked.
        watched = ambient.get() is not None or self._work.revocation is not None
        if watched and connection is not None and not _read_by_sqlalchemy():
            self._work.bound_unwrapped(self)
            return get_dbapi_connection(self)  # it may have been taken back before
        return connection

    dbapi_connection = property(_unwrap, set_dbapi_connection)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(get_dbapi_connection(self), name)
        if name in _TWO_PHASE:
            return partial(self._prepare if name == "tpc_prepare" else self._run, attribute)
        if name in {"tpc_commit", "tpc_rollback"}:
            return partial(self.guardrails_end, attribute, commit=name == "tpc_commit")
        watched = ambient.get() is not None or self._work.revocation is not None
        if watched and callable(attribute) and not _read_by_sqlalchemy():
            self._work.bound_unwrapped(self)
        return attribute


def guarded_proxy(work: ProxyWork) -> Proxy:
    """Returns the class of connections whose work ``work`` does."""
    own = {"__slots__": (), "__module__": _ConnectionFairy.__module__, "_work": work}
    name = _ConnectionFairy.__name__
    bare: Any = type(name, (_GuardedConnection,), own)
    bare._bare = bare  # noqa: SLF001 - an invalidated connection is checked in again
    return type(name, (_UnwrappableConnection,), {**own, "_bare": bare})


def _read_by_sqlalchemy() -> bool:
    """Returns True if the code that reads the attribute belongs to SQLAlchemy."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")  # noqa: SLF001 - documented
    return name.startswith("sqlalchemy.")
