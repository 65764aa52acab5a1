"""How each driver is told to stop: one file per driver, two verbs each and what they need.

To add a driver, write a module with a class that fills `Driver`, from `Plain`, and list it in `_KNOWN`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from guardrails.errors import ConfigurationError

__all__ = ["Driver", "find_driver", "unsupported"]


class SecondConnection(Protocol):
    """The engine's own way of connecting, for a connection outside its pool."""

    def open(self, **settings: Any) -> Any:
        """Opens one, with some of the engine's arguments replaced."""

    async def open_async(self, **settings: Any) -> Any:
        """Opens one of an asynchronous driver."""


class Driver(Protocol):
    """What the deadline needs from a driver. ``connection`` is always the driver's own object.

    Attributes:
        interrupts_task: Whether ``cancel`` works by cancelling the asyncio task that waits.
        connects_anywhere: Whether a connection may be opened in one thread and used in another.
        backstop_spans_streams: Whether the server's backstop runs from a stream's first row to its last.
        second: Opens a second connection the way the engine opens its own; None where there is no engine.
        failed_cancels: Number of orders to stop that did not reach the server.

    A driver may also have ``prepare(connection, seconds)``, called before each piece of work, and
    ``works_in_fetch = True`` where the rows of an ordinary cursor are computed as they are fetched, and
    ``reads_when_dropped = True`` where a cursor that is dropped half-read first reads all that is to come,
    and ``unsent(error)``, which tells an error of the driver's own encoders from the server's.
    """

    interrupts_task: bool
    connects_anywhere: bool
    backstop_spans_streams: bool
    second: SecondConnection | None
    failed_cancels: int

    def cancel(self, connection: Any, within: float) -> None:
        """Asks the server to stop the statement under way; may take ``within`` seconds."""

    def insist(self, connection: Any, within: float) -> None:
        """Asks again, a moment before ``kill``: an order that overtakes its statement is lost.

        The call may be over by then, and its connection closed.
        """

    def kill(self, connection: Any) -> None:
        """Makes whoever waits on the connection fail now, server or no server. Never blocks."""

    def retire(self, connection: Any) -> None:
        """Closes a connection that was told to stop for good, whoever it belongs to. Never blocks.

        A late order would hit the next user of it, and ``close()`` of a pool's connection may return it.
        """

    def abandon(self, connection: Any) -> None:
        """Tells the server that a task was cancelled from outside, where the driver itself does not."""

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """Opens a connection.

        Args:
            connect: What opens one, given keyword arguments.
            arguments: What the engine gives it.
            seconds: How long it may take. A thread that opens one should end soon after.
            backstop: Seconds after which the server should end any statement by itself, for the time
                when it cannot be told; None for no such limit.
        """

    def allow(self, statement: str, seconds: float | None) -> str:
        """A statement that may take ``seconds``, which is more than the backstop; None for a stream."""

    def failed(self, error: BaseException) -> bool | None:
        """Whether an error of this driver is the server's fault; None if it cannot tell."""


_KNOWN = {
    ("psycopg", False): ("psycopg", "Psycopg"),
    ("psycopg", True): ("psycopg", "PsycopgAsync"),
    ("psycopg_async", True): ("psycopg", "PsycopgAsync"),
    ("asyncpg", True): ("asyncpg", "Asyncpg"),
    ("psycopg2", False): ("psycopg2", "Psycopg2"),
    ("pymysql", False): ("pymysql", "PyMySQL"),
    ("aiomysql", True): ("aiomysql", "Aiomysql"),
    ("asyncmy", True): ("asyncmy", "Asyncmy"),
    ("pysqlite", False): ("sqlite", "Sqlite"),
    ("aiosqlite", True): ("sqlite", "Aiosqlite"),
}
"""SQLAlchemy's name of the driver, and whether it is asynchronous -> module and class."""


def find_driver(name: str, *, is_async: bool) -> Driver | None:
    """The driver's verbs, or None when deadlines are not supported for it."""
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
