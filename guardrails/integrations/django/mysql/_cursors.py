"""Cursors of mysqlclient and PyMySQL whose work a given object runs. Must not import a guard.

In both drivers the methods of a cursor call one another, and only the outermost one is a piece of work.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails.errors import ConnectionRevokedError
from guardrails.integrations.django._database.cursors import Steps, guard_cursor

__all__ = ["MySQLSteps", "guarded"]


class MySQLSteps(Steps):
    """See Steps."""

    def allow(self, statement: Any, *, streams: bool) -> Any:
        """Returns a statement with the time limit that the server needs to know.

        Args:
            statement: Text or bytes.
            streams: Whether its rows are read one by one.
        """
        raise NotImplementedError


class _Guarded:
    """Mixed into a cursor's own class, before it. The rows are at the client: only statements are work."""

    connection: Any
    guardrails: MySQLSteps
    _guardrails_busy = False
    _guardrails_reads = False  # whether the server has more to send when the cursor is closed
    _guardrails_streams = False

    def execute(self, query: Any, args: Any = None) -> Any:
        """See PEP 249."""
        return self._step(self._execute, query, args)

    def _execute(self, query: Any, args: Any) -> Any:
        query = self.guardrails.allow(query, streams=self._guardrails_streams)
        return super().execute(query, args)  # type: ignore[misc]  # of the other base

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        """See PEP 249."""
        return self._step(super().executemany, *args, **kwargs)  # type: ignore[misc]  # likewise

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        """See PEP 249. The procedure runs on while its results are read."""
        self._guardrails_reads = True
        return self._step(super().callproc, *args, **kwargs)  # type: ignore[misc]  # likewise

    def nextset(self) -> Any:
        """See PEP 249."""
        return self._step(super().nextset, ending=True)  # type: ignore[misc]  # likewise

    def close(self) -> None:
        """See PEP 249. It reads what the server has left to send."""
        close: Callable[[], None] = super().close  # type: ignore[misc]  # likewise
        if self.connection is not None and not self.connection.open:
            # A query was stopped. Django closes its cursor first; an error here would replace the guard's.
            with suppress(Exception):
                close()
            return
        if not self._guardrails_reads:
            close()
            return
        try:
            self._step(close, ending=True)
        except ConnectionRevokedError:
            self._guardrails_busy = True
            with suppress(Exception):  # there is no server to read from
                close()

    def _step(self, call: Callable[..., Any], *args: Any, ending: bool = False, **kwargs: Any) -> Any:
        if self._guardrails_busy:
            return call(*args, **kwargs)
        self._guardrails_busy = True
        try:
            return self.guardrails.step(call, args, kwargs, ending=ending)
        finally:
            self._guardrails_busy = False


class _GuardedStream(_Guarded):
    """The rows are at the server, which works for each fetch."""

    _guardrails_reads = _guardrails_streams = True

    def fetchone(self) -> Any:
        """See PEP 249."""
        return self._step(super().fetchone)  # type: ignore[misc]  # of the other base

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        """See PEP 249."""
        return self._step(super().fetchmany, *args, **kwargs)  # type: ignore[misc]  # likewise

    def fetchall(self) -> Any:
        """See PEP 249."""
        return self._step(super().fetchall)  # type: ignore[misc]  # likewise

    def scroll(self, *args: Any, **kwargs: Any) -> Any:
        """See PEP 249."""
        return self._step(super().scroll, *args, **kwargs)  # type: ignore[misc]  # likewise

    def __del__(self) -> None:
        # Or the driver reads the rest without a limit.
        with suppress(Exception):
            self.close()


def guarded(cursor: Any, module: Any, steps: MySQLSteps) -> Any:
    """Has a cursor's work run by ``steps``.

    Args:
        cursor: The driver's cursor.
        module: The driver's module with its classes of cursors.
        steps: Runs the work.
    """
    unbuffered = getattr(module, "CursorUseResultMixIn", module.SSCursor)  # mysqlclient's, PyMySQL's
    return guard_cursor(cursor, _GuardedStream if isinstance(cursor, unbuffered) else _Guarded, steps)
