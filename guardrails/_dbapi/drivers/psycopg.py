"""psycopg 3, synchronous and asyncio: a cancel request, then the socket is shut.

Depends on psycopg's connections; must not import another driver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from psycopg import BaseConnection

from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.drivers.postgres import PostgresDriver, server_failed
from guardrails._dbapi.drivers.sockets import client_port, cut
from guardrails._pool.sessions import SessionId
from guardrails._runtime.waiters import on_event_loop

__all__ = ["Psycopg", "PsycopgAsync"]

_MIN_CONNECT_TIMEOUT = 2
"""Minimum of psycopg's ``connect_timeout``, which takes whole seconds."""

_RETURN = 1.0
"""Seconds a pool may take to get its connection back."""


class Psycopg(PostgresDriver):
    """See Driver."""

    def __init__(self) -> None:
        super().__init__()
        self._returned: WeakSet[Any] = WeakSet()

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """See Driver. Without a limit of its own, psycopg gives up after 130 s."""
        whole_seconds = max(_MIN_CONNECT_TIMEOUT, math.ceil(seconds))
        return super().open(connect, {"connect_timeout": whole_seconds, **arguments}, seconds, backstop)

    def cancel(self, connection: Any, within: float) -> None:
        """See Driver. Blocks, so it runs in a thread of its own."""
        try:
            connection.cancel_safe(timeout=within)
        except Exception as error:  # noqa: BLE001 - kill() follows
            self.cancel_failed(error)

    def kill(self, connection: Any) -> None:
        """See Driver. It wakes libpq from poll()."""
        with suppress(Exception):  # closed meanwhile
            cut(connection.pgconn.socket)

    def retire(self, connection: Any) -> None:
        """See Driver. A psycopg_pool with ``close_returns`` gets it back closed, and opens another.

        It gets each connection once, because it opens another each time.
        """
        connection.pgconn.finish()
        owner = getattr(connection, "_pool", None)
        if getattr(owner, "close_returns", False) and connection not in self._returned:
            self._returned.add(connection)
            self._return(owner, connection)

    def _return(self, owner: Any, connection: Any) -> None:
        owner.putconn(connection)

    def session_of(self, connection: Any) -> SessionId | None:
        """See Driver."""
        return SessionId(connection.pgconn.backend_pid, client_port(connection.pgconn.socket))

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        return server_failed(self.sqlstate(error))

    def sqlstate(self, error: BaseException) -> str | None:
        """See PostgresDriver."""
        return getattr(error, "sqlstate", None)

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """See Driver."""
        info = getattr(connection, "driver_connection", connection).info
        return info.host, info.hostaddr or None

    def _reported(self, own: Any, name: str) -> str | None:
        if not isinstance(own, BaseConnection):
            return None
        value = own.pgconn.parameter_status(name.encode())
        return None if value is None else str(value.decode())

    def _asked_for(self, own: Any) -> tuple[str, str]:
        given = own.info.get_parameters()
        return given.get("target_session_attrs", ""), given.get("options", "")


class PsycopgAsync(Psycopg):
    """See Driver."""

    def __init__(self) -> None:
        super().__init__()
        self._background = Background(self.cancel_failed)

    def _return(self, owner: Any, connection: Any) -> None:
        if on_event_loop():
            self._background.run(owner.putconn(connection), _RETURN)

    def cancel(self, connection: Any, within: float) -> None:
        """See Driver. Not by cancelling the task: psycopg would then wait up to 10 s for the server."""
        self._background.run(connection.cancel_safe(timeout=within), within)
