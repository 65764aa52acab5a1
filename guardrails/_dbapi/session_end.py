"""Ends sessions of PostgreSQL, MariaDB and MySQL whose connections ``max_idle_hold`` took back.

Depends on SQL only; must not import a driver. A server may have given the number of a session to another one
since, and another server may answer. So a session is ended only if all that is known of it fits.

Where the server sees the client's own port, that proves whose session it is. Where it does not, a pooler may
be in between that has given the session to another client since, such as pgpool-II, which passes the servers'
numbers on. Then a session is ended only if it is idle and has run nothing since it was taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from guardrails._dbapi.server_sessions import KILL, Execute, is_mariadb, read_processlist
from guardrails._pool.revoked_sessions import RevokedSession
from guardrails._pool.sessions import ServerView, SessionId, own_sessions

__all__ = ["end_sessions"]

_SPARE = 1.0
"""Seconds that the question may be under way."""

_POSTGRES = """
select pg_terminate_backend(a.pid)
from (values {sessions}) revoked (pid, port, youngest, oldest, revoked_at)
join pg_stat_activity a on a.pid = revoked.pid
join pg_stat_activity me on me.pid = pg_backend_pid() and me.pid = {asker} and me.pid <> a.pid
where a.usesysid = me.usesysid and a.datid = me.datid
    and a.client_addr is not distinct from me.client_addr
    and extract(epoch from clock_timestamp() - a.backend_start) between revoked.youngest and revoked.oldest
    and case when me.client_port = {port} and me.client_port <> {unix} then a.client_port = revoked.port
        else a.state like 'idle%' and extract(epoch from a.state_change) < revoked.revoked_at end
"""
"""Compares and ends in one step. Most poolers give their clients numbers of their own: then the asker's is
not the server's, and nothing is ended."""

_UNIX_PORT = -1
"""The client's port of a Unix socket, as PostgreSQL shows it."""

_QUIET = "select id, {} from information_schema.processlist where command = 'Sleep'"
"""The least seconds for which each session can have run nothing. MySQL counts whole seconds."""


def end_sessions(dialect: str, asker: SessionId, execute: Execute, sessions: Sequence[RevokedSession]) -> int:
    """Ends those of the sessions that are left; returns their number.

    Args:
        dialect: SQLAlchemy's name of the dialect: postgresql, mysql or mariadb.
        asker: The connection that asks, as its driver knows it.
        execute: Runs a statement on it.
        sessions: The sessions.
    """
    if not sessions:
        return 0
    return (_end_postgres if dialect == "postgresql" else _end_mysql)(asker, execute, sessions)


def _end_postgres(asker: SessionId, execute: Execute, sessions: Sequence[RevokedSession]) -> int:
    clock = float(execute("select extract(epoch from clock_timestamp())")[0][0])
    rows = []
    for session in sessions:
        youngest, oldest = session.ages(_SPARE)
        port, revoked_at = _port(session.id), clock - session.most_passed
        rows.append(f"({session.id.pid:d}, {port}, {youngest:.3f}, {oldest:.3f}, {revoked_at:.6f})")
    question = _POSTGRES.format(
        sessions=", ".join(rows), asker=f"{asker.pid:d}", port=_port(asker), unix=_UNIX_PORT
    )
    return sum(bool(row[0]) for row in execute(question))


def _port(session: SessionId) -> str:
    return f"{_UNIX_PORT if session.port is None else session.port:d}"


def _end_mysql(asker: SessionId, execute: Execute, sessions: Sequence[RevokedSession]) -> int:
    """MySQL gives no number twice before it restarts, so `KILL` cannot hit a later session."""
    view = read_processlist(execute)
    uptime = float(execute("show global status like 'Uptime'")[0][1])
    quiet: dict[int, float] | None = None  # the ports prove it
    if asker.port is None or asker.port != view.asker.port:
        rows = execute(_QUIET.format("time_ms / 1000" if is_mariadb(execute) else "time - 1"))
        quiet = {pid: float(seconds) for pid, seconds in rows}
    # All are judged before the first is ended: the answers age.
    left = [
        each for each in sessions if each.ages(0.0)[0] <= uptime + 1 and _is_left(each, asker, view, quiet)
    ]
    ended = 0
    for session in left:
        with suppress(Exception):  # it has ended meanwhile
            execute(KILL["mysql"].format(session.id.pid))
            ended += 1
    return ended


def _is_left(
    session: RevokedSession, asker: SessionId, view: ServerView, quiet: Mapping[int, float] | None
) -> bool:
    found = own_sessions({session: session.id}, asker, view).get(session)
    if found is None or found.database != view.asker.database:
        return False
    if quiet is None:
        return True
    # The server does not tell when it was opened, so another server's must have been idle for as long.
    seconds, idle = quiet.get(session.id.pid, 0.0), session.idle + session.passed
    return seconds > session.most_passed and abs(seconds - idle) <= _SPARE + 1
