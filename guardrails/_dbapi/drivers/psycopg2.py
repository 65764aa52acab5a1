"""psycopg2: pg_cancel_backend() over a second connection, then the socket is shut.

Depends on psycopg2; must not import another driver.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import psycopg2

from guardrails._dbapi.drivers.postgres import PostgresDriver, server_failed
from guardrails._dbapi.drivers.sockets import cut

__all__ = ["Psycopg2"]

_PATIENCE = 2
"""Minimum of libpq's ``connect_timeout``, which takes whole seconds."""

_CANCEL = (
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
    "WHERE pid = %s AND client_port = %s AND state = 'active'"
)
"""The port matches only on a direct connection; behind a pooler the process number is another client's."""


class Psycopg2(PostgresDriver):
    """See Driver."""

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """See Driver."""
        patience = max(_PATIENCE, math.ceil(seconds))
        return super().open(connect, {"connect_timeout": patience, **arguments}, seconds, backstop)

    def cancel(self, connection: Any, within: float) -> None:  # noqa: ARG002 - libpq takes no fractions
        """See Driver. Blocks, so it runs in a thread of its own.

        Not by ``connection.cancel()``: that waits for the server without releasing the GIL, so that one
        frozen server would freeze the whole process.
        """
        port, server = _ends(connection)
        target = (connection.info.backend_pid, port)
        try:
            with closing(self._another(connection, server)) as messenger:
                messenger.cursor().execute(_CANCEL, target)
        except Exception as error:  # noqa: BLE001 - kill() follows
            self.cancel_failed(error)

    def _another(self, connection: Any, server: str) -> Any:
        """Opens a second connection to the same server."""
        info = connection.info
        # The one host of the first connection: there may be several hosts, or several addresses of one.
        where = {
            "host": info.host,
            "hostaddr": server,
            "port": info.port,
            "target_session_attrs": "any",
            "connect_timeout": _PATIENCE,
        }
        if self.second is not None:
            with suppress(Exception):  # the engine's connect may lead to another server
                messenger = self.second.open(**where)
                if (messenger.info.host, messenger.info.port, _ends(messenger)[1]) == (
                    info.host,
                    info.port,
                    server,
                ):
                    return messenger
                messenger.close()
        return psycopg2.connect(**{**info.dsn_parameters, "password": info.password, **where})

    def kill(self, connection: Any) -> None:
        """See Driver. It wakes libpq from poll()."""
        with suppress(Exception):  # closed meanwhile
            cut(connection.fileno())

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        return server_failed(getattr(error, "pgcode", None))


def _ends(connection: Any) -> tuple[int, str]:
    """The client's port and the server's address; -1, as the server shows it, and '' for a Unix socket."""
    with socket.socket(fileno=os.dup(connection.fileno())) as handle:
        ours, theirs = handle.getsockname(), handle.getpeername()
    return (ours[1], theirs[0]) if isinstance(ours, tuple) else (-1, "")
