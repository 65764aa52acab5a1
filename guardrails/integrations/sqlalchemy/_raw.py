"""A pool's connection as its user sees it: cursors, COMMIT and ROLLBACK are driver work. Knows no statements.

SQLAlchemy calls it a fairy, makes it itself and offers no way to choose its class; so a guarded pool swaps
the class of what it hands out, as the guard does with the pool's own. The class keeps its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionFairy

from guardrails._dbapi.cursors import raw_cursor
from guardrails._runtime.scope import ambient
from guardrails.errors import CallTimeoutError

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout
    from guardrails._dbapi.stopping import Limit

__all__ = ["Proxy", "ProxyWork", "get_held", "guarded_proxy", "held"]

Proxy = type[PoolProxiedConnection]

_slot: Any = _ConnectionFairy.dbapi_connection
get_held, _set_slot = _slot.__get__, _slot.__set__

_TWO_PHASE = frozenset({"tpc_begin", "tpc_prepare", "tpc_recover"})
"""PEP 249's methods of a connection, past its cursors. The two ends have methods below."""


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
        *,
        proves: bool,
    ) -> Any:
        """Runs a call of a proxied connection's cursor; ``proves``: whether its success is evidence."""

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

    def end(
        self, connection: Any, call: Callable[..., Any], args: Sequence[Any], *, commit: bool, ending: bool
    ) -> Any:
        """Runs what ends a two-phase transaction; ``ending``: even when no time is left."""

    checkout_of: Callable[[Any], DBAPICheckout | None]
    """Gives the checkout that a pool's record is in."""

    def checking_in(self, connection: Any) -> Limit | None:
        """Bounds the listeners of a check-in that begins; None where none listens."""

    def checked_in(
        self, connection: Any, record: Any, limit: Limit | None, error: BaseException | None
    ) -> None:
        """Ends a check-in, and gives back what an error in it left out."""


class _GuardedConnection(_ConnectionFairy):
    # Empty slots, or CPython refuses the swap ("object layout differs").
    __slots__ = ()

    _work: ClassVar[ProxyWork]
    _bare: ClassVar[Proxy]

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

    @property
    def is_valid(self) -> bool:
        return get_held(self) is not None

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        cursor = get_held(self).cursor(*args, **kwargs)
        return raw_cursor(cursor, self._run, self._step, self._finish, self._allow)

    def _checkin(self, transaction_was_reset: bool = False) -> None:  # noqa: FBT001, FBT002
        self.__class__ = self._bare  # type: ignore[assignment] # from here on it is SQLAlchemy that reads its attributes
        record, limit = self._connection_record, None
        reset, returned = self._pool.dispatch.reset, self._pool.dispatch.checkin
        checkout = self._work.checkout_of(record)
        # Without the truth of the collections, which are functions of Python.
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

    def commit(self) -> None:
        self._end(self._work.commit)

    def rollback(self) -> None:
        if self.is_valid:  # what was stopped has been dropped, and its transaction with it
            self._end(self._work.rollback)

    def _run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._work_on(call, args, kwargs, proves=True)

    def _step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Most drivers have all rows already, so a fetch works while every statement fails.
        return self._work_on(call, args, kwargs, proves=False)

    def _work_on(
        self, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, proves: bool
    ) -> Any:
        if not self.is_valid:
            return call(*args, **kwargs)  # returned or dropped: the driver says what it thinks of it
        work = partial(self._work.run, proves=proves)
        return self._end(work, call, args, kwargs, self.guardrails_timeout)

    def _finish(self, close: Callable[..., Any], *error: object) -> Any:
        if not self.is_valid:
            return close(*error)
        return self._end(self._work.finish, close, error, self.guardrails_timeout)

    def guardrails_end(
        self, call: Callable[..., Any], *args: Any, commit: bool, ending: bool | None = None
    ) -> Any:
        """Runs what ends a two-phase transaction; ``ending``: even when no time is left."""
        if not self.is_valid:
            return call(*args)
        ending = not commit if ending is None else ending
        return self._end(partial(self._work.end, commit=commit, ending=ending), call, args)

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


class _LentConnection(_GuardedConnection):
    """One whose user may take the driver's connection, which is a way past all hooks."""

    __slots__ = ()

    def _lend(self) -> Any:
        """The DBAPI connection. It is stopped at the ambient deadline if it is not back by then."""
        connection = get_held(self)
        # SQLAlchemy reads it for its own work, which is hooked.
        if ambient.get() is not None and connection is not None and not _read_by_sqlalchemy():
            self._work.lend(self)
        return connection

    dbapi_connection = property(_lend, _set_slot)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(get_held(self), name)
        if name in _TWO_PHASE:
            return partial(self._run, attribute)
        if name in {"tpc_commit", "tpc_rollback"}:
            return partial(self.guardrails_end, attribute, commit=name == "tpc_commit")
        if ambient.get() is not None and callable(attribute) and not _read_by_sqlalchemy():
            self._work.lend(self)
        return attribute


def guarded_proxy(work: ProxyWork) -> Proxy:
    """The class of connections whose work is done by ``work``."""
    own = {"__slots__": (), "__module__": _ConnectionFairy.__module__, "_work": work}
    name = _ConnectionFairy.__name__
    bare: Any = type(name, (_GuardedConnection,), own)
    bare._bare = bare  # noqa: SLF001 - one that was invalidated is given back once more
    return type(name, (_LentConnection,), {**own, "_bare": bare})


def held(connection: Any) -> Any:
    """The DBAPI connection that a pool's connection holds, without lending it."""
    try:
        return get_held(connection)
    except TypeError:
        # SQLAlchemy's stand-in for one, or the DBAPI connection itself.
        return getattr(connection, "dbapi_connection", connection)


def _read_by_sqlalchemy() -> bool:
    """True if the code that reads an attribute is SQLAlchemy's."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")  # noqa: SLF001 - documented
    return name.startswith("sqlalchemy.")
