"""aiomysql; see MySQLAsync."""

from __future__ import annotations

from typing import Any

import aiomysql

from guardrails._dbapi.drivers.mysql_async import MySQLAsync

__all__ = ["Aiomysql"]


class _QuietCursor(aiomysql.Cursor):  # type: ignore[misc] # it has no types
    """Ignores the server's warnings.

    MySQL warns that ``information_schema.processlist`` is deprecated, and aiomysql would make a warning of
    Python of it, or an error. Its successor is empty where ``performance_schema`` is off, as it is on small
    instances of clouds.
    """

    async def _show_warnings(self, conn: Any) -> None:
        pass


class Aiomysql(MySQLAsync):
    """See Driver."""

    def kill(self, connection: Any) -> None:
        """See Driver. The finaliser of a connection whose loop is closed would warn, and use the loop."""
        super().kill(connection)
        if connection.loop.is_closed():
            connection._writer = None  # noqa: SLF001 - so that it counts as closed

    def _transport(self, connection: Any) -> Any:
        return connection._writer.transport  # noqa: SLF001 - it has no public name

    def _cursor(self, cancel_connection: Any) -> Any:
        return cancel_connection.cursor(_QuietCursor)

    async def _log_in_again(self, connection: Any, host: str) -> Any:
        return await aiomysql.connect(
            host=host,
            port=connection.port,
            user=connection.user,
            password=connection._password,  # noqa: SLF001 - likewise
            unix_socket=connection.unix_socket,
            ssl=connection._ssl_context,  # noqa: SLF001 - likewise
        )
