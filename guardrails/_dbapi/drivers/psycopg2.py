"""psycopg2: pg_cancel_backend() over a second connection, then the socket is shut.

Depends on psycopg2; must not import another driver.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import psycopg2.extensions

from guardrails._dbapi.drivers.postgres import PostgresDriver, server_failed
from guardrails._dbapi.drivers.sockets import client_port, cut
from guardrails._pool.sessions import SessionId

__all__ = ["Psycopg2"]

_MIN_CONNECT_TIMEOUT = 2
"""Minimum of libpq's ``connect_timeout``, which takes whole seconds."""

_CANCEL = (
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
    "WHERE pid = %s AND client_port = %s AND state = 'active'"
)
"""The port matches only on a direct connection; behind a pooler the process number is another client's."""


@dataclass(frozen=True, slots=True)
class _Target:
    """The data of a connection that a cancel request needs.

    Attributes:
        backend_pid: The server's process.
        client_port: See `_socket_addresses`.
        server: The server's address; see `_socket_addresses`.
        host: The host's name, or the directory of a Unix socket.
        port: The server's port.
        login: libpq's parameters, with the password.
    """

    backend_pid: int
    client_port: int
    server: str
    host: str | None
    port: int
    login: Mapping[str, Any] = field(repr=False)


class Psycopg2(PostgresDriver):
    """See Driver."""

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """See Driver."""
        whole_seconds = max(_MIN_CONNECT_TIMEOUT, math.ceil(seconds))
        return super().open(connect, {"connect_timeout": whole_seconds, **arguments}, seconds, backstop)

    def cancel_target(self, connection: Any) -> _Target:
        """See Driver.

        ``connection.info`` reads libpq's memory unchecked, which crashes the process while another thread
        closes the connection. So it is read only here, while the call cannot end, and when it was opened.
        """
        number, login = connection.get_backend_pid(), connection.get_dsn_parameters()
        port, server = _socket_addresses(connection)
        info = connection.info
        login["password"] = info.password
        return _Target(number, port, server, info.host, info.port, login)

    def cancel(self, target: _Target, within: float) -> None:  # noqa: ARG002 - libpq takes no fractions
        """See Driver. Blocks, so it runs in a thread of its own.

        Not by ``connection.cancel()``: that waits for the server without releasing the GIL, so that one
        frozen server would freeze the whole process.
        """
        try:
            with closing(self._open_cancel_connection(target)) as cancel_connection:
                cancel_connection.cursor().execute(_CANCEL, (target.backend_pid, target.client_port))
        except Exception as error:  # noqa: BLE001 - kill() follows
            self.cancel_failed(error)

    def _open_cancel_connection(self, target: _Target) -> Any:
        """Opens a second connection to the same server."""
        # The one host of the first connection: there may be several hosts, or several addresses of one.
        where = {
            "host": target.host,
            "hostaddr": target.server,
            "port": target.port,
            "target_session_attrs": "any",
            "connect_timeout": _MIN_CONNECT_TIMEOUT,
        }
        if self.second is not None:
            with suppress(Exception):  # the engine's connect may lead to another server
                cancel_connection = self.second.open(**where)
                reached = (
                    cancel_connection.info.host,
                    cancel_connection.info.port,
                    _socket_addresses(cancel_connection)[1],
                )
                if reached == (target.host, target.port, target.server):
                    return cancel_connection
                cancel_connection.close()
        return psycopg2.connect(**{**target.login, **where})

    def kill(self, connection: Any) -> None:
        """See Driver. It wakes libpq from poll()."""
        with suppress(Exception):  # closed meanwhile
            cut(connection.fileno())

    def session_of(self, connection: Any) -> SessionId | None:
        """See Driver. Its caller may close the connection at the same time; see `cancel_target`."""
        return SessionId(connection.get_backend_pid(), client_port(connection.fileno()))

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        return server_failed(self.sqlstate(error))

    def sqlstate(self, error: BaseException) -> str | None:
        """See PostgresDriver."""
        return getattr(error, "pgcode", None)

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """See Driver."""
        return connection.info.host, _socket_addresses(connection)[1] or None

    def _reported(self, own: Any, name: str) -> str | None:
        if not isinstance(own, psycopg2.extensions.connection):
            return None
        value: str | None = own.get_parameter_status(name)
        return value

    def _asked_for(self, own: Any) -> tuple[str, str]:
        given = own.get_dsn_parameters()
        return given.get("target_session_attrs", ""), given.get("options", "")


def _socket_addresses(connection: Any) -> tuple[int, str]:
    """The client's port and the server's address; -1, as the server shows it, and '' for a Unix socket."""
    with socket.socket(fileno=os.dup(connection.fileno())) as handle:
        ours, theirs = handle.getsockname(), handle.getpeername()
    return (ours[1], theirs[0]) if isinstance(ours, tuple) else (-1, "")
