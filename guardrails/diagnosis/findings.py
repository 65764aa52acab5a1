"""What is wrong with a server's connections. Knows sessions and numbers, and asks nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Facts", "Finding", "Session", "judge", "limit_reached"]

State = Literal["active", "waiting", "idle_in_transaction", "idle"]

_NEARLY = 0.8
"""The share of a server's connections from which on it is told. What is left is gone in one deployment."""

_SHOWN = 5
"""Sessions that are named of each kind."""


@dataclass(frozen=True)
class Session:
    """One connection, as its server sees it.

    Attributes:
        pid: What the server calls it.
        name: The application's name, or the user's where there is none.
        state: What it does; ``"waiting"`` is for a lock.
        seconds: How long it has done so.
        waits_for: The sessions that have what it waits for.
        table: The table it waits for, if the server says so.
    """

    pid: int
    name: str
    state: State
    seconds: float
    waits_for: tuple[int, ...] = ()
    table: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a server said.

    Attributes:
        product: What it is, such as ``"PostgreSQL"``.
        limit: Connections it allows.
        reserved: Of these, what applications cannot have.
        sessions: Those there are, without the one that asked.
    """

    product: str
    limit: int
    reserved: int
    sessions: tuple[Session, ...]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        kind: Which of the things that can be wrong: of a server ``"unreachable" "connections" "locks"
            "idle_in_transaction" "slow" "memory" "loading"``; of a service ``"unguarded" "no_middleware"
            "unbounded" "ladder" "threads" "budget"``.
        what: One line that says it.
        details: Further lines.
        advice: What to do about it.
    """

    kind: str
    what: str
    details: tuple[str, ...]
    advice: str


def judge(facts: Facts, slow: float) -> list[Finding]:
    """What is wrong, the most urgent first.

    Args:
        facts: What the server said.
        slow: Seconds from which on a statement, or a transaction in which nothing happens, is long.
    """
    found = [*_locks(facts), *_idle(facts, slow), *_slow(facts, slow)]
    return [*_connections(facts), *found]


def limit_reached(used: int, limit: int, details: Iterable[str] = ()) -> Iterator[Finding]:
    """Tells if a server has few connections left, or none."""
    if used >= limit * _NEARLY:
        yield Finding(
            "connections",
            f"connections in use: {used} of {limit}",
            tuple(details),
            "make the pools smaller (guardrails size), run fewer processes, or put a pooler in between",
        )


def _connections(facts: Facts) -> Iterator[Finding]:
    names = Counter(session.name for session in facts.sessions)
    details = (f"{count} x {name!a}" for name, count in names.most_common(_SHOWN))
    return limit_reached(len(facts.sessions), facts.limit - facts.reserved, details)


def _locks(facts: Facts) -> Iterator[Finding]:
    by_pid = {session.pid: session for session in facts.sessions}
    waiting = [session for session in facts.sessions if session.waits_for or session.state == "waiting"]
    if not waiting:
        return
    # Who is waited for and waits for nobody has what all others are after.
    roots = Counter(pid for session in waiting for pid in _roots(session, by_pid))
    details = [_blocker(pid, count, by_pid) for pid, count in roots.most_common(_SHOWN)]
    tables = sorted({session.table for session in waiting if session.table})
    if tables:
        details.append("for " + ", ".join(f"{table!a}" for table in tables[:_SHOWN]))
    longest = max(session.seconds for session in waiting)
    yield Finding(
        "locks",
        f"sessions waiting for locks: {len(waiting)}, for up to {longest:.0f} s",
        tuple(details),
        "end the transaction that holds them; a migration should set a lock_timeout",
    )


def _roots(session: Session, by_pid: dict[int, Session]) -> set[int]:
    roots, seen, ahead = set[int](), {session.pid}, list(session.waits_for)
    while ahead:
        pid = ahead.pop()
        if pid in seen:
            continue  # a deadlock, which the server will find out about
        seen.add(pid)
        further = by_pid[pid].waits_for if pid in by_pid else ()
        ahead.extend(further)
        if not further:
            roots.add(pid)
    return roots


def _blocker(pid: int, count: int, by_pid: dict[int, Session]) -> str:
    session = by_pid.get(pid)
    if session is None:
        return f"{count} behind session {pid}"
    state = session.state.replace("_", " ")
    return f"{count} behind session {pid} of {session.name!a}, {state} for {session.seconds:.0f} s"


def _idle(facts: Facts, slow: float) -> Iterator[Finding]:
    idle = _longest(facts, "idle_in_transaction", slow)
    if idle:
        yield Finding(
            "idle_in_transaction",
            f"open transactions in which nothing has happened for {slow:g} s or more: {len(idle)}",
            tuple(_one(session) for session in idle[:_SHOWN]),
            "the application holds connections while it does something else: pool_status(engine) says where",
        )


def _slow(facts: Facts, slow: float) -> Iterator[Finding]:
    busy = _longest(facts, "active", slow)
    if busy:
        yield Finding(
            "slow",
            f"statements running for {slow:g} s or more: {len(busy)}",
            tuple(_one(session) for session in busy[:_SHOWN]),
            "look at their plans; a timeout of the guard ends them",
        )


def _longest(facts: Facts, state: State, least: float) -> list[Session]:
    found = [session for session in facts.sessions if session.state == state and session.seconds >= least]
    return sorted(found, key=lambda session: -session.seconds)


def _one(session: Session) -> str:
    return f"session {session.pid} of {session.name!a}, {session.seconds:.0f} s"
