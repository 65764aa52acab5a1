"""psycopg2: pg_cancel_backend() over a second connection, then the socket is shut."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import psycopg2

from guardrails.integrations.sqlalchemy._drivers._postgres import PostgresDriver, server_failed
from guardrails.integrations.sqlalchemy._drivers._sockets import cut

__all__ = ["Psycopg2"]

_PATIENCE = 2
"""The fewest seconds libpq gives the opening of a connection; it takes whole ones only."""

_CANCEL = (
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
    "WHERE pid = %s AND client_port = %s AND state = 'active'"
)
"""The port is ours if nothing stands between; a pooler's process number never belongs to it."""


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

        Not by ``connection.cancel()``: that waits for the server without letting go of the interpreter,
        so that one frozen server would freeze this whole process.
        """
        target = (connection.info.backend_pid, _own_port(connection))
        settings = {**connection.info.dsn_parameters, "password": connection.info.password}
        with closing(psycopg2.connect(**{**settings, "connect_timeout": _PATIENCE})) as messenger:
            messenger.cursor().execute(_CANCEL, target)

    def kill(self, connection: Any) -> None:
        """See Driver. libpq sits in poll()."""
        with suppress(Exception):  # closed meanwhile
            cut(connection.fileno())

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        return server_failed(getattr(error, "pgcode", None))


def _own_port(connection: Any) -> int:
    with socket.socket(fileno=os.dup(connection.fileno())) as handle:
        name = handle.getsockname()
    # The server shows -1 for a Unix socket.
    port: int = name[1] if isinstance(name, tuple) else -1
    return port
