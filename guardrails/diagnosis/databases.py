"""Asks PostgreSQL, MariaDB and MySQL who is connected and what they do. Knows SQL, judges nothing.

No statement's text is asked for: it has the values of users in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import URL, Connection, Row, create_engine, text
from sqlalchemy.pool import NullPool

from guardrails import protect
from guardrails.diagnosis.findings import Facts, Session
from guardrails.errors import ConfigurationError

__all__ = ["PATIENCE", "ask"]

PATIENCE = 5.0
"""Seconds that connecting, and each question, may take."""

_BLOCKING = {
    "postgresql": ("psycopg", "psycopg2"),
    "mysql": ("pymysql",),
    "mariadb": ("pymysql",),
}
"""Drivers that can ask, by dialect, the first that is there."""


def ask(url: URL) -> Facts:
    """Asks the server of a URL, whatever driver it names.

    Raises:
        ConfigurationError: It is not one of the databases that can be asked, or its driver is missing.
        GuardrailsError: There was no answer in time.
        SQLAlchemyError: It could not be reached, or does not answer this user.
    """
    dialect = url.get_backend_name()
    if dialect not in _BLOCKING:
        raise ConfigurationError(
            f"diagnose: {dialect} cannot be asked; PostgreSQL, MariaDB, MySQL and Redis can"
        )
    engine = create_engine(_with_driver(url, dialect), poolclass=NullPool)
    db = protect(engine, max_concurrent_calls=1, timeout=PATIENCE, breaker=None)
    try:
        with engine.connect() as connection:
            return (_ask_postgres if dialect == "postgresql" else _ask_mysql)(connection)
    finally:
        db.detach()
        engine.dispose()


def _with_driver(url: URL, dialect: str) -> URL:
    # What only an asyncio driver understands would stop a blocking one.
    plain = url.set(query={}) if "async" in url.get_driver_name() else url
    for driver in _BLOCKING[dialect]:
        candidate = plain.set(drivername=f"{dialect}+{driver}")
        try:
            candidate.get_dialect().import_dbapi()
        except ImportError:
            continue
        return candidate
    raise ConfigurationError(f"diagnose: {dialect} needs one of the drivers {', '.join(_BLOCKING[dialect])}")


_POSTGRES_SETTINGS = """
select name, setting::int from pg_settings
where name in ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
"""

_POSTGRES_SESSIONS = """
select pid, coalesce(nullif(application_name, ''), usename, '') as name, state, wait_event_type,
    extract(epoch from clock_timestamp() - coalesce(state_change, backend_start))::float8 as in_state,
    extract(epoch from clock_timestamp() - coalesce(query_start, backend_start))::float8 as in_query,
    pg_blocking_pids(pid) as blocking,
    (select l.relation::regclass::text from pg_locks l
        where l.pid = a.pid and not l.granted and l.relation is not null limit 1) as "table"
from pg_stat_activity a
where backend_type = 'client backend' and pid <> pg_backend_pid()
"""


def _ask_postgres(connection: Connection) -> Facts:
    settings = {row.name: int(row.setting) for row in connection.execute(text(_POSTGRES_SETTINGS))}
    return Facts(
        product="PostgreSQL",
        limit=settings.pop("max_connections"),
        reserved=sum(settings.values()),
        sessions=_sessions(connection, _POSTGRES_SESSIONS, _of_postgres),
    )


def _of_postgres(row: Row[Any]) -> Session:
    state = row.state or ""
    if row.wait_event_type == "Lock":
        return Session(row.pid, row.name, "waiting", row.in_query, tuple(row.blocking), row.table)
    if state.startswith("idle in transaction"):
        return Session(row.pid, row.name, "idle_in_transaction", row.in_state)
    if state in {"active", "fastpath function call"}:
        return Session(row.pid, row.name, "active", row.in_query)
    return Session(row.pid, row.name, "idle", row.in_state)


_MYSQL_SESSIONS = """
select p.id as pid, p.user as name, p.command, p.time as seconds, p.state, t.trx_id as trx
from information_schema.processlist p
left join information_schema.innodb_trx t on t.trx_mysql_thread_id = p.id
where p.id <> connection_id() and p.command <> 'Daemon' and p.user <> 'system user'
"""

_MARIADB_BLOCKING = """
select waiting.trx_mysql_thread_id as pid, blocking.trx_mysql_thread_id as blocking
from information_schema.innodb_lock_waits w
join information_schema.innodb_trx waiting on waiting.trx_id = w.requesting_trx_id
join information_schema.innodb_trx blocking on blocking.trx_id = w.blocking_trx_id
"""

_MYSQL_BLOCKING = """
select waiting.processlist_id as pid, blocking.processlist_id as blocking
from performance_schema.data_lock_waits w
join performance_schema.threads waiting on waiting.thread_id = w.requesting_thread_id
join performance_schema.threads blocking on blocking.thread_id = w.blocking_thread_id
"""


def _ask_mysql(connection: Connection) -> Facts:
    is_mariadb = "mariadb" in str(connection.execute(text("select version()")).scalar()).lower()
    blocking: dict[int, list[int]] = {}
    for row in connection.execute(text(_MARIADB_BLOCKING if is_mariadb else _MYSQL_BLOCKING)):
        blocking.setdefault(row.pid, []).append(row.blocking)

    def session(row: Row[Any]) -> Session:
        behind = tuple(blocking.get(row.pid, ()))
        seconds = float(row.seconds or 0)
        if behind or "lock" in (row.state or "").lower():
            return Session(row.pid, row.name, "waiting", seconds, behind)
        if row.command == "Sleep":
            return Session(row.pid, row.name, "idle_in_transaction" if row.trx else "idle", seconds)
        return Session(row.pid, row.name, "active", seconds)

    return Facts(
        product="MariaDB" if is_mariadb else "MySQL",
        limit=int(connection.execute(text("select @@max_connections")).scalar_one()),
        reserved=0,
        sessions=_sessions(connection, _MYSQL_SESSIONS, session),
    )


def _sessions(
    connection: Connection, question: str, session: Callable[[Row[Any]], Session]
) -> tuple[Session, ...]:
    rows: Iterable[Row[Any]] = connection.execute(text(question))
    return tuple(session(row) for row in rows)
