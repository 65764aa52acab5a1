"""Joins the status page of a service with the sessions of its server.

Depends on the format of ``/status.json`` and on sessions; must not read the page or ask a server.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from guardrails._pool.holders import Holder, advice, by_line
from guardrails._pool.lock_waits import CodeLocation
from guardrails._pool.sessions import Session
from guardrails.diagnosis.findings import Finding

__all__ = ["Pool", "of_other_processes", "past_locks", "pools_of", "unjoined"]

_SHOWN = 5
"""Most lines of code named in one finding."""

_PAST = 60.0
"""Seconds for which a wait for a lock that is over is shown: its pool asks the server once in 30 s."""


class Pool:
    """One pool on a status page.

    Args:
        process: The process that made the page, such as ``"4711 on web-1"``.
        page: The part of the page about the pool's guard.

    Raises:
        KeyError, TypeError, ValueError: The page has another format.
    """

    def __init__(self, process: str, page: Mapping[str, Any]) -> None:
        self._where = f"pool {str(page['name'])!a} of process {process}"
        self._out = f"{int(page['in_use'])} of {int(page['max_concurrent_calls'])} connections checked out"
        self._waiting = int(page["waiting"])
        self._cause = page["cause"]
        self._advice = advice(self._cause, str(page["pool"]["system"]))
        self.open = int(page["pool"]["open"])
        self.holders = tuple(_holder(each) for each in page["holders"])

    def locations(self, sessions: Iterable[Session]) -> dict[int, CodeLocation]:
        """Returns the code that holds each session of this pool, by the server's number of the session.

        A session counts only if its number and its client's port are those of the pool's connection. So none
        counts behind a pooler, or of another server.
        """
        by_pid = {session.pid: session for session in sessions}
        return {
            holder.pid: CodeLocation(holder.where, holder.route)
            for holder in self.holders
            if holder.pid is not None and holder.pid in by_pid and by_pid[holder.pid].port == holder.port
        }

    def findings(self) -> Iterator[Finding]:
        """Yields a finding if the pool has no connection left."""
        if self._cause != "free":
            waiting = f", {self._waiting} callers waiting" if self._waiting else ""
            yield Finding(
                "pool",
                f"{self._where}: {self._out}{waiting}",
                tuple(line.strip() for line in by_line(self.holders)[:_SHOWN]),
                self._advice,
            )


def pools_of(page: Mapping[str, Any]) -> list[Pool]:
    """Returns the pools on a status page.

    Raises:
        KeyError, TypeError, ValueError: The page has another format.
    """
    process = f"{page['pid']} on {str(page['host'])!a}" if "pid" in page else "unknown"
    return [Pool(process, guard) for guard in page["guards"] if "holders" in guard]


def past_locks(page: Mapping[str, Any], now: float) -> Iterator[Finding]:
    """Yields the last waits for locks that the pools of a page have found, if that was a short time ago.

    Args:
        page: The page.
        now: The time of day, as `time.time` has it.

    Raises:
        KeyError, TypeError, ValueError: The page has another format.
    """
    last = {each["guard"]: each for each in page.get("events", ()) if each["event"] == "lock_waits"}
    for name, each in last.items():
        age = now - float(each["at"])
        if age <= _PAST:
            what = f"pool {str(name)!a} waited for locks {max(0.0, age):.0f} s ago, and nothing does now"
            yield Finding(
                "past_locks",
                what,
                (_printable(each["words"]),),
                "its circuit may be open: if the session is still there, it is the cause",
            )


def unjoined(pools: Iterable[Pool], joined: int, *, hidden: bool) -> Iterator[str]:
    """Yields a line if connections of the pools are not among the sessions of the server.

    Args:
        pools: The pools.
        joined: Number of connections that are.
        hidden: True if sessions of others are hidden from the user.
    """
    known = sum(holder.pid is not None for pool in pools for holder in pool.holders)
    if known > joined:
        reasons = ["ended meanwhile", "on another server"]
        reasons += [] if joined else ["behind a pooler or proxy"]
        reasons += ["hidden from this user (PostgreSQL: pg_monitor)"] if hidden else []
        yield (
            f"which sessions {known - joined} of {known} connections of the service have: "
            f"{', '.join(reasons[:-1])} or {reasons[-1]}"
        )


def of_other_processes(
    pools: Iterable[Pool], sessions: Sequence[Session], joined: Container[int]
) -> Iterator[str]:
    """Yields a line if the server has more sessions of the service than the processes that were asked.

    The server does not tell the processes of a service apart. Sessions with the user, the application's name
    and the database of one that was joined are the service's.

    Args:
        pools: The pools.
        sessions: The sessions of the server.
        joined: The server's numbers of the sessions that are connections of these pools.
    """
    ours = {_name_of(each) for each in sessions if each.pid in joined}
    found = sum(_name_of(each) in ours for each in sessions)
    known = sum(pool.open for pool in pools)
    if found > known:
        yield (
            f"which code has {found - known} of the {found} sessions with the service's user and "
            "application: those of other processes (--status for each), or of pools without a guard"
        )


def _name_of(session: Session) -> tuple[str, str, str | None]:
    return session.user, session.application, session.database


def _holder(shown: Mapping[str, Any]) -> Holder:
    return Holder(
        seconds=float(shown["seconds"]),
        doing=shown["doing"],
        where=tuple(map(_printable, shown["where"])),
        now=tuple(map(_printable, shown["now"])),
        route=None if shown["route"] is None else _printable(shown["route"]),
        compartment=None,
        pid=shown["pid"],
        port=shown["port"],
    )


def _printable(text: object) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(text))
