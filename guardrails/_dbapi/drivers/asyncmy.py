"""asyncmy; see MySQLAsync."""

from __future__ import annotations

from typing import Any

import asyncmy
from asyncmy.cursors import Cursor

from guardrails._dbapi.drivers.mysql_async import MySQLAsync

__all__ = ["Asyncmy"]


class _QuietCursor(Cursor):
    """Ignores the server's warnings.

    MySQL warns that ``information_schema.processlist`` is deprecated. asyncmy would ask for that text in one
    more round trip, and log it.
    """

    async def _show_warnings(self, conn: Any) -> None:
        pass


class Asyncmy(MySQLAsync):
    """See Driver. None of asyncmy's settings has a public name."""

    def _transport(self, connection: Any) -> Any:
        return connection._transport  # noqa: SLF001 - see the class

    def _cursor(self, cancel_connection: Any) -> Any:
        return cancel_connection.cursor(_QuietCursor)

    async def _log_in_again(self, connection: Any, host: str) -> Any:
        return await asyncmy.connect(
            host=host,
            port=connection._port,  # noqa: SLF001
            user=connection._user,  # noqa: SLF001
            password=connection._password,  # noqa: SLF001
            unix_socket=connection._unix_socket,  # noqa: SLF001
            ssl=connection._ssl_context,  # noqa: SLF001
        )
