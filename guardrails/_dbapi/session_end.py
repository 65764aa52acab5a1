"""Ends sessions of PostgreSQL, MariaDB and MySQL whose connections ``max_idle_hold`` took back.

Depends on SQL only; must not import a driver. A server may have given the number of a session to another one
since, and another server may answer. So a session is ended only if all that is known of it fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from guardrails._dbapi.server_sessions import KILL, Execute, read_processlist
from guardrails._pool.revoked_sessions import RevokedSession
from guardrails._pool.sessions import ServerView, SessionId, own_sessions

__all__ = ["end_sessions"]

_SPARE = 1.0
"""Seconds that the question may be under way."""

_POSTGRES = """
select pg_terminate_backend(a.pid)
from (values {sessions}) revoked (pid, port, youngest, oldest)
join pg_stat_activity a on a.pid = revoked.pid
join pg_stat_activity me on me.pid = pg_backend_pid() and me.pid = {asker}
where a.usesysid = me.usesysid and a.datid = me.datid
    and a.client_addr is not distinct from me.client_addr
    and (me.client_port is distinct from {port} or a.client_port is not distinct from revoked.port)
    and extract(epoch from clock_timestamp() - a.backend_start) between revoked.youngest and revoked.oldest
"""
"""Compares and ends in one step. A pooler gives its clients numbers of its own: then the asker's number is
not the server's, and nothing is ended. Behind a proxy the server sees other ports than the clients."""

_UNIX_PORT = -1
"""The client's port of a Unix socket, as PostgreSQL shows it."""


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
    rows = []
    for session in sessions:
        youngest, oldest = session.ages(_SPARE)
        rows.append(f"({session.id.pid:d}, {_port(session.id)}, {youngest:.3f}, {oldest:.3f})")
    question = _POSTGRES.format(sessions=", ".join(rows), asker=f"{asker.pid:d}", port=_port(asker))
    return sum(bool(row[0]) for row in execute(question))


def _port(session: SessionId) -> str:
    return f"{_UNIX_PORT if session.port is None else session.port:d}"


def _end_mysql(asker: SessionId, execute: Execute, sessions: Sequence[RevokedSession]) -> int:
    """MySQL gives no number twice before it restarts, so `KILL` cannot hit a later session."""
    view = read_processlist(execute)
    uptime = float(execute("show global status like 'Uptime'")[0][1])
    ended = 0
    for session in sessions:
        if session.ages(0.0)[0] <= uptime + 1 and _is_left(session, asker, view):
            with suppress(Exception):  # it has ended meanwhile
                execute(KILL["mysql"].format(session.id.pid))
                ended += 1
    return ended


def _is_left(session: RevokedSession, asker: SessionId, view: ServerView) -> bool:
    found = own_sessions({session: session.id}, asker, view).get(session)
    if found is None or found.database != view.asker.database:
        return False
    if asker.port is not None and asker.port == view.asker.port:
        return True  # and so is the session's
    # The server does not tell when it was opened, but for how many whole seconds it has been idle.
    return found.state == "idle" and abs(found.seconds - session.idle - session.passed) <= _SPARE + 1
