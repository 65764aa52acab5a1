"""Judges the sessions and connections of a server. Depends on sessions; must not connect to a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from guardrails._dbapi.server_sessions import KILL
from guardrails._pool.lock_waits import CodeLocation, group, waiting_of
from guardrails._pool.sessions import Session, State, count_roots

__all__ = ["Facts", "Finding", "Prepared", "Session", "judge", "limit_reached"]

_NEARLY = 0.8
"""The share of its connections from which a server is reported. One deployment may use up the rest."""

_SHOWN = 5
"""Most sessions named in one finding."""


@dataclass(frozen=True)
class Prepared:
    """A prepared transaction (the first half of a two-phase commit), which lives on without a session.

    Attributes:
        name: Its global identifier.
        owner: The user that prepared it.
        database: The database in which it can be ended.
        seconds: Its age.
        blocks: True if a session waits for a lock of it.
    """

    name: str
    owner: str
    database: str
    seconds: float
    blocks: bool


@dataclass(frozen=True)
class Facts:
    """The facts that a server reported.

    Attributes:
        product: Its name, such as ``"PostgreSQL"``.
        limit: Connections it allows.
        reserved: Of these, connections that applications cannot get.
        sessions: All sessions but the one that asked.
        prepared: Prepared transactions that have not been ended.
        kill: The command that ends a session, with ``{}`` for its number.
        orphan: The name of a transaction without a session, for which others wait.
        unseen: Facts hidden from this user, with the right that they require.
        aborted: MySQL's and MariaDB's counters of connections that ended badly.
        user: The role that asked.
    """

    product: str
    limit: int
    reserved: int
    sessions: tuple[Session, ...]
    prepared: tuple[Prepared, ...] = ()
    kill: str = KILL["postgresql"]
    orphan: str = "a prepared transaction, which has no session"
    unseen: tuple[str, ...] = ()
    aborted: tuple[tuple[str, int], ...] = ()
    user: str = ""


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        kind: Of a server ``"unreachable" "denied"
            "connections" "locks" "prepared" "idle_in_transaction" "slow" "memory" "loading"``; of a service's
            status page ``"pool" "past_locks" "status_page"``; of a service ``"nothing_made" "unguarded"
            "no_middleware" "middleware_order" "unbounded" "unlimited" "null_pool" "circuit" "variable"
            "stale" "ladder" "threads" "budget" "backstop" "shutdown"``; of a fleet ``"fleet"``.
        what: The fault in one line.
        details: Further lines.
        advice: The remedy.
    """

    kind: str
    what: str
    details: tuple[str, ...]
    advice: str


def judge(facts: Facts, slow: float, own: Mapping[int, CodeLocation] | None = None) -> list[Finding]:
    """Returns the faults, the most urgent first.

    Args:
        facts: The facts that the server reported.
        slow: Seconds from which a statement, or an idle transaction, is long.
        own: The code that holds the sessions of a service, by the server's numbers, where it is known.
    """
    own = own or {}
    roots = count_roots(facts.sessions)
    return [
        *_connections(facts),
        *_locks(facts, roots, own),
        *_prepared(facts, slow),
        *_idle(facts, slow, roots, own),
        *_slow(facts, slow, own),
    ]


def limit_reached(used: int, limit: int, details: Iterable[str] = ()) -> Iterator[Finding]:
    """Yields a finding if a server has few connections left, or none."""
    if used >= limit * _NEARLY:
        yield Finding(
            "connections",
            f"connections in use: {used} of {limit}",
            tuple(details),
            "make the pools smaller (guardrails size), run fewer processes, or put a pooler in between",
        )


def _connections(facts: Facts) -> Iterator[Finding]:
    names = Counter(session.name for session in facts.sessions)
    hosts = Counter(name for name, client in {(each.name, each.client) for each in facts.sessions} if client)
    details = (
        f"{count} x {name!a}" + (f", from {hosts[name]} addresses" if hosts[name] > 1 else "")
        for name, count in names.most_common(_SHOWN)
    )
    return limit_reached(len(facts.sessions), facts.limit - facts.reserved, details)


def _waiting(facts: Facts) -> list[Session]:
    return [session for session in facts.sessions if session.waits_for or session.state == "waiting"]


def _locks(
    facts: Facts, roots: Counter[tuple[int, bool]], own: Mapping[int, CodeLocation]
) -> Iterator[Finding]:
    waiting = _waiting(facts)
    if not waiting:
        return
    by_pid = {session.pid: session for session in facts.sessions}
    shown = roots.most_common(_SHOWN)
    details = [
        f"{count} {'likely ' if likely else ''}behind {_blocker(pid, by_pid)}{_held(pid, own)}"
        if pid
        else f"{count} behind {facts.orphan}"
        for (pid, likely), count in shown
    ]
    tables = sorted({session.table for session in waiting if session.table})
    if tables:
        details.append("for " + ", ".join(f"{table!a}" for table in tables[:_SHOWN]))
    details += [str(wait) for wait in group(waiting_of(own, facts.sessions).values(), 0.0)[:_SHOWN]]
    kills = ", ".join(facts.kill.format(pid) for (pid, likely), _ in shown if pid and not likely)
    longest = max(session.seconds for session in waiting)
    yield Finding(
        "locks",
        f"sessions waiting for locks: {len(waiting)}, for up to {longest:.0f} s",
        tuple(details),
        "if the locks do not go away by themselves, end the transaction that holds them"
        + (f": {kills}" if kills else "")
        + "; a migration should set a lock_timeout",
    )


def _blocker(pid: int, by_pid: dict[int, Session]) -> str:
    session = by_pid.get(pid)
    if session is None:
        return f"session {pid}"
    if session.state == "unseen":
        return f"session {pid} of {session.name!a}"
    state = session.state.replace("_", " ")
    return f"session {pid} of {session.name!a}, {state} for {session.seconds:.0f} s"


def _held(pid: int, own: Mapping[int, CodeLocation]) -> str:
    return f", held by {own[pid]}" if pid in own else ""


def _prepared(facts: Facts, slow: float) -> Iterator[Finding]:
    forgotten = sorted(
        (each for each in facts.prepared if each.blocks or each.seconds >= slow),
        key=lambda each: (not each.blocks, -each.seconds),
    )
    if forgotten:
        yield Finding(
            "prepared",
            f"prepared transactions that have not been ended: {len(forgotten)}",
            tuple(_forgotten(each) for each in forgotten[:_SHOWN]),
            "they keep their locks, over restarts too, and stop the vacuum: ask their coordinator how they "
            "ended, then COMMIT PREPARED or ROLLBACK PREPARED each by its name, in its database",
        )


def _forgotten(each: Prepared) -> str:
    locks = ", others wait for its locks" if each.blocks else ""
    return f"{each.name!a} in {each.database!a}, by {each.owner!a} {each.seconds:.0f} s ago{locks}"


def _idle(
    facts: Facts, slow: float, roots: Counter[tuple[int, bool]], own: Mapping[int, CodeLocation]
) -> Iterator[Finding]:
    idle = _longest(facts, "idle_in_transaction", slow)
    if not idle:
        return
    # A session already named as the blocker needs no second explanation.
    named = {pid: ", which holds the locks above" for pid, likely in roots if not likely}
    named = {pid: ", which likely holds the locks above" for pid, _ in roots} | named
    yield Finding(
        "idle_in_transaction",
        f"open transactions in which nothing has happened for {slow:g} s or more: {len(idle)}",
        tuple(
            _one(session) + _held(session.pid, own) + named.get(session.pid, "") for session in idle[:_SHOWN]
        ),
        "see the locks: its client has not ended what it began"
        if all(session.pid in named for session in idle)
        else "their clients do something else meanwhile: in a service, pool_status(engine) says where",
    )


def _slow(facts: Facts, slow: float, own: Mapping[int, CodeLocation]) -> Iterator[Finding]:
    busy = _longest(facts, "active", slow)
    if busy:
        yield Finding(
            "slow",
            f"statements running for {slow:g} s or more: {len(busy)}",
            tuple(_one(session) + _held(session.pid, own) for session in busy[:_SHOWN]),
            "look at their plans; a timeout of the guard ends them",
        )


def _longest(facts: Facts, state: State, least: float) -> list[Session]:
    found = [session for session in facts.sessions if session.state == state and session.seconds >= least]
    return sorted(found, key=lambda session: -session.seconds)


def _one(session: Session) -> str:
    return f"session {session.pid} of {session.name!a}, {session.seconds:.0f} s"
