"""sqlite3 and aiosqlite: interrupt() stops the statement wherever it runs. There is no socket to shut."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Any

from guardrails.integrations.sqlalchemy._drivers._plain import Plain

__all__ = ["Aiosqlite", "Sqlite"]

_FAULTS = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CORRUPT})


class Sqlite(Plain):
    """See Driver."""

    connects_anywhere = False

    def cancel(self, connection: Any, within: float) -> None:  # noqa: ARG002 - it takes no time
        """See Driver. Legal from another thread, whatever ``check_same_thread`` says."""
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
    """See Driver. The connection lives in a thread of its own; its own interrupt() would queue there."""

    def cancel(self, connection: Any, within: float) -> None:
        """See Driver."""
        super().cancel(connection._conn, within)  # noqa: SLF001 - see the class
