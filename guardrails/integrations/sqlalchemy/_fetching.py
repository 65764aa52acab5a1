"""Runs the fetches of SQLAlchemy's results as driver work.

Depends on SQLAlchemy's fetch strategies; must not import pools. The cursor stays the driver's own object.
Only the strategy by which a result fetches from it is replaced, so listeners and results see the same cursor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from sqlalchemy.engine.cursor import _DEFAULT_FETCH, BufferedRowCursorFetchStrategy, CursorFetchStrategy

from guardrails._dbapi.cursors import SteppedCursor
from guardrails.errors import ConnectionRevokedError

__all__ = ["fetch_batches", "fetch_in_steps"]

_Step = Callable[..., Any]


class _Fetching:
    """The common part of both strategies: fetches go through a `SteppedCursor`.

    SQLAlchemy closes the cursor without a time limit when a result is exhausted or closed. So a server-side
    cursor is closed here first, within the timeout of a statement.
    """

    __slots__ = ()

    _rows: SteppedCursor
    _finish: _Step | None

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:  # noqa: FBT001, FBT002
        rows = self._rows
        if rows._cursor is not dbapi_cursor:  # noqa: SLF001 - a method call per row would cost more
            rows = SteppedCursor(dbapi_cursor, rows._step)  # noqa: SLF001 - likewise
        return super().fetchone(result, rows, hard_close)  # type: ignore[misc]

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        return super().fetchmany(result, self._stepped(dbapi_cursor), size)  # type: ignore[misc]

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        return super().fetchall(result, self._stepped(dbapi_cursor))  # type: ignore[misc]

    def handle_exception(self, result: Any, dbapi_cursor: Any, err: BaseException) -> NoReturn:
        cursor = dbapi_cursor.bare if isinstance(dbapi_cursor, SteppedCursor) else dbapi_cursor
        if isinstance(err, ConnectionRevokedError):
            self._close(result)  # SQLAlchemy leaves the cursors of a lost connection to the garbage collector
        super().handle_exception(result, cursor, err)  # type: ignore[misc]
        raise err

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().soft_close(result, dbapi_cursor)  # type: ignore[misc]
        self._close(result)

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().hard_close(result, dbapi_cursor)  # type: ignore[misc]
        self._close(result)

    def _stepped(self, dbapi_cursor: Any) -> SteppedCursor:
        """Returns the stepped cursor of ``dbapi_cursor``; a listener may have replaced the result's own."""
        rows = self._rows
        return rows if rows.bare is dbapi_cursor else SteppedCursor(dbapi_cursor, rows._step)  # noqa: SLF001

    def _close(self, result: Any) -> None:
        finish, self._finish = self._finish, None  # type: ignore[misc] # see the classes below
        if finish is None:
            return
        try:
            finish(self._rows.bare.close)
        except Exception:  # SQLAlchemy logs a failing close in the same way
            result.connection.engine.pool.logger.exception("Error closing cursor")


class _Unbuffered(_Fetching, CursorFetchStrategy):
    """Fetches as many rows as the user asks for, from a client-side cursor."""

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


class _ClosedWhenDropped(_Buffered):
    """Closes a half-read cursor when it is garbage collected, within the timeout of a statement.

    For drivers that otherwise read all remaining rows then, without a limit.
    """

    __slots__ = ()

    def __del__(self) -> None:
        if self._finish is not None:
            # A failing close invalidates the connection.
            with suppress(Exception, asyncio.CancelledError):
                self._finish(self._rows.bare.close)


def fetch_in_steps(context: Any, step: _Step) -> None:
    """Makes the result of a statement fetch from its client-side cursor through ``step``.

    Args:
        context: The execution context, after its statement has run.
        step: Runs a fetch with its arguments.
    """
    if context.cursor_fetch_strategy is _DEFAULT_FETCH and context.cursor.description is not None:
        ahead = not (context.is_crud or context.is_text) and context.execution_options.get("stream_results")
        if ahead:
            fetch_batches(context, step, finish=None, drops=False)
        else:
            # Without constructors: two calls fewer for each statement.
            rows = SteppedCursor.__new__(SteppedCursor)
            rows._cursor, rows._step = context.cursor, step  # noqa: SLF001
            context.cursor_fetch_strategy = plain = _Unbuffered()
            plain._rows, plain._finish = rows, None  # noqa: SLF001


def fetch_batches(context: Any, step: _Step, *, finish: _Step | None, drops: bool) -> None:
    """Makes the result of a statement fetch in batches through ``step``.

    Args:
        context: The execution context, while its result is made.
        step: Runs a fetch with its arguments.
        finish: Runs the close of a server-side cursor; None for a client-side one.
        drops: Whether the driver reads all remaining rows when a half-read cursor is garbage collected.
    """
    # The cursor's description is not checked: psycopg2 sets it only after a server-side cursor's first row.
    if context.cursor_fetch_strategy is _DEFAULT_FETCH:
        batches = _ClosedWhenDropped if drops else _Buffered
        rows = SteppedCursor(context.cursor, step)
        context.cursor_fetch_strategy = batches(rows, context.execution_options, finish=finish)


for _kind, _base in ((_Unbuffered, CursorFetchStrategy), (_Buffered, BufferedRowCursorFetchStrategy)):
    _kind.__name__ = _base.__name__
_ClosedWhenDropped.__name__ = BufferedRowCursorFetchStrategy.__name__
