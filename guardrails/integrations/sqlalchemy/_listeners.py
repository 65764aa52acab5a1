"""Bounds the listeners of a connection's events, which SQLAlchemy calls past all hooks.

Depends on SQLAlchemy's events and the statement runner; must not import the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from guardrails._dbapi.runner import StatementRunner
from guardrails.integrations.sqlalchemy._proxied import dbapi_connection_of

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout

__all__ = ["BoundedListeners", "watch_check_in"]

_EVENTS = (
    "after_execute",
    "before_execute",
    "begin",
    "begin_twophase",
    "commit",
    "commit_twophase",
    "engine_connect",
    "prepare_twophase",
    "release_savepoint",
    "rollback",
    "rollback_savepoint",
    "rollback_twophase",
    "savepoint",
    "set_connection_execution_options",
)
"""Events of a Connection, except those around a cursor: their listeners share the statement's timeout."""


class BoundedListeners:
    """Gives each listener of a connection's events one timeout for its work past the hooks.

    It replaces the class of an engine's collections of listeners. So it bounds every listener: added before
    or after the guard was attached, on the engine or on all engines.

    Args:
        engine: The engine, or a copy of it made by ``execution_options()``.
        checkout_of: Returns the checkout of a pool's record, or None.
        runner: Bounds the work.
    """

    def __init__(
        self, engine: Engine, checkout_of: Callable[[Any], DBAPICheckout | None], runner: StatementRunner
    ) -> None:
        self._engine = engine
        self._checkout_of = checkout_of
        self._runner = runner
        self._swapped: list[tuple[Any, type]] = []

    def attach(self) -> None:
        """Replaces the classes. An event without listeners costs nothing more."""
        engine: Any = self._engine
        while engine is not None:
            for event in _EVENTS:
                collection = getattr(engine.dispatch, event).for_modify(engine.dispatch)
                self._swapped.append((collection, type(collection)))
                collection.__class__ = _bounded(type(collection), self._run)
            engine = getattr(engine, "_proxied", None)

    def detach(self) -> None:
        """Restores SQLAlchemy's own classes."""
        for collection, base in self._swapped:
            collection.__class__ = base
        self._swapped.clear()

    def outside_bracket(self, fairy: Any, work: Callable[[], Any]) -> Any:
        """Runs hooked work outside the limit of the listener that asks for it: it has its own limit."""
        checkout = self._checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way
        if checkout is None or checkout.listener_limit is None:
            return work()
        self._runner.end_bracket(checkout)
        try:
            return work()
        finally:
            if fairy.is_valid and not checkout.must_discard:
                self._runner.open_bracket(dbapi_connection_of(fairy), checkout, None)

    def _run(self, listener: Callable[..., Any], user: Connection, *args: Any, **kwargs: Any) -> Any:
        fairy: Any = getattr(user, "_dbapi_connection", None)  # None after close()
        connection = None if fairy is None else dbapi_connection_of(fairy)
        checkout = None if connection is None else self._checkout_of(fairy._connection_record)  # noqa: SLF001
        if checkout is None or checkout.listening:
            return listener(user, *args, **kwargs)
        checkout.listening = True
        try:
            self._runner.open_bracket(connection, checkout, None)
            try:
                result = listener(user, *args, **kwargs)
            except BaseException as error:
                self._runner.end_bracket(checkout, error)
                raise
            self._runner.end_bracket(checkout)
        except BaseException as error:
            # SQLAlchemy does not check the state of the connection, and would roll back on it.
            if (checkout.must_discard or not isinstance(error, Exception)) and not user.closed:
                user.invalidate(error)
            raise
        finally:
            checkout.listening = False
        return result


def _bounded(base: type, run: Callable[..., Any]) -> type:
    """Returns a collection class whose listeners each run within a timeout."""
    listeners: Callable[[Any], Iterator[Any]] = base.__iter__  # type: ignore[attr-defined]

    def iterate(self: Any) -> Iterator[Any]:
        return iter([partial(run, listener) for listener in listeners(self)])

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        for listener in self:
            listener(*args, **kwargs)

    own = {"__slots__": (), "__module__": base.__module__, "__iter__": iterate, "__call__": call}
    return type(base.__name__, (base,), own)


def watch_check_in(runner: StatementRunner, record: Any, checkout: DBAPICheckout, _: object) -> None:
    """Bounds the listeners of a check-in that the garbage collector causes."""
    if record.dbapi_connection is not None:
        runner.limit_check_in(record.dbapi_connection, checkout)
