"""Cursors that run each call to the server through a given function.

Depends on PEP 249; must not import a guard, a driver or SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

__all__ = ["SteppedCursor", "raw_cursor"]

_PEP_249 = {"callproc", "executemany", "nextset", "scroll"}
_PSYCOPG2 = {"copy_expert", "copy_from", "copy_to"}
_SQLITE = {"executescript"}
_WORK = frozenset(_PEP_249 | _PSYCOPG2 | _SQLITE)
"""Further methods that call the server. No driver has all of them."""

_Step = Callable[..., Any]


class SteppedCursor:
    """A DBAPI cursor whose fetches go through ``step``; every other attribute is the cursor's own.

    Args:
        cursor: The driver's cursor, after its statement was executed.
        step: Runs a fetch with its arguments.
    """

    __slots__ = ("_cursor", "_step")

    def __init__(self, cursor: Any, step: _Step) -> None:
        self._cursor = cursor
        self._step = step

    @property
    def bare(self) -> Any:
        """The driver's cursor."""
        return self._cursor

    def fetchone(self) -> Any:
        """See PEP 249."""
        return self._step(self._cursor.fetchone)

    def fetchmany(self, *size: Any, **named: Any) -> Any:
        """See PEP 249."""
        return self._step(self._cursor.fetchmany, *size, **named)

    def fetchall(self) -> Any:
        """See PEP 249."""
        return self._step(self._cursor.fetchall)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class RawCursor(SteppedCursor):
    """A cursor of a raw connection: each call to the server goes through a function.

    Args:
        cursor: A new cursor of the driver.
        run: Runs a statement with its arguments.
        step: Runs work that follows a statement, such as a fetch, with its arguments.
        finish: Runs the call that closes it.
        allow: Returns a statement with the time limit that the server needs to know.
    """

    __slots__ = ("_allow", "_finish", "_run")

    def __init__(
        self, cursor: Any, run: _Step, step: _Step, finish: _Step, allow: Callable[[Any], Any]
    ) -> None:
        own = {"_cursor": cursor, "_run": run, "_step": step, "_finish": finish, "_allow": allow}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """See PEP 249."""
        if args:
            args = (self._allow(args[0]), *args[1:])
        return self._work(self._cursor.execute, *args, **kwargs)

    def close(self) -> Any:
        """See PEP 249. A server-side cursor needs a round trip."""
        return self._finish(self._cursor.close)

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs COPY block by block; psycopg only."""
        copy = self._cursor.copy(self._allow(statement), *args, **kwargs)
        return SteppedCopy(copy, self._run, self._step)

    def stream(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yields rows as they arrive, without a server-side cursor; psycopg only."""
        rows = self._cursor.stream(self._allow(statement), *args, **kwargs)
        step = self._run  # the first one sends the statement
        try:
            while (row := step(next, rows, None)) is not None:
                yield row
                step = self._step
        finally:
            self._finish(rows.close)  # psycopg cancels the rest itself and waits up to 5 s

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._cursor, name)
        return partial(self._work, attribute) if name in _WORK else attribute

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)  # arraysize, row_factory, itersize

    def __repr__(self) -> str:
        return repr(self._cursor)

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def __enter__(self) -> Self:
        self._cursor.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._finish(self._cursor.__exit__, *error)

    def _work(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = self._run(call, *args, **kwargs)
        return self if result is self._cursor else result  # psycopg returns the cursor, for chaining


_kinds: dict[type, type[RawCursor]] = {}
"""Class of a driver's cursor -> class of its raw cursors."""


def raw_cursor(cursor: Any, run: _Step, step: _Step, finish: _Step, allow: Callable[[Any], Any]) -> Any:
    """Wraps a driver's cursor and keeps its class and name; see RawCursor for the arguments."""
    kind = type(cursor)
    if kind not in _kinds:
        # isinstance() reads __class__, too.
        own = {"__slots__": (), "__module__": kind.__module__, "__class__": property(lambda _: kind)}
        _kinds[kind] = type(kind.__name__, (RawCursor,), own)
    return _kinds[kind](cursor, run, step, finish, allow)


class SteppedCopy:
    """A COPY of psycopg: start and end go through ``run``, each block through ``step``.

    Args:
        copy: psycopg's new context manager.
        run: Runs a call with its arguments.
        step: Runs a part of the work with its arguments.
    """

    __slots__ = ("_copy", "_manager", "_run", "_step")

    def __init__(self, copy: Any, run: _Step, step: _Step) -> None:
        self._manager = copy
        self._run = run
        self._step = step

    def read(self) -> Any:
        """See psycopg.Copy."""
        return self._step(self._copy.read)

    def read_row(self) -> Any:
        """See psycopg.Copy."""
        return self._step(self._copy.read_row)

    def rows(self) -> Iterator[Any]:
        """See psycopg.Copy."""
        return iter(self.read_row, None)

    def write(self, block: Any) -> None:
        """See psycopg.Copy."""
        self._step(self._copy.write, block)

    def write_row(self, row: Any) -> None:
        """See psycopg.Copy."""
        self._step(self._copy.write_row, row)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.read, b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._copy, name)  # set_types

    def __enter__(self) -> Self:
        self._copy = self._run(self._manager.__enter__)
        return self

    def __exit__(self, *error: object) -> Any:
        return self._run(self._manager.__exit__, *error)
