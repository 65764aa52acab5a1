"""Sessions of a database server: who waits for whom, and which of them belong to this process.

Depends on the standard library only; must not import a driver or connect to a server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

__all__ = ["ServerView", "Session", "SessionId", "State", "count_roots", "own_sessions", "roots"]

State = Literal["active", "waiting", "idle_in_transaction", "idle", "unseen"]

K = TypeVar("K", bound=Hashable)


class SessionId(NamedTuple):
    """The identity of a connection, as its driver knows it without a round trip.

    Attributes:
        pid: The number that the server gave the session when it was opened.
        port: The client's port; None for a Unix socket.
    """

    pid: int
    port: int | None


@dataclass(frozen=True)
class Session:
    """One connection, as its server sees it.

    Attributes:
        pid: The server's number of it.
        name: The application's name, or the user's where there is none.
        state: Its activity; ``"waiting"`` is for a lock, ``"unseen"`` is hidden from this user.
        seconds: Time in this state.
        waits_for: The sessions that hold the lock; 0 stands for a prepared transaction, which has no session.
        table: The table it waits for, if the server reports it.
        application: The name that the application gave itself; empty without one.
        user: The role that logged in.
        database: Its database, or None.
        client: The client's address, without the port; None if it is hidden or a Unix socket.
        port: The client's port, as the server sees it; None likewise.
        age: Seconds since it was opened, or None if the server does not report it.
        statement: The text of its statement; None unless it was asked for.
        guessed: True if the server does not tell for whom it waits, and ``waits_for`` is only likely.
    """

    pid: int
    name: str
    state: State
    seconds: float
    waits_for: tuple[int, ...] = ()
    table: str | None = None
    application: str = ""
    user: str = ""
    database: str | None = None
    client: str | None = None
    port: int | None = None
    age: float | None = None
    statement: str | None = None
    guessed: bool = False


@dataclass(frozen=True)
class ServerView:
    """All sessions of a server at one moment.

    Attributes:
        asker: The session that asked.
        sessions: All other sessions of clients.
        complete: False if the user may not see who waits for whom.
    """

    asker: Session
    sessions: tuple[Session, ...]
    complete: bool = True


def roots(session: Session, by_pid: Mapping[int, Session]) -> dict[int, bool]:
    """Returns the sessions at the end of the chains in which a session waits. They wait for none.

    Each has True if it is only likely that the chain leads to it.
    """
    found, seen = dict[int, bool](), {session.pid}
    ahead = [(pid, session.guessed) for pid in session.waits_for]
    while ahead:
        pid, guessed = ahead.pop()
        if pid in seen:
            continue  # a deadlock, which the server detects
        seen.add(pid)
        further = by_pid.get(pid)
        if further is None or not further.waits_for:
            found[pid] = guessed
        else:
            ahead.extend((each, guessed or further.guessed) for each in further.waits_for)
    return found


def count_roots(sessions: Iterable[Session]) -> Counter[tuple[int, bool]]:
    """Counts the waiters of each session that others wait for and that itself waits for none; see `roots`."""
    by_pid = {session.pid: session for session in sessions}
    return Counter(root for session in by_pid.values() for root in roots(session, by_pid).items())


def own_sessions(held: Mapping[K, SessionId], asker: SessionId, view: ServerView) -> dict[K, Session]:
    """Finds the sessions of this process's connections, and leaves out those that are not certain.

    A pooler gives its clients numbers of its own: then the asker's two numbers differ, and no session can be
    found. Where the server sees the asker's real port, the port of each session must match, too. Where it
    does not, as behind a proxy, another server may have answered: then every connection must be there.

    Args:
        held: The connections.
        asker: The connection that asked.
        view: What it was told.
    """
    if asker.pid != view.asker.pid:
        return {}
    same_port = asker.port == view.asker.port
    by_pid = {session.pid: session for session in view.sessions}
    found: dict[K, Session] = {}
    for key, known in held.items():
        session = by_pid.get(known.pid)
        if session is None or session.client != view.asker.client or session.user != view.asker.user:
            continue
        if not same_port or session.port == known.port:
            found[key] = session
    return found if same_port or len(found) == len(held) else {}
