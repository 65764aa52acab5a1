"""A cursor whose work goes through a guard. Knows PEP 249, no Django and no guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

__all__ = ["ENDINGS", "WorkingCursor"]

_STATEMENTS = frozenset({"callproc", "execute", "executemany"})

_STREAM = frozenset({"close", "fetchall", "fetchmany", "fetchone", "scroll"})
"""What also asks the server where it keeps the rows."""

ENDINGS = frozenset({"close"})
"""What only tidies up, and gets a little time however late it is."""


class WorkingCursor:
    """The driver's cursor, but for the calls that make the server work.

    Args:
        cursor: The driver's cursor, new.
        run: Runs a call, given its name, the cursor's own method and the arguments.
        streams: Whether the server keeps its rows.
    """

    __slots__ = ("_cursor", "_run", "_work")

    def __init__(self, cursor: Any, run: Callable[..., Any], *, streams: bool) -> None:
        work = _STATEMENTS | _STREAM if streams else _STATEMENTS
        for name, value in (("_cursor", cursor), ("_run", run), ("_work", work)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._cursor, name)
        return partial(self._run, name, attribute) if name in self._work else attribute

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)  # arraysize, itersize, tzinfo_factory

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)
