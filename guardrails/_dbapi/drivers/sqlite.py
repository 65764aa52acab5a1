"""sqlite3 and aiosqlite: interrupt() stops the statement in its thread. There is no socket to shut.

Depends on sqlite3; must not import another driver.
"""

from __future__ import annotations

import math
import sqlite3
from contextlib import suppress
from typing import Any

from sqlalchemy.util import await_only

from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.drivers.plain import Plain

__all__ = ["Aiosqlite", "Sqlite"]

_FAULTS = frozenset(
    {
        sqlite3.SQLITE_BUSY,  # another connection writes for longer than the busy timeout
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,  # a lock was lost in a race
    }
)
"""Every other code is an answer about the statement."""

_ROLLBACK_TIMEOUT = 1.0
"""Seconds to wait for the ROLLBACK of a cancelled task; the thread runs it in any case."""


class Sqlite(Plain):
    """See Driver."""

    connects_anywhere = False
    works_in_fetch = True

    def __init__(self) -> None:
        self._usual: int | None = None  # the engine's own busy timeout, in milliseconds
        self._lowered: set[int] = set()

    def prepare(self, connection: Any, seconds: float) -> None:
        """See Driver. interrupt() does not end a wait for a lock, so that wait must be no longer."""
        if self._usual is None:
            self._usual = self._ask(connection, "PRAGMA busy_timeout")
        if seconds * 1000 >= self._usual and not self._lowered:
            return
        most = min(self._usual, math.ceil(seconds * 1000))
        if most < self._usual:
            self._lowered.add(id(connection))
        elif id(connection) in self._lowered:
            self._lowered.discard(id(connection))
        else:
            return
        self._ask(connection, f"PRAGMA busy_timeout={most}")

    def _ask(self, connection: Any, pragma: str) -> int:
        cursor = connection.cursor()
        cursor.row_factory = None  # the user's may change the row
        return int(cursor.execute(pragma).fetchone()[0])

    def cancel(self, connection: Any, within: float) -> None:  # noqa: ARG002 - it takes no time
        """See Driver. Allowed from another thread, whatever ``check_same_thread`` is."""
        with suppress(Exception):
            connection.interrupt()

    def kill(self, connection: Any) -> None:
        """See Driver."""
        self.cancel(connection, 0.0)

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        code = getattr(error, "sqlite_errorcode", None)
        return None if code is None else (code & 0xFF) in _FAULTS


class Aiosqlite(Sqlite):
    """See Driver. The connection works in a thread of its own, where its interrupt() would queue."""

    works_in_fetch = False  # SQLAlchemy fetches all rows in that thread, as part of the statement

    def __init__(self) -> None:
        super().__init__()
        self._background = Background(self.cancel_failed)

    def _ask(self, connection: Any, pragma: str) -> int:
        async def ask() -> int:
            async with connection.cursor() as cursor:
                cursor.row_factory = None
                await cursor.execute(pragma)
                return int((await cursor.fetchone())[0])

        return int(await_only(ask()))

    def cancel(self, connection: Any, within: float) -> None:
        """See Driver."""
        with suppress(ValueError):  # closed meanwhile
            super().cancel(connection._conn, within)  # noqa: SLF001 - see the class

    def abandon(self, connection: Any) -> None:
        """See Driver. A cancelled task's statement would run on, and close() would wait for it.

        The transaction would hold its lock until garbage collection: SQLite keeps a closed connection open
        while it has a cursor, and the traceback of the cancellation refers to one.
        """
        self.cancel(connection, 0.0)
        self._background.run(connection.rollback(), _ROLLBACK_TIMEOUT)
