"""asyncpg: a cancelled task makes it send the cancel request; terminate() drops the socket.

Depends on asyncpg; must not import another driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.drivers.postgres import SOURCE, PostgresDriver, refuses_settings, server_failed
from guardrails._dbapi.drivers.sockets import abort
from guardrails._pool.sessions import SessionId

__all__ = ["Asyncpg"]


class Asyncpg(PostgresDriver):
    """See Driver."""

    interrupts_task = True

    def __init__(self) -> None:
        super().__init__()
        self._background = Background(lambda _: None)  # a repeated request; asyncpg sent the first

    async def open_async(
        self,
        connect: Callable[..., Awaitable[Any]],
        arguments: dict[str, Any],
        seconds: float,  # noqa: ARG002 - the caller limits its wait
        backstop: float | None,
    ) -> Any:
        """Opens a connection without SQLAlchemy; see `PostgresDriver.open`."""
        for refused, settings in self._offers(connect, arguments, backstop):
            try:
                connection = await connect(**settings)
            except Exception as error:
                if settings is arguments or not refuses_settings(error):
                    raise
            else:
                self._note_refused(refused, limited=backstop is not None)
                if self._is_read_only(connection):
                    with suppress(Exception):  # a pooler may refuse it; then the server has decided
                        self._note_source(connection, await connection.fetchval(SOURCE))
                return connection
        raise AssertionError  # the last offer is empty

    def cancel(self, connection: Any, within: float) -> None:
        """See Driver. The task is cancelled instead."""

    def cancel_again(self, connection: Any, within: float) -> None:
        """See Driver. asyncpg sends one request for a task, and waits for its end while it closes."""
        if not connection._transport.is_closing():  # noqa: SLF001 - is_closed() is true too early
            sent = asyncio.get_running_loop().create_future()
            self._background.run(connection._cancel(sent), within)  # noqa: SLF001 - it has no public name

    def kill(self, connection: Any) -> None:
        """See Driver."""
        with suppress(Exception):
            connection.terminate()
            return
        abort(connection._transport)  # noqa: SLF001 - its event loop is closed

    def session_of(self, connection: Any) -> SessionId | None:
        """See Driver."""
        address = connection._transport.get_extra_info("sockname")  # noqa: SLF001 - it has no public name
        return SessionId(connection.get_server_pid(), address[1] if isinstance(address, tuple) else None)

    def unsent(self, error: BaseException) -> bool:
        """True if asyncpg's own encoder raised it. Unlike a server's it has no severity."""
        cause = error if isinstance(error, asyncpg.PostgresError) else error.__cause__
        return isinstance(cause, asyncpg.DataError) and getattr(cause, "severity", None) is None

    def failed(self, error: BaseException) -> bool | None:
        """See Driver. SQLAlchemy's wrapper carries the state of the error it wraps."""
        if self.unsent(error):
            return None
        return server_failed(self.sqlstate(error))

    def sqlstate(self, error: BaseException) -> str | None:
        """See PostgresDriver."""
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """See Driver."""
        own = getattr(connection, "driver_connection", connection)
        peer = own._transport.get_extra_info("peername")  # noqa: SLF001 - it has no public name
        asked = own._addr  # noqa: SLF001 - likewise
        return (asked[0], peer[0]) if isinstance(peer, tuple) and isinstance(asked, tuple) else (None, None)

    def _reported(self, own: Any, name: str) -> str | None:
        if not isinstance(own, asyncpg.Connection | PoolConnectionProxy):
            return None
        value: str | None = getattr(own.get_settings(), name, None)
        return value

    def _asked_for(self, own: Any) -> tuple[str, str]:
        given = own._params  # noqa: SLF001 - it has no public name
        return getattr(given.target_session_attrs, "value", ""), " ".join(given.server_settings or ())

    def _with_settings(
        self,
        connect: Callable[..., Any],  # noqa: ARG002 - it takes no connection string
        arguments: dict[str, Any],
        offer: Mapping[str, str],
    ) -> dict[str, Any]:
        given = arguments.get("server_settings") or {}
        return {**arguments, "server_settings": {**offer, **given}} if offer else arguments
