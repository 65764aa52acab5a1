"""The classes of a guarded pool's connections. Depends on psycopg; must not import a pool.

One class does both: it counts the connections that the pool opens, in threads or tasks of its own, and has
their work run. A connection stays the same object.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from time import monotonic
from typing import Any, Protocol

from guardrails._pool.figures import PoolFigures
from guardrails._pool.open_limit import PoolEntry
from guardrails.integrations.psycopg_pool._upkeep import PsycopgPoolUpkeep
from guardrails.integrations.psycopg_pool._work import ConnectionWork, WorkState

__all__ = ["guarded_async_class", "guarded_class"]


class OpeningNotes(Protocol):
    """Notes what comes of openings; see `PoolAdmission`."""

    attached: bool
    figures: PoolFigures
    upkeep: PsycopgPoolUpkeep | None

    def note_opening(self, connection: Any, began: float, started: float, entry: PoolEntry | None) -> None:
        """Counts a connection that the pool has opened."""

    def note_failed_opening(self, error: BaseException, entry: PoolEntry | None) -> None:
        """Counts a failure to open a connection as evidence."""


def guarded_class(plain: Any, work: ConnectionWork, admission: OpeningNotes) -> type:
    """Returns the class for connections in threads."""

    def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        entry = None if (upkeep := admission.upkeep) is None else upkeep.reserve()
        began, started = monotonic(), admission.figures.clock()
        try:
            connection = _connector(plain, cls)(*args, **kwargs)
        except BaseException as error:
            admission.note_failed_opening(error, entry)
            raise
        admission.note_opening(connection, began, started, entry)
        return connection

    def wait(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
        if not admission.attached or "_guardrails" not in vars(self):
            return plain.wait(self, gen, *args, **kwargs)
        return work.run(self, plain.wait, gen, args, kwargs)

    def close(self: Any) -> None:
        plain.close(self)
        _note_closed(self)

    def leave(self: Any, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            _state(self).refuse_lost()
        plain.__exit__(self, kind, error, traceback)

    @contextmanager
    def transaction(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with plain.transaction(self, *args, **kwargs) as block:
            yield block
            _state(self).refuse_lost()

    return _derived(plain, locals() | {"__exit__": leave})


def guarded_async_class(plain: Any, work: ConnectionWork, admission: OpeningNotes) -> type:
    """Returns the class for connections on event loops."""

    async def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        entry = None if (upkeep := admission.upkeep) is None else await upkeep.reserve_async()
        began, started = monotonic(), admission.figures.clock()
        try:
            connection = await _connector(plain, cls)(*args, **kwargs)
        except BaseException as error:
            admission.note_failed_opening(error, entry)
            raise
        admission.note_opening(connection, began, started, entry)
        return connection

    async def wait(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
        if not admission.attached or "_guardrails" not in vars(self):
            return await plain.wait(self, gen, *args, **kwargs)
        return await work.run_async(self, plain.wait, gen, args, kwargs)

    async def close(self: Any) -> None:
        await plain.close(self)
        _note_closed(self)

    async def leave(self: Any, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            _state(self).refuse_lost()
        await plain.__aexit__(self, kind, error, traceback)

    @asynccontextmanager
    async def transaction(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with plain.transaction(self, *args, **kwargs) as block:
            yield block
            _state(self).refuse_lost()

    return _derived(plain, locals() | {"__aexit__": leave})


_NO_STATE = WorkState(0.0, 0.0)


def _connector(plain: Any, cls: Any) -> Callable[..., Any]:
    """Returns what opens a connection of a class; a plain function in its place knows no class."""
    function = getattr(plain.connect, "__func__", None)
    return plain.connect if function is None else partial(function, cls)


def _state(connection: Any) -> WorkState:
    state: WorkState = vars(connection).get("_guardrails", _NO_STATE)
    return state


def _note_closed(connection: Any) -> None:
    if connection.closed:  # otherwise it has gone back to its pool
        _state(connection).closed()


def _derived(plain: Any, made: dict[str, Any]) -> type:
    def check_connection_ok(self: Any) -> None:
        _state(self).refuse_lost()
        plain._check_connection_ok(self)  # noqa: SLF001 - no public way

    names = ("wait", "close", "transaction", "__exit__", "__aexit__")
    own = {name: made[name] for name in names if name in made}
    own |= {
        "__module__": plain.__module__,
        "_check_connection_ok": check_connection_ok,
        "_guarded_class": plain,
        "connect": classmethod(made["connect"]),
    }
    return type(plain.__name__, (plain,), own)
