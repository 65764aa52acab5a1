"""PyMySQL: KILL QUERY over a second connection, then the socket is shut.

Depends on PyMySQL; must not import another driver.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pymysql

from guardrails._dbapi.drivers.mysql import KILL_TIMEOUT, MySQLDriver, Target, with_backstop
from guardrails._dbapi.drivers.sockets import cut, peer_of
from guardrails._pool.sessions import SessionId

__all__ = ["PyMySQL"]

_LIMITS = {"connect_timeout": KILL_TIMEOUT, "read_timeout": KILL_TIMEOUT, "write_timeout": KILL_TIMEOUT}


class PyMySQL(MySQLDriver):
    """See Driver."""

    reads_when_dropped = True

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """See Driver. ``connect_timeout`` does not cover the handshake; ``read_timeout`` does."""
        own = arguments.get("read_timeout")
        # Later than the caller's deadline, so that the error is always the deadline's.
        bounded = {**arguments, "read_timeout": own or seconds + KILL_TIMEOUT}
        connection = connect(**with_backstop(bounded, backstop))
        connection._read_timeout = own  # noqa: SLF001 - from here on deadlines bound every read
        return connection

    def cancel(self, connection: Any, within: float) -> None:  # noqa: ARG002 - see KILL_TIMEOUT
        """See Driver. Blocks, so it runs in a thread of its own."""
        target = _target(connection)
        try:
            with (
                self._open_cancel_connection(connection) as cancel_connection,
                cancel_connection.cursor() as cursor,
            ):
                cursor.execute(target.question)
                if target.is_among(cursor.fetchall(), _target(cancel_connection)):
                    cursor.execute(target.kill_statement)
        except Exception as error:  # noqa: BLE001 - the cut follows
            self.cancel_failed(error)

    def _open_cancel_connection(self, connection: Any) -> Any:
        """Opens a second connection to the same server."""
        sock = connection._sock  # noqa: SLF001
        encrypted = isinstance(sock, ssl.SSLSocket)
        # The address of this connection: its name may lead elsewhere now. A TLS certificate needs the name.
        named = encrypted or connection.unix_socket
        where = {"host": connection.host if named else sock.getpeername()[0], **_LIMITS}
        if self.second is not None:
            with suppress(Exception):  # the engine's connect may lead to another server
                return self.second.open(**where, init_command=None)
        return _log_in_again(connection, where, encrypted=encrypted)

    def kill(self, connection: Any) -> None:
        """See Driver."""
        with suppress(Exception):  # closed meanwhile
            cut(connection._sock.fileno())  # noqa: SLF001 - it has no public name

    def retire(self, connection: Any) -> None:
        """See Driver. A half-read result would try to read the rest when it is dropped."""
        result = connection._result  # noqa: SLF001 - it has no public name
        if result is not None:
            result.unbuffered_active = False

    def session_of(self, connection: Any) -> SessionId | None:
        """See Driver."""
        target = _target(connection)
        return SessionId(target.number, target.port)

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """See Driver."""
        return connection.host, peer_of(connection._sock.fileno())  # noqa: SLF001 - it has no public name


def _target(connection: Any) -> Target:
    address = connection._sock.getsockname()  # noqa: SLF001
    return Target(connection.thread_id(), address[1] if isinstance(address, tuple) else None)


def _log_in_again(connection: Any, where: dict[str, Any], *, encrypted: bool) -> Any:
    """Opens a second connection with the first one's password."""
    return pymysql.connect(
        **where,
        port=connection.port,
        user=connection.user,
        password=connection.password,
        unix_socket=connection.unix_socket,
        bind_address=connection.bind_address,
        ssl=connection.ctx if encrypted else None,
        ssl_disabled=not encrypted,
        server_public_key=connection.server_public_key,
    )
