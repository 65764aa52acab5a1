"""Reads the sessions of PostgreSQL, MariaDB and MySQL.

Depends on SQL only; must not import a driver or judge. It reads the text of a statement only when it
is told to, because a text may hold values of users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from guardrails._dbapi.metadata_locks import read_metadata_waits
from guardrails._pool.sessions import ServerView, Session, State

__all__ = [
    "KILL",
    "Execute",
    "is_mariadb",
    "read_mysql",
    "read_postgres",
    "read_processlist",
    "read_sessions",
]

KILL = {
    "postgresql": "SELECT pg_terminate_backend({})",
    "mysql": "KILL {}",
    "mariadb": "KILL {}",
}
"""The statement that ends a session, by SQLAlchemy's name of the dialect."""

Execute = Callable[[str], Sequence[Sequence[Any]]]
"""Runs a statement without parameters and returns all rows."""

_POSTGRES = """
select pid, coalesce(application_name, ''), usename, datname, host(client_addr), client_port,
    state, query = '<insufficient privilege>',
    coalesce(wait_event_type = 'Lock' or l.locked is not null, false),
    extract(epoch from clock_timestamp() - coalesce(state_change, backend_start))::float8,
    extract(epoch from clock_timestamp() - coalesce({since}query_start, backend_start))::float8,
    extract(epoch from clock_timestamp() - backend_start)::float8,
    case when wait_event_type = 'Lock' or l.locked is not null then pg_blocking_pids(pid) end,
    l.relation, {statement}, pid = pg_backend_pid()
from pg_stat_activity a
left join lateral (
    select l.pid as locked, case when d.datname is not null then l.relation::regclass::text end as relation
        {waitstart}
    from pg_locks l left join pg_database d on d.oid = l.database and d.datname = current_database()
    where l.pid = a.pid and not l.granted limit 1
) l on true
where usesysid is not null and coalesce(backend_type, 'client backend') = 'client backend'
"""
"""All users may see waits for locks and the origin of a session; the rest needs the role pg_monitor."""

_WAITSTART = 140_000
"""The first version of PostgreSQL whose pg_locks has the start of a wait."""


def read_postgres(execute: Execute, *, statements: bool = False) -> ServerView:
    """Reads the sessions of a PostgreSQL server.

    Args:
        execute: Runs a statement on a connection to the server.
        statements: Whether to read the texts of statements.
    """
    version = int(execute("select current_setting('server_version_num')")[0][0])
    question = _POSTGRES.format(
        since="l.waitstart, " if version >= _WAITSTART else "",
        waitstart=", l.waitstart" if version >= _WAITSTART else "",
        statement="query" if statements else "null::text",
    )
    return _view((bool(row[-1]), _of_postgres(row)) for row in execute(question))


def _view(rows: Iterable[tuple[bool, Session]], *, complete: bool = True) -> ServerView:
    """Makes a view of sessions, each with True for the one that asked."""
    rows = list(rows)
    asker = next(session for is_own, session in rows if is_own)
    return ServerView(asker, tuple(session for is_own, session in rows if not is_own), complete)


def _of_postgres(row: Sequence[Any]) -> Session:
    pid, application, user, database, client, port, said, hidden = row[:8]
    waiting, in_state, in_query, age, blocking, relation, statement = row[8:15]
    state: State = "idle"
    seconds: float | None = in_state
    if waiting:
        state, seconds = "waiting", in_query
    elif hidden:
        state, seconds = "unseen", 0.0
    elif (said or "").startswith("idle in transaction"):
        state = "idle_in_transaction"
    elif said in {"active", "fastpath function call"}:
        state, seconds = "active", in_query
    return Session(
        pid=pid,
        name=application or user or "",
        state=state,
        seconds=seconds or 0.0,
        waits_for=tuple(blocking or ()),
        table=relation,
        application=application,
        user=user or "",
        database=database,
        client=client,
        port=None if port == -1 else port,  # a Unix socket
        age=age,
        statement=statement,
    )


_MYSQL = """
select id, user, db, host, command, time, state, {statement}, id = connection_id()
from information_schema.processlist where command <> 'Daemon' and user <> 'system user'
"""

_TRANSACTIONS = "select trx_mysql_thread_id from information_schema.innodb_trx order by trx_started"

_MARIADB_BLOCKING = """
select waiting.trx_mysql_thread_id, blocking.trx_mysql_thread_id
from information_schema.innodb_lock_waits w
join information_schema.innodb_trx waiting on waiting.trx_id = w.requesting_trx_id
join information_schema.innodb_trx blocking on blocking.trx_id = w.blocking_trx_id
"""

_MYSQL_BLOCKING = """
select waiting.processlist_id, blocking.processlist_id
from performance_schema.data_lock_waits w
join performance_schema.threads waiting on waiting.thread_id = w.requesting_thread_id
join performance_schema.threads blocking on blocking.thread_id = w.blocking_thread_id
"""

_DENIED = {1044, 1142, 1227}
"""The error codes for a missing privilege."""


def is_mariadb(execute: Execute) -> bool:
    """Returns True for MariaDB, False for MySQL."""
    return "mariadb" in str(execute("select version()")[0][0]).lower()


def read_mysql(execute: Execute, *, statements: bool = False) -> ServerView:
    """Reads the sessions of a MariaDB or MySQL server; see `read_postgres`."""
    blocking: dict[int, list[int]] = {}
    transactions: list[int] = []
    complete, mariadb = True, is_mariadb(execute)
    try:
        transactions += (row[0] for row in execute(_TRANSACTIONS))
        for waiting, holder in execute(_MARIADB_BLOCKING if mariadb else _MYSQL_BLOCKING):
            blocking.setdefault(waiting, []).append(holder)
    except Exception as error:
        original = getattr(error, "orig", None) or error
        if not (original.args and original.args[0] in _DENIED):
            raise
        complete = False
    rows = execute(_MYSQL.format(statement="info" if statements else "null"))
    sessions = [_of_mysql(row, transactions, blocking) for row in rows]
    if any(each.state == "waiting" and not each.waits_for for each in sessions):
        sessions = _with_metadata_locks(
            execute, sessions, [row[6] for row in rows], transactions, mariadb=mariadb
        )
    own = [bool(row[-1]) for row in rows]
    return _view(zip(own, sessions, strict=True), complete=complete)


def read_processlist(execute: Execute) -> ServerView:
    """Reads the sessions of a MariaDB or MySQL server, without their transactions and locks."""
    rows = execute(_MYSQL.format(statement="null"))
    return _view(((bool(row[-1]), _of_mysql(row, (), {})) for row in rows), complete=False)


def _with_metadata_locks(
    execute: Execute, sessions: list[Session], said: list[Any], transactions: list[int], *, mariadb: bool
) -> list[Session]:
    """Adds who holds the metadata locks, and the likely holder where the server does not tell.

    That is the oldest open transaction that does not wait itself, in the same database if there is one. A
    transaction keeps the metadata locks of all tables that it has read.

    Args:
        execute: Runs a statement on the server.
        sessions: The sessions.
        said: The state of each in the server's words.
        transactions: The numbers of the sessions with an open transaction, the oldest first.
        mariadb: False for MySQL.
    """
    waits = read_metadata_waits(execute, mariadb=mariadb)
    by_pid = {each.pid: each for each in sessions}
    open_ones = [by_pid[pid] for pid in transactions if pid in by_pid and by_pid[pid].state != "waiting"]
    found = []
    for session, state in zip(sessions, said, strict=True):
        wait = waits.get(session.pid)
        if session.state != "waiting" or session.waits_for:
            found.append(session)
        elif wait is not None and wait.blockers:
            found.append(replace(session, waits_for=wait.blockers, table=wait.table))
        elif open_ones and "metadata lock" in state:
            likely = next((each for each in open_ones if each.database == session.database), open_ones[0])
            found.append(replace(session, waits_for=(likely.pid,), guessed=True))
        else:
            found.append(session)
    return found


def _of_mysql(
    row: Sequence[Any], in_transaction: Sequence[int], blocking: Mapping[int, list[int]]
) -> Session:
    pid, user, database, host, command, time, said, statement = row[:8]
    behind = tuple(dict.fromkeys(blocking.get(pid, ())))
    state: State = "active"
    if behind or "lock" in (said or "").lower():
        state = "waiting"
    elif command == "Sleep":
        state = "idle_in_transaction" if pid in in_transaction else "idle"
    client, colon, port = (host or "").rpartition(":")
    return Session(
        pid=pid,
        name=user or "",
        state=state,
        seconds=float(time or 0),
        waits_for=behind,
        user=user or "",
        database=database,
        client=client if colon else None,
        port=int(port) if colon and port.isdigit() else None,
        statement=statement,
    )


def read_sessions(dialect: str, execute: Execute) -> ServerView:
    """Reads the sessions of a server of one of SQLAlchemy's dialects: postgresql, mysql or mariadb."""
    return (read_postgres if dialect == "postgresql" else read_mysql)(execute)
