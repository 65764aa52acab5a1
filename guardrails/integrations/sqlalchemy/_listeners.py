"""Bounds the listeners of a connection's events, which SQLAlchemy calls past all hooks.

Depends on SQLAlchemy's events and the worker; must not import the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from guardrails._dbapi.runner import StatementRunner
from guardrails.integrations.sqlalchemy._raw import held

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout

__all__ = ["Listeners"]

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
"""Events of a Connection, past those around a cursor, which have the time of its statement."""


class Listeners:
    """Gives each listener of a connection's events one timeout for what it does past our hooks.

    An engine's collections of listeners get a class that does so, as the pool's connections do. So who
    listens before or after the guard is attached, to the engine or to all engines, is bounded alike.

    Args:
        engine: The engine, or one made of it by ``execution_options()``.
        checkout_of: Gives the checkout that a pool's record is in.
        worker: Bounds the work.
    """

    def __init__(
        self, engine: Engine, checkout_of: Callable[[Any], DBAPICheckout | None], worker: StatementRunner
    ) -> None:
        self._engine = engine
        self._checkout_of = checkout_of
        self._runner = worker
        self._swapped: list[tuple[Any, type]] = []

    def attach(self) -> None:
        """Swaps the classes. Where nobody listens no event is sent, and nothing is called."""
        engine: Any = self._engine
        while engine is not None:
            for event in _EVENTS:
                collection = getattr(engine.dispatch, event).for_modify(engine.dispatch)
                self._swapped.append((collection, type(collection)))
                collection.__class__ = _bounded(type(collection), self._run)
            engine = getattr(engine, "_proxied", None)

    def detach(self) -> None:
        """Brings SQLAlchemy's own classes back."""
        for collection, base in self._swapped:
            collection.__class__ = base
        self._swapped.clear()

    def apart(self, fairy: Any, work: Callable[[], Any]) -> Any:
        """Runs hooked work on a connection, which has a limit of its own, whoever asks for it."""
        checkout = self._checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way
        if checkout is None or checkout.bracket is None:
            return work()
        self._runner.end_bracket(checkout)
        try:
            return work()
        finally:
            if fairy.is_valid and not checkout.must_discard:
                self._runner.open_bracket(held(fairy), checkout, None)

    def _run(self, listener: Callable[..., Any], user: Connection, *args: Any, **kwargs: Any) -> Any:
        fairy: Any = getattr(user, "_dbapi_connection", None)  # None once it is closed
        connection = None if fairy is None else held(fairy)
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
            # SQLAlchemy does not ask what became of the connection, and would roll back on it.
            if (checkout.must_discard or not isinstance(error, Exception)) and not user.closed:
                user.invalidate(error)
            raise
        finally:
            checkout.listening = False
        return result


def _bounded(base: type, run: Callable[..., Any]) -> type:
    """The class of a collection of listeners, each of which runs within its time."""
    listeners: Callable[[Any], Iterator[Any]] = base.__iter__  # type: ignore[attr-defined]

    def iterate(self: Any) -> Iterator[Any]:
        return iter([partial(run, listener) for listener in listeners(self)])

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        for listener in self:
            listener(*args, **kwargs)

    own = {"__slots__": (), "__module__": base.__module__, "__iter__": iterate, "__call__": call}
    return type(base.__name__, (base,), own)
