"""Reads the sessions and locks of PostgreSQL, MariaDB and MySQL. Depends on SQLAlchemy; must not judge.

It never reads the text of a statement, which contains values of users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Connection, Row, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from guardrails.diagnosis.asking import ANSWER_TIMEOUT, CONNECT_TIMEOUT, refusal, within, words
from guardrails.diagnosis.findings import Facts, Finding, Prepared, Session
from guardrails.errors import ConfigurationError

__all__ = ["ask", "why_not"]

_BLOCKING = {
    "postgresql": ("psycopg", "psycopg2"),
    "mysql": ("pymysql",),
    "mariadb": ("pymysql",),
}
"""Usable drivers by dialect; the first installed one is used."""


def ask(url: URL) -> Facts:
    """Reads the facts of the server of a URL, which may name any driver.

    Raises:
        ConfigurationError: The database is not supported, or its driver is missing.
        TimeoutError: There was no answer in time.
        SQLAlchemyError: The server could not be reached, or refused this user.
    """
    url = _with_usual_name(url)
    dialect = url.get_backend_name()
    if dialect not in _BLOCKING:
        raise ConfigurationError(
            f"diagnose: {dialect} cannot be asked; PostgreSQL, MariaDB, MySQL and Redis can"
        )
    # All these drivers have this option; without it they wait for ever.
    engine = create_engine(
        _with_driver(url, dialect), poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT}
    )

    def question() -> Facts:
        with engine.connect() as connection:
            return (_ask_postgres if dialect == "postgresql" else _ask_mysql)(connection)

    return within(ANSWER_TIMEOUT, question)


def why_not(error: Exception, url: URL) -> Finding:
    """Makes a finding of an error of `ask`, in the driver's words without the URL's address and password."""
    original = getattr(error, "orig", None) or error
    hosts = str(url.host or "").split(",")
    said = words(_message(original), [url.password, *hosts, url.port, *map(str, url.query.values())])
    number = original.args[0] if original.args and isinstance(original.args[0], int) else 0
    return refusal(
        said,
        answered="FATAL" in said or _MYSQL_ANSWERS <= number < _MYSQL_CLIENT,
        crowded=number in _MYSQL_CROWDED or any(sign in said for sign in _POSTGRES_CROWDED),
    )


_MYSQL_ANSWERS, _MYSQL_CLIENT = 1000, 2000
"""The first error number of the server, and the first of its client library."""

_MYSQL_CROWDED = {1040, 1203, 1226}
_POSTGRES_CROWDED = ("too many clients", "too many connections", "connection slots are reserved")


def _message(error: BaseException) -> str:
    # PyMySQL's errors have a number and a message.
    return str(error.args[-1]) if error.args and isinstance(error.args[0], int) else str(error)


def _with_usual_name(url: URL) -> URL:
    # libpq and most hosting services write postgres://, which SQLAlchemy no longer accepts.
    name, plus, driver = url.drivername.partition("+")
    return url.set(drivername=f"postgresql{plus}{driver}") if name == "postgres" else url


def _with_driver(url: URL, dialect: str) -> URL:
    # Options of an asyncio driver would be errors for a blocking one.
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
select pid, coalesce(nullif(application_name, ''), usename, '') as name, state,
    query = '<insufficient privilege>' as hidden,
    coalesce(wait_event_type = 'Lock' or l.pid is not null, false) as waiting,
    extract(epoch from clock_timestamp() - coalesce(state_change, backend_start))::float8 as in_state,
    extract(epoch from clock_timestamp() - coalesce({since}query_start, backend_start))::float8 as in_query,
    pg_blocking_pids(pid) as blocking, l.relation as "table"
from pg_stat_activity a
left join lateral (
    select l.pid, case when d.datname is not null then l.relation::regclass::text end as relation{waitstart}
    from pg_locks l left join pg_database d on d.oid = l.database and d.datname = current_database()
    where l.pid = a.pid and not l.granted limit 1
) l using (pid)
where usesysid is not null and coalesce(backend_type, 'client backend') = 'client backend'
    and pid <> pg_backend_pid()
"""
"""All users may see waits for locks and the origin of a session; the rest needs the role pg_monitor."""

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

_WAITSTART = 140_000
"""The first version of PostgreSQL whose pg_locks has the start of a wait."""


def _ask_postgres(connection: Connection) -> Facts:
    connection.execute(text(f"set statement_timeout = {ANSWER_TIMEOUT * 1000:.0f}"))
    settings = {row.name: int(row.setting) for row in connection.execute(text(_POSTGRES_SETTINGS))}
    version = connection.execute(text("select current_setting('server_version_num')::int")).scalar_one()
    new = int(version) >= _WAITSTART
    question = _POSTGRES_SESSIONS.format(
        since="l.waitstart, " if new else "", waitstart=", l.waitstart" if new else ""
    )
    rows = connection.execute(text(question)).all()
    hidden = sum(bool(row.hidden) for row in rows)
    return Facts(
        product="PostgreSQL",
        limit=settings.pop("max_connections"),
        reserved=sum(settings.values()),
        sessions=tuple(_of_postgres(row) for row in rows),
        prepared=tuple(Prepared(*row) for row in connection.execute(text(_POSTGRES_PREPARED))),
        unseen=(f"what {hidden} of {len(rows)} sessions do: that takes the role pg_monitor",)
        if hidden
        else (),
    )


def _of_postgres(row: Row[Any]) -> Session:
    state = row.state or ""
    if row.waiting:
        return Session(row.pid, row.name, "waiting", row.in_query or 0.0, tuple(row.blocking), row.table)
    if row.hidden:
        return Session(row.pid, row.name, "unseen", 0.0)
    if state.startswith("idle in transaction"):
        return Session(row.pid, row.name, "idle_in_transaction", row.in_state)
    if state in {"active", "fastpath function call"}:
        return Session(row.pid, row.name, "active", row.in_query)
    return Session(row.pid, row.name, "idle", row.in_state)


_MYSQL_SESSIONS = """
select id as pid, user as name, command, time as seconds, state from information_schema.processlist
where id <> connection_id() and command <> 'Daemon' and user <> 'system user'
"""

_MYSQL_TRANSACTIONS = "select trx_mysql_thread_id as pid from information_schema.innodb_trx"

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


_MYSQL_RIGHTS = {1044, 1142, 1227}
"""The error codes for a missing privilege."""


def _ask_mysql(connection: Connection) -> Facts:
    is_mariadb = "mariadb" in str(connection.execute(text("select version()")).scalar()).lower()
    blocking: dict[int, list[int]] = {}
    in_transaction: set[int] = set()
    unseen: tuple[str, ...] = ()
    try:
        in_transaction.update(connection.execute(text(_MYSQL_TRANSACTIONS)).scalars())
        for row in connection.execute(text(_MARIADB_BLOCKING if is_mariadb else _MYSQL_BLOCKING)):
            blocking.setdefault(row.pid, []).append(row.blocking)
    except DBAPIError as error:
        if not (error.orig and error.orig.args and error.orig.args[0] in _MYSQL_RIGHTS):
            raise
        unseen = ("what other users' sessions and transactions do: that takes the privilege PROCESS",)
    return Facts(
        product="MariaDB" if is_mariadb else "MySQL",
        limit=int(connection.execute(text("select @@max_connections")).scalar_one()),
        reserved=0,
        sessions=tuple(
            _of_mysql(row, in_transaction, blocking) for row in connection.execute(text(_MYSQL_SESSIONS))
        ),
        kill="KILL {}",
        orphan="a prepared transaction, which has no session: XA RECOVER lists it",
        unseen=unseen,
    )


def _of_mysql(row: Row[Any], in_transaction: set[int], blocking: Mapping[int, list[int]]) -> Session:
    behind = tuple(blocking.get(row.pid, ()))
    seconds = float(row.seconds or 0)
    if behind or "lock" in (row.state or "").lower():
        return Session(row.pid, row.name, "waiting", seconds, behind)
    if row.command == "Sleep":
        is_open = row.pid in in_transaction
        return Session(row.pid, row.name, "idle_in_transaction" if is_open else "idle", seconds)
    return Session(row.pid, row.name, "active", seconds)
