"""psycopg 3, both flavours: a cancel request over a second connection, then the socket is shut."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any

from guardrails.integrations.sqlalchemy._drivers._postgres import server_failed

__all__ = ["Psycopg", "PsycopgAsync"]


class Psycopg:
    """See Driver."""

    interrupts_task = False
    connects_anywhere = True

    def cancel(self, connection: Any, within: float) -> None:
        """See Driver. Blocks, so it runs in a thread of its own."""
        connection.cancel_safe(timeout=within)

    def kill(self, connection: Any) -> None:
        """See Driver. libpq sits in poll(); shutting the socket down wakes it with an end of file."""
        with suppress(Exception):
            # A duplicate, because closing a socket object would close libpq's descriptor under it.
            handle = socket.socket(fileno=os.dup(connection.pgconn.socket))
            with handle:
                handle.shutdown(socket.SHUT_RDWR)

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        return server_failed(getattr(error, "sqlstate", None))


class PsycopgAsync(Psycopg):
    """See Driver."""

    def __init__(self) -> None:
        self._cancelling: set[asyncio.Task[None]] = set()

    def cancel(self, connection: Any, within: float) -> None:
        """See Driver. Not by cancelling the task: psycopg would then wait up to 10 s for the server."""
        task = asyncio.get_running_loop().create_task(self._cancel(connection, within))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _cancel(self, connection: Any, within: float) -> None:
        with suppress(Exception):
            await connection.cancel_safe(timeout=within)
