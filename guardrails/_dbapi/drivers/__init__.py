"""Stops the calls of each supported driver: one module per driver.

To add a driver, write a module with a subclass of `Plain` that implements `Driver`, and list it in `_KNOWN`.

Depends on DBAPI drivers; must not import a guard.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from guardrails._pool.sessions import SessionId
from guardrails.errors import ConfigurationError

__all__ = ["Driver", "find_driver", "unsupported"]


class SecondConnection(Protocol):
    """The engine's own way of connecting, for a connection outside its pool."""

    def open(self, **settings: Any) -> Any:
        """Opens a connection with some of the engine's arguments replaced."""

    async def open_async(self, **settings: Any) -> Any:
        """Opens a connection of an asynchronous driver."""


class Driver(Protocol):
    """The operations on a driver that a deadline needs. ``connection`` is always the driver's own object.

    Attributes:
        interrupts_task: True if ``cancel`` works by cancelling the asyncio task that waits.
        connects_anywhere: True if a connection may be opened in one thread and used in another.
        backstop_spans_streams: True if the server's backstop runs from a stream's first row to its last.
        second: Opens a second connection the way the engine opens its own; None where there is no engine.
        failed_cancels: Number of cancel requests that did not reach the server.

    A driver may also have ``prepare(connection, seconds)``, called before each piece of work,
    ``note(connection)``, called by the thread that uses the connection before it is used under a limit, and
    ``works_in_fetch = True`` where the rows of an ordinary cursor are computed as they are fetched,
    ``reads_when_dropped = True`` where dropping a half-read cursor first reads all remaining rows,
    ``unsent(error)``, which is true for an error of the driver's own encoders, and ``out_of_step(error)``,
    which is true for an error after which the connection would give wrong answers, and must not be used. One
    with ``sends_access_mode = True``, where making a session read-only is a statement, has
    ``note_access_mode(connection, read_only=...)``.
    """

    interrupts_task: bool
    connects_anywhere: bool
    backstop_spans_streams: bool
    second: SecondConnection | None
    failed_cancels: int

    def cancel_target(self, connection: Any) -> Any:
        """Reads what a cancel request must know of a connection. Never blocks.

        The call is still running, so the connection is open. While the request is under way, the call may end
        and its connection be closed.
        """

    def cancel(self, target: Any, within: float) -> None:
        """Sends the server a cancel request for the current statement; may take ``within`` seconds."""

    def cancel_again(self, target: Any, within: float) -> None:
        """Sends a second request before ``kill``: one that comes before its statement is lost."""

    def kill(self, connection: Any) -> None:
        """Makes the call on the connection fail at once, without the server. Never blocks."""

    def retire(self, connection: Any) -> None:
        """Closes a connection for good, also one that a pool owns. Never blocks.

        Its state may be unknown, and a late cancel request would hit its next user. The ``close()`` of a
        pool's connection may return it to that pool.
        """

    def abandon(self, connection: Any) -> None:
        """Cancels the statement of a task that another party cancelled, where the driver does not."""

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """Opens a connection.

        Args:
            connect: Opens a connection, given keyword arguments.
            arguments: The engine's arguments.
            seconds: Maximum duration. A thread that opens a connection should end soon after.
            backstop: Seconds after which the server should end any statement on its own, for statements
                whose cancel request is lost; None for no such limit.
        """

    def allow(self, statement: str, seconds: float | None) -> str:
        """Rewords a statement that may take ``seconds``, more than the backstop; None for a stream."""

    def session_of(self, connection: Any) -> SessionId | None:
        """The server's number of a connection, without a round trip; None if unknown. Any thread may ask."""

    def failed(self, error: BaseException) -> bool | None:
        """True if an error of this driver is the server's fault; None if unknown."""

    def set_up(self, connection: Any) -> None:
        """Notes what the user's set-up of a new connection has asked for; gets SQLAlchemy's connection."""

    def refuses_writes(self, error: BaseException, connection: Any) -> bool:
        """True if the server is read-only and the work did not ask for that; gets SQLAlchemy's connection."""

    def refuses_login(self, error: BaseException) -> bool:
        """True if a connect failed because the server refuses the user or the password."""

    def has_no_room(self, error: BaseException) -> bool:
        """True if a connect failed because the server has no connection left, for this user or at all."""

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """The host that was asked for and the address of the server, each None if unknown."""


_KNOWN = {
    ("psycopg", False): ("psycopg", "Psycopg"),
    ("psycopg", True): ("psycopg", "PsycopgAsync"),
    ("psycopg_async", True): ("psycopg", "PsycopgAsync"),
    ("asyncpg", True): ("asyncpg", "Asyncpg"),
    ("psycopg2", False): ("psycopg2", "Psycopg2"),
    ("pg8000", False): ("pg8000", "PG8000"),
    ("pymysql", False): ("pymysql", "PyMySQL"),
    ("mysqldb", False): ("mysqldb", "MySQLdb"),
    ("aiomysql", True): ("aiomysql", "Aiomysql"),
    ("asyncmy", True): ("asyncmy", "Asyncmy"),
    ("pysqlite", False): ("sqlite", "Sqlite"),
    ("aiosqlite", True): ("sqlite", "Aiosqlite"),
}
"""SQLAlchemy's name of the driver, and whether it is asynchronous -> module and class."""


def find_driver(name: str, *, is_async: bool) -> Driver | None:
    """The operations of a driver; None if deadlines are not supported for it."""
    known = _KNOWN.get((name, is_async))
    if known is None:
        return None
    module, cls = known
    driver: Driver = getattr(importlib.import_module(f"{__name__}.{module}"), cls)()
    return driver


def unsupported(name: str) -> ConfigurationError:
    """The error for a driver whose calls cannot be stopped."""
    supported = ", ".join(sorted({known for known, _ in _KNOWN}))
    return ConfigurationError(
        f"protect: statements of the driver {name!r} cannot be stopped at a deadline; "
        f"pass timeout=None to guard it without deadlines, or use one of: {supported}"
    )
