"""The demo's schema in a PostgreSQL: its tables, its connections, its running queries.

Depends on SQLAlchemy; must not know apps or scenarios. A user's own database is left as it was.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Database", "UnreachableError", "async_url", "place", "reason"]

_CONNECT_LIMIT = 5.0

_TABLES = (
    "CREATE TABLE orders (id int PRIMARY KEY, total numeric NOT NULL)",
    "INSERT INTO orders SELECT n, n % 100 FROM generate_series(1, 1000) AS n",
    "CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL)",
    "INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 1000) AS n",
    "CREATE TABLE pace (extra double precision NOT NULL)",
    "INSERT INTO pace VALUES (0)",
    """
    CREATE FUNCTION work(seconds double precision) RETURNS double precision LANGUAGE plpgsql AS $$
    DECLARE wanted double precision;
    BEGIN
        SELECT seconds + extra INTO wanted FROM pace;
        PERFORM pg_sleep(wanted);
        RETURN wanted;
    END $$
    """,
    "ANALYZE orders",
    "ANALYZE items",
)


class UnreachableError(RuntimeError):
    """The database cannot be used for the demo; the message has address and reason, without credentials."""


def async_url(address: str) -> URL:
    """Converts a user's PostgreSQL URL to one of asyncpg.

    Raises:
        ValueError: It is not a PostgreSQL URL.
    """
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise ValueError("not a database URL; expected postgresql://user:password@host:port/name") from error
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError(f"the demo needs PostgreSQL, not {url.get_backend_name()}")
    if mode := url.query.get("sslmode"):  # libpq's name for asyncpg's ssl
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    return url.set(drivername="postgresql+asyncpg")


def place(url: URL) -> str:
    """Returns a URL's host, port and database, without user, password or options."""
    return f"{url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"


class Database:
    """A schema of the demo's own, and an engine without a pool to create and drop it.

    Attributes:
        url: The URL with credentials; never printed.
        schema: The schema that holds everything the demo creates.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.schema = f"guardrails_demo_{secrets.token_hex(4)}"
        self._engine = create_async_engine(
            url,
            poolclass=NullPool,
            connect_args={"timeout": _CONNECT_LIMIT, "server_settings": self.server_settings("stage")},
        )

    @property
    def engine(self) -> AsyncEngine:
        """An engine that opens a connection for each use, with the schema in its search path."""
        return self._engine

    def server_settings(self, role: str) -> dict[str, str]:
        """Returns the settings of a session: its name and its search path."""
        return {"application_name": self.application(role), "search_path": self.schema}

    def application(self, role: str) -> str:
        """Returns the name of one role's connections in ``pg_stat_activity``."""
        return f"{self.schema}_{role}"

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Creates the schema with its tables; at the end ends the sessions that use it and drops it.

        Raises:
            UnreachableError: There is no usable PostgreSQL at the URL.
        """
        try:
            await self._create()
        except (OSError, TimeoutError, SQLAlchemyError, TypeError, ValueError) as error:
            raise UnreachableError(f"cannot use the database at {place(self.url)}: {reason(error)}") from None
        try:
            yield
        finally:
            await self._drop_for_sure()

    async def _drop_for_sure(self) -> None:
        dropping = asyncio.ensure_future(self._drop())
        try:
            await asyncio.shield(dropping)
        except asyncio.CancelledError:
            await dropping  # Ctrl-C at the end must not leave the schema behind
            raise
        except (OSError, TimeoutError, SQLAlchemyError) as error:
            raise UnreachableError(
                f"schema {self.schema} is left at {place(self.url)}: {reason(error)}"
            ) from None

    async def _create(self) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(text(f"CREATE SCHEMA {self.schema}"))
            for statement in _TABLES:
                await connection.execute(text(statement))

    async def _drop(self) -> None:
        async with self._engine.connect() as connection:
            # Sessions of the twins may still run a query; the drop would wait for their locks.
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE :ours AND pid <> pg_backend_pid()"
                ),
                {"ours": f"{self.schema}\\_%"},
            )
            await connection.execute(text("SET lock_timeout = '5s'"))
            await connection.execute(text(f"DROP SCHEMA {self.schema} CASCADE"))
            await connection.commit()

    async def queries_running(self, role: str) -> int:
        """Counts the queries of one role that run or wait for a lock."""
        question = text(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND state = 'active'"
        )
        async with self._engine.connect() as connection:
            return int((await connection.execute(question, {"name": self.application(role)})).scalar_one())

    async def set_pace(self, extra_seconds: float) -> None:
        """Makes every query of the shop take ``extra_seconds`` longer."""
        async with self._engine.begin() as connection:
            await connection.execute(text("UPDATE pace SET extra = :extra"), {"extra": extra_seconds})


def reason(error: BaseException) -> str:
    """Returns the driver's message, shortened to one line; it holds no password."""
    cause = getattr(error, "orig", None) or error
    cause = getattr(cause, "__cause__", None) or cause
    words = " ".join(str(cause).split())
    return words[:200] or type(cause).__name__
