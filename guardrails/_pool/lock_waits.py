"""The connections of a pool that wait for locks, and the sessions that hold these locks.

Depends on sessions; must not import a pool, a driver or a guard. No text holds SQL, a user, a host or an
address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guardrails._pool.sessions import Session, roots

__all__ = ["UNKNOWN_LINE", "Blocker", "CodeLocation", "LockWait", "Waiting", "group", "waiting_of"]

UNKNOWN_LINE = "an unknown line"
"""Shown where only frameworks and servers have asked for a connection."""

_SHOWN = 3
"""Most sessions named in one line."""


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """The code that holds a connection.

    Attributes:
        where: The lines of the application that asked for it, the innermost first.
        route: The template of the route it serves, or None.
    """

    where: tuple[str, ...]
    route: str | None

    def __str__(self) -> str:
        return ", ".join(filter(None, [*self.where[:1], self.route])) or UNKNOWN_LINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """A session that holds a lock and itself waits for none.

    Attributes:
        pid: The server's number of it; 0 is a prepared transaction, which has no session.
        application: The name that its application gave itself; empty without one.
        state: Its activity: ``"active" "idle_in_transaction" "idle"``, or ``"unseen"`` if this user may not
            see it.
        seconds: Time in this state.
        where: The lines of this process's own code that hold its connection; empty if another process does.
        route: Their route, or None.
        likely: True if the server does not tell who holds the lock, and this session is the likely one.
    """

    pid: int
    application: str
    state: str
    seconds: float
    where: tuple[str, ...] = ()
    route: str | None = None
    likely: bool = False

    def __str__(self) -> str:
        if not self.pid:
            return "a prepared transaction, which has no session"
        words = f"{'likely ' if self.likely else ''}session {self.pid}"
        if self.where:
            words += f", held by {CodeLocation(self.where, self.route)}"
        elif self.application:
            words += f" of {self.application!a}"
        if self.state == "unseen":
            return words
        return f"{words}, {self.state.replace('_', ' ')} for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockWait:
    """Connections taken at one line that wait for the locks of the same sessions.

    Attributes:
        where: The lines of the application that asked for the connections, the innermost first.
        route: The template of their route, or None.
        pids: The server's numbers of their sessions.
        seconds: The longest of their waits.
        table: The table they wait for; None if the server does not say.
        blockers: The sessions that hold the locks; empty if the server does not say.
        asked: Seconds since the server was asked.
    """

    where: tuple[str, ...]
    route: str | None
    pids: tuple[int, ...]
    seconds: float
    table: str | None
    blockers: tuple[Blocker, ...]
    asked: float

    def __str__(self) -> str:
        pids = ", ".join(map(str, self.pids[:_SHOWN]))
        if len(self.pids) > _SHOWN:
            pids += f" and {len(self.pids) - _SHOWN} more"
        table = f" on {self.table!a}" if self.table else ""
        held = " and ".join(map(str, self.blockers[:_SHOWN])) or "a session that the server does not name"
        one = len(self.pids) == 1
        return (
            f"{len(self.pids)} x {CodeLocation(self.where, self.route)} (session{'' if one else 's'} {pids}) "
            f"wait{'s' if one else ''} for a lock{table} "
            f"for up to {self.seconds:.1f} s <- {held}"
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """One connection of this process that waits for a lock.

    Attributes:
        location: The code that holds it.
        session: Its session.
        blockers: The sessions that hold the lock.
    """

    location: CodeLocation
    session: Session
    blockers: tuple[Blocker, ...]


def waiting_of(own: Mapping[int, CodeLocation], sessions: Iterable[Session]) -> dict[int, Waiting]:
    """Returns which of a process's sessions wait for locks, and for whom in the end.

    Args:
        own: The code that holds each session of the process, by the server's numbers.
        sessions: All sessions of the server.
    """
    by_pid = {session.pid: session for session in sessions}
    return {
        pid: Waiting(
            location,
            by_pid[pid],
            tuple(
                _blocker(root, by_pid.get(root), own.get(root), likely=likely)
                for root, likely in sorted(roots(by_pid[pid], by_pid).items())
            ),
        )
        for pid, location in own.items()
        if pid in by_pid and by_pid[pid].state == "waiting"
    }


def _blocker(pid: int, session: Session | None, location: CodeLocation | None, *, likely: bool) -> Blocker:
    return Blocker(
        pid=pid,
        application="" if session is None else session.application,
        state="unseen" if session is None else session.state,
        seconds=0.0 if session is None else session.seconds,
        where=() if location is None else location.where,
        route=None if location is None else location.route,
        likely=likely,
    )


def group(waiting: Iterable[Waiting], asked: float) -> tuple[LockWait, ...]:
    """Groups connections by line, route and blockers, the largest group first.

    Args:
        waiting: The connections.
        asked: Seconds since the server was asked.
    """
    alike: dict[object, list[Waiting]] = {}
    for each in waiting:
        key = (each.location.where[:1], each.location.route, tuple(blocker.pid for blocker in each.blockers))
        alike.setdefault(key, []).append(each)
    return tuple(
        LockWait(
            where=members[0].location.where,
            route=members[0].location.route,
            pids=tuple(sorted(each.session.pid for each in members)),
            seconds=max(each.session.seconds for each in members),
            table=next((each.session.table for each in members if each.session.table), None),
            blockers=members[0].blockers,
            asked=asked,
        )
        for members in sorted(alike.values(), key=len, reverse=True)
    )
