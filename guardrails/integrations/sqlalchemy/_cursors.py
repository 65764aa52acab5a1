"""Cursors whose calls are driver work: a raw one, and one whose rows are still to come. Know no guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

__all__ = ["RawCursor", "SteppedCursor"]

_WORK = frozenset({"callproc", "executemany", "nextset", "scroll"})
"""What else PEP 249 lets a cursor ask of the server; not every driver has all of it."""


class SteppedCursor:
    """A DBAPI cursor whose fetches go through ``step``; everything else is the cursor's own.

    Args:
        cursor: The driver's cursor, after its statement was executed.
        step: Runs a fetch with its arguments.
    """

    __slots__ = ("_cursor", "_step")

    def __init__(self, cursor: Any, step: Callable[..., Any]) -> None:
        self._cursor = cursor
        self._step = step

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
    """A cursor of a raw connection: whatever PEP 249 lets it ask of the server goes through ``step``.

    Args:
        cursor: The driver's cursor, new.
        step: Runs a call with its arguments.
        allow: Words a statement so that the server gives it the time it has.
    """

    __slots__ = ("_allow",)

    def __init__(self, cursor: Any, step: Callable[..., Any], allow: Callable[[Any], Any]) -> None:
        for name, value in (("_cursor", cursor), ("_step", step), ("_allow", allow)):
            object.__setattr__(self, name, value)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """See PEP 249."""
        if args:
            args = (self._allow(args[0]), *args[1:])
        return self._work(self._cursor.execute, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._cursor, name)
        return partial(self._work, attribute) if name in _WORK else attribute

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)  # arraysize, row_factory, itersize

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def __enter__(self) -> Self:
        self._cursor.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._cursor.__exit__(*error)

    def _work(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = self._step(call, *args, **kwargs)
        return self if result is self._cursor else result  # some return themselves, for chaining
