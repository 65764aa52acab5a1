"""Rows that are still to come: fetches of SQLAlchemy's results that are driver work.

The cursor stays the driver's own object. What changes is the strategy by which a result fetches from it, so
listeners, results and whoever counts cursors see what they would see without a guard.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from sqlalchemy.engine.cursor import _DEFAULT_FETCH, BufferedRowCursorFetchStrategy, CursorFetchStrategy

from guardrails._dbapi.cursors import SteppedCursor

__all__ = ["fetch_batches", "fetch_in_steps"]

_Step = Callable[..., Any]


class _Fetching:
    """The part that both strategies share: fetches go through a `SteppedCursor`.

    SQLAlchemy closes the cursor after a result is used up or closed. It does so without a limit, so a cursor
    that the server keeps is closed here before, within the time of a piece of work.
    """

    __slots__ = ()

    _rows: SteppedCursor
    _finish: _Step | None

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:  # noqa: FBT001, FBT002
        rows = self._rows
        if rows._cursor is not dbapi_cursor:  # noqa: SLF001 - not worth a function for each row
            rows = SteppedCursor(dbapi_cursor, rows._step)  # noqa: SLF001 - likewise
        return super().fetchone(result, rows, hard_close)  # type: ignore[misc]

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        return super().fetchmany(result, self._of(dbapi_cursor), size)  # type: ignore[misc]

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        return super().fetchall(result, self._of(dbapi_cursor))  # type: ignore[misc]

    def handle_exception(self, result: Any, dbapi_cursor: Any, err: BaseException) -> NoReturn:
        cursor = dbapi_cursor.bare if isinstance(dbapi_cursor, SteppedCursor) else dbapi_cursor
        super().handle_exception(result, cursor, err)  # type: ignore[misc]
        raise err

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().soft_close(result, dbapi_cursor)  # type: ignore[misc]
        self._close(result)

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().hard_close(result, dbapi_cursor)  # type: ignore[misc]
        self._close(result)

    def _of(self, dbapi_cursor: Any) -> SteppedCursor:
        """The result's cursor, which somebody may have replaced."""
        rows = self._rows
        return rows if rows.bare is dbapi_cursor else SteppedCursor(dbapi_cursor, rows._step)  # noqa: SLF001

    def _close(self, result: Any) -> None:
        finish, self._finish = self._finish, None  # type: ignore[misc] # see the classes below
        if finish is None:
            return
        try:
            finish(self._rows.bare.close)
        except Exception:  # as SQLAlchemy does with a cursor that cannot be closed
            result.connection.engine.pool.logger.exception("Error closing cursor")


class _Plain(_Fetching, CursorFetchStrategy):
    """Fetches as the user asks; of an ordinary cursor."""

    __slots__ = ("_finish", "_rows")

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:  # noqa: ARG002
        batches = _Buffered(self._rows, {"max_row_buffer": num}, growth_factor=0, initial_buffer=deque())
        result.cursor_strategy = batches


class _Buffered(_Fetching, BufferedRowCursorFetchStrategy):
    """Fetches ahead, in batches."""

    __slots__ = ("_finish", "_rows")

    def __init__(self, rows: SteppedCursor, *args: Any, finish: _Step | None = None, **kwargs: Any) -> None:
        self._rows = rows
        self._finish = finish
        super().__init__(rows, *args, **kwargs)


class _Dropped(_Buffered):
    """Of a cursor whose driver reads all that is still to come when it is dropped half-read, however long.

    So it is closed before that, within the time of a piece of work.
    """

    __slots__ = ()

    def __del__(self) -> None:
        if self._finish is not None:
            # The connection is invalidated if that fails.
            with suppress(Exception, asyncio.CancelledError):
                self._finish(self._rows.bare.close)


def fetch_in_steps(context: Any, step: _Step) -> None:
    """Lets the result of a statement fetch from its ordinary cursor through ``step``.

    Args:
        context: The execution context, after its statement was executed.
        step: Runs a fetch with its arguments.
    """
    if context.cursor_fetch_strategy is _DEFAULT_FETCH and context.cursor.description is not None:
        ahead = not (context.is_crud or context.is_text) and context.execution_options.get("stream_results")
        if ahead:
            fetch_batches(context, step, finish=None, drops=False)
        else:
            # No constructors: two functions less for each statement.
            rows = SteppedCursor.__new__(SteppedCursor)
            rows._cursor, rows._step = context.cursor, step  # noqa: SLF001
            context.cursor_fetch_strategy = plain = _Plain()
            plain._rows, plain._finish = rows, None  # noqa: SLF001


def fetch_batches(context: Any, step: _Step, *, finish: _Step | None, drops: bool) -> None:
    """Lets the result of a statement fetch ahead through ``step``.

    Args:
        context: The execution context, when its result is made.
        step: Runs a fetch with its arguments.
        finish: Runs what closes a cursor that the server keeps; None of an ordinary one.
        drops: Whether the driver reads all rows of a cursor that is dropped half-read.
    """
    # psycopg2 describes a cursor of the server's after its first row.
    if context.cursor_fetch_strategy is _DEFAULT_FETCH:
        batches = _Dropped if drops else _Buffered
        rows = SteppedCursor(context.cursor, step)
        context.cursor_fetch_strategy = batches(rows, context.execution_options, finish=finish)


for _kind, _base in ((_Plain, CursorFetchStrategy), (_Buffered, BufferedRowCursorFetchStrategy)):
    _kind.__name__ = _base.__name__
_Dropped.__name__ = BufferedRowCursorFetchStrategy.__name__
