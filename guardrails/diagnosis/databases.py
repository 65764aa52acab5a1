"""Reads the sessions and locks of PostgreSQL, MariaDB and MySQL. Depends on SQLAlchemy; must not judge.

It reads the text of a statement, which may hold values of users, only when it is told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from guardrails._dbapi.server_sessions import (
    KILL,
    Execute,
    is_mariadb,
    read_mysql,
    read_postgres,
    read_processlist,
)
from guardrails.diagnosis.asking import ANSWER_TIMEOUT, CONNECT_TIMEOUT, OUR_ENGINE, refusal, within, words
from guardrails.diagnosis.drivers import ON_LOOP, with_driver
from guardrails.diagnosis.findings import Facts, Finding, Prepared
from guardrails.errors import ConfigurationError

__all__ = ["Limits", "RoleLimit", "answer", "ask", "read_limits", "why_not"]

T = TypeVar("T")


def answer(url: str, question: Callable[[URL], T]) -> tuple[URL, T | Finding]:
    """Returns the URL, and what its server answers, or a finding if it does not.

    Args:
        url: The URL.
        question: `ask` or `read_limits`.

    Raises:
        ConfigurationError: The database is not supported, or its driver is missing.
        ValueError: The URL is wrong; the message does not show it.
    """
    try:
        address = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise ValueError("no URL") from None
    try:
        return address, question(address)
    except ConfigurationError:
        raise
    except (SQLAlchemyError, OSError) as error:
        return address, why_not(error, address)
    except (TypeError, ValueError):
        raise ValueError("an option that its driver does not have") from None


def ask(url: URL, *, statements: bool = False) -> Facts:
    """Reads the facts of the server of a URL, which may name any driver.

    Args:
        url: The URL.
        statements: Whether to read the texts of statements.

    Raises:
        ConfigurationError: The database is not supported, or its driver is missing.
        TimeoutError: There was no answer in time.
        SQLAlchemyError: The server could not be reached, or refused this user.
    """

    def read(dialect: str, execute: Execute) -> Facts:
        return (_ask_postgres if dialect == "postgresql" else _ask_mysql)(execute, statements=statements)

    return _connected(url, read)


def _connected(url: URL, read: Callable[[str, Execute], T]) -> T:
    """Reads something from the server of a URL, within the time for an answer."""
    url = with_driver(url)
    dialect, driver = url.get_backend_name(), url.get_driver_name()
    # Each of these drivers has this option; without it they wait without end.
    limit = {"timeout" if driver == "asyncpg" else "connect_timeout": CONNECT_TIMEOUT}
    make: Any = create_async_engine if driver in ON_LOOP else create_engine
    engine = make(url, poolclass=NullPool, connect_args=limit, execution_options={OUR_ENGINE: True})

    def question() -> T:
        with engine.connect() as connection:
            return read(dialect, _runs(connection))

    async def question_on_loop() -> T:
        try:
            async with engine.connect() as connection:
                return cast("T", await connection.run_sync(lambda sync: read(dialect, _runs(sync))))
        except Exception as error:
            if isinstance(error, SQLAlchemyError) or not hasattr(error, "sqlstate"):
                raise
            # SQLAlchemy leaves asyncpg's errors of a connect as they are.
            raise DBAPIError(None, None, error) from error

    return within(
        ANSWER_TIMEOUT, lambda: asyncio.run(question_on_loop()) if driver in ON_LOOP else question()
    )


class RoleLimit(NamedTuple):
    """The limit of a server for one role.

    Attributes:
        name: The name of the role.
        limit: Connections it may have; None without a limit of its own.
        is_superuser: True if no limit counts for it.
        sessions: Connections that it has, without the one that asked.
        room: Connections that the server has for all applications.
        change: The statement that sets the limit, with ``{}`` for the number.
    """

    name: str
    limit: int | None
    is_superuser: bool
    sessions: int
    room: int
    change: str


class Limits(NamedTuple):
    """The limits of a server for one user in one database.

    Attributes:
        connections: Connections it allows: the smallest limit of the server, the user and the database.
        reserved: Of these, connections that applications cannot get.
        idle_timeout: Seconds after which it closes an idle connection; None is never.
        role: The limit of the user alone.
    """

    connections: int
    reserved: int
    idle_timeout: float | None
    role: RoleLimit


_POSTGRES_LIMITS = """
select rolconnlimit from pg_roles where rolname = current_user
union all select datconnlimit from pg_database where datname = current_database()
"""

_POSTGRES_ROLE = """
select rolname, rolconnlimit, rolsuper, quote_ident(rolname),
    (select count(*) from pg_stat_activity where usename = rolname and pid <> pg_backend_pid())
from pg_roles where rolname = session_user
"""

_POSTGRES_IDLE = """
select setting::float8 / 1000 from pg_settings where name = 'idle_session_timeout' and setting <> '0'
"""


def read_limits(url: URL) -> Limits:
    """Reads the limits of the server of a URL; see `ask`."""
    return _connected(url, _limits)


def _limits(dialect: str, execute: Execute) -> Limits:
    if dialect == "postgresql":
        settings = {name: int(setting) for name, setting in execute(_POSTGRES_SETTINGS)}
        most, reserved = settings.pop("max_connections"), sum(settings.values())
        ((name, limit, is_superuser, quoted, sessions),) = execute(_POSTGRES_ROLE)
        change = f"ALTER ROLE {quoted} CONNECTION LIMIT {{}}"
        of_role = None if limit < 0 else limit
        role = RoleLimit(name, of_role, is_superuser, sessions, most - reserved, change)
        own = [limit for (limit,) in execute(_POSTGRES_LIMITS) if limit >= 0]
        if own and min(own) < most - reserved:
            most, reserved = min(own), 0
        idle = [seconds for (seconds,) in execute(_POSTGRES_IDLE)]
        return Limits(most, reserved, min(idle, default=None), role)
    ((most, of_user, idle_timeout),) = execute(
        "select @@max_connections, @@max_user_connections, @@wait_timeout"
    )
    view = read_processlist(execute)
    name = view.asker.user
    sessions = sum(session.user == name for session in view.sessions)
    user, _, host = str(execute("select current_user()")[0][0]).rpartition("@")
    change = f"ALTER USER {user!a}@{host!a} WITH MAX_USER_CONNECTIONS {{}}"
    role = RoleLimit(name, of_user or None, False, sessions, most, change)
    return Limits(min(most, of_user or most), 0, float(idle_timeout), role)


def _runs(connection: Connection) -> Execute:
    return lambda statement: (
        result.all() if (result := connection.exec_driver_sql(statement)).returns_rows else ()
    )


def why_not(error: Exception, url: URL) -> Finding:
    """Makes a finding of an error of `ask`, in the driver's words without the URL's address and password."""
    original = getattr(error, "orig", None) or error
    hosts = str(url.host or "").split(",")
    said = words(_message(original), [url.password, *hosts, url.port, *map(str, url.query.values())])
    number = original.args[0] if original.args and isinstance(original.args[0], int) else 0
    state, in_range = getattr(original, "sqlstate", None) or "", _MYSQL_ANSWERS <= number < _MYSQL_CLIENT
    return refusal(
        said,
        answered="FATAL" in said or state.startswith(_POSTGRES_DENIES) or in_range,
        crowded=number in _MYSQL_CROWDED or any(sign in said for sign in _POSTGRES_CROWDED),
    )


_MYSQL_ANSWERS, _MYSQL_CLIENT = 1000, 2000
"""The first error number of the server, and the first of its client library."""

_POSTGRES_DENIES = ("28", "3D")
"""SQLSTATEs of a refused login and of an unknown database. libpq says FATAL instead."""

_MYSQL_CROWDED = {1040, 1203, 1226}
_POSTGRES_CROWDED = ("too many clients", "too many connections", "connection slots are reserved")


def _message(error: BaseException) -> str:
    # PyMySQL's errors have a number and a message.
    return str(error.args[-1]) if error.args and isinstance(error.args[0], int) else str(error)


_POSTGRES_SETTINGS = """
select name, setting::int from pg_settings
where name in ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
"""

_POSTGRES_PREPARED = """
select gid, owner, database, extract(epoch from clock_timestamp() - prepared)::float8 as seconds,
    exists (
        select 1 from pg_locks h join pg_locks w using (locktype)
        where h.virtualtransaction in (
            select virtualtransaction from pg_locks
            where transactionid = p.transaction and pid is null and granted
        )
        and h.pid is null and h.granted and not w.granted
        and (h.database, h.relation, h.page, h.tuple, h.transactionid, h.classid, h.objid, h.objsubid)
            is not distinct from
            (w.database, w.relation, w.page, w.tuple, w.transactionid, w.classid, w.objid, w.objsubid)
    ) as blocks
from pg_prepared_xacts p
"""

_ABORTED = "show global status where variable_name in ('Aborted_clients', 'Aborted_connects')"

_UNSEEN_TRANSACTIONS = "what other users' sessions and transactions do: that takes the privilege PROCESS"
_OF_MYSQL = ", and SELECT on performance_schema"


def _ask_postgres(execute: Execute, *, statements: bool) -> Facts:
    execute(f"set statement_timeout = {ANSWER_TIMEOUT * 1000:.0f}")
    settings = {name: int(setting) for name, setting in execute(_POSTGRES_SETTINGS)}
    view = read_postgres(execute, statements=statements)
    sessions = view.sessions
    hidden = sum(session.state == "unseen" for session in sessions)
    return Facts(
        product="PostgreSQL",
        limit=settings.pop("max_connections"),
        reserved=sum(settings.values()),
        sessions=sessions,
        prepared=tuple(Prepared(*row) for row in execute(_POSTGRES_PREPARED)),
        unseen=(f"what {hidden} of {len(sessions)} sessions do: that takes the role pg_monitor",)
        if hidden
        else (),
        user=view.asker.user,
    )


def _ask_mysql(execute: Execute, *, statements: bool) -> Facts:
    view, mariadb = read_mysql(execute, statements=statements), is_mariadb(execute)
    return Facts(
        product="MariaDB" if mariadb else "MySQL",
        limit=int(execute("select @@max_connections")[0][0]),
        reserved=0,
        sessions=view.sessions,
        kill=KILL["mysql"],
        orphan="a prepared transaction, which has no session: XA RECOVER lists it",
        unseen=() if view.complete else (_UNSEEN_TRANSACTIONS + ("" if mariadb else _OF_MYSQL),),
        aborted=tuple((str(name).lower(), int(count)) for name, count in execute(_ABORTED)),
        user=view.asker.user,
    )
