"""aiomysql and asyncmy: KILL QUERY over a second connection, then the transport is aborted.

Depends on MySQL's statements; must not import a driver.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.drivers.mysql import KILL_TIMEOUT, MySQLDriver, Target, with_backstop
from guardrails._dbapi.drivers.sockets import abort
from guardrails._pool.sessions import SessionId

__all__ = ["MySQLAsync"]


class MySQLAsync(MySQLDriver):
    """See Driver."""

    def __init__(self) -> None:
        self._background = Background(self.cancel_failed)
        self._opened: WeakKeyDictionary[Any, tuple[Target, str]] = WeakKeyDictionary()

    @abstractmethod
    def _transport(self, connection: Any) -> Any:
        """The connection's transport."""

    @abstractmethod
    async def _log_in_again(self, connection: Any, host: str) -> Any:
        """Opens a second connection to the same server, at ``host``, with the first one's password."""

    def _cursor(self, cancel_connection: Any) -> Any:
        return cancel_connection.cursor()

    async def _open_cancel_connection(self, connection: Any, host: str) -> Any:
        """Opens a second connection to the same server."""
        if self.second is not None:
            with suppress(Exception):  # the engine's connect may lead to another server
                return await self.second.open_async(host=host, init_command=None)
        return await self._log_in_again(connection, host)

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """See Driver."""
        adapted = super().open(connect, with_backstop(arguments, backstop), seconds, backstop)
        connection = adapted.driver_connection
        self._opened[connection] = (self._target(connection), self._host(connection))
        return adapted

    def abandon(self, connection: Any) -> None:
        """See Driver. A cancelled task has closed its connection; its statement would run on."""
        known = self._opened.get(connection)
        if known is not None:
            self._background.run(self._kill_query(connection, *known), KILL_TIMEOUT)

    def cancel(self, connection: Any, within: float) -> None:  # noqa: ARG002 - see KILL_TIMEOUT
        """See Driver. Cancelling the task would leave the statement running on the server."""
        target, host = self._target(connection), self._host(connection)
        self._background.run(self._kill_query(connection, target, host), KILL_TIMEOUT)

    def kill(self, connection: Any) -> None:
        """See Driver."""
        with suppress(Exception):  # closed meanwhile
            abort(self._transport(connection))

    def session_of(self, connection: Any) -> SessionId | None:
        """See Driver."""
        target = self._target(connection)
        return SessionId(target.number, target.port)

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """See Driver."""
        connection = connection.driver_connection
        peer = self._transport(connection).get_extra_info("peername")
        host: str | None = connection._host  # noqa: SLF001 - asyncmy has no public name
        return host, peer[0] if isinstance(peer, tuple) else None

    def _target(self, connection: Any) -> Target:
        address = self._transport(connection).get_extra_info("sockname")
        return Target(connection.thread_id(), address[1] if isinstance(address, tuple) else None)

    def _host(self, connection: Any) -> str:
        # The address of this connection: its name may lead elsewhere now. A TLS certificate needs the name.
        transport = self._transport(connection)
        peer = transport.get_extra_info("peername")
        named = transport.get_extra_info("ssl_object") is not None or not isinstance(peer, tuple)
        host: str = connection._host if named else peer[0]  # noqa: SLF001 - asyncmy has no public name
        return host

    async def _kill_query(self, connection: Any, target: Target, host: str) -> None:
        cancel_connection = await self._open_cancel_connection(connection, host)
        try:
            async with self._cursor(cancel_connection) as cursor:
                await cursor.execute(target.question)
                if target.is_among(await cursor.fetchall(), self._target(cancel_connection)):
                    await cursor.execute(target.kill_statement)
        finally:
            cancel_connection.close()
