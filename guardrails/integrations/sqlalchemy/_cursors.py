"""A cursor whose rows are still to come: each step towards them is driver work. Knows no guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["SteppedCursor"]


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

    def fetchmany(self, *size: Any) -> Any:
        """See PEP 249."""
        return self._step(self._cursor.fetchmany, *size)

    def fetchall(self) -> Any:
        """See PEP 249."""
        return self._step(self._cursor.fetchall)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)
