"""The tables behind the findings about a server. Depends on facts; must not connect to a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from guardrails._pool.sessions import Session, State
from guardrails.diagnosis.findings import Facts

__all__ = ["Table", "tables_of"]

Cell = str | int | float | None

_STATES: tuple[State, ...] = ("waiting", "active", "idle_in_transaction", "unseen", "idle")
"""The states of sessions, the most urgent first."""

_LONGEST_STATEMENT = 1000
"""Characters of a statement that are shown."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Its name in JSON.
        title: Its title.
        columns: The names of its columns.
        rows: Its rows.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def tables_of(facts: Facts, slow: float, *, database: str | None, show_sql: bool) -> list[Table]:
    """Returns the tables behind the findings.

    Args:
        facts: The facts that the server reported.
        slow: Seconds from which a statement is long.
        database: The database whose sessions are shown; None is every one.
        show_sql: Whether to show the texts of statements.
    """
    within = [each for each in facts.sessions if database is None or each.database == database]
    where = "" if database is None else f" of database {database!a}"
    tables = [
        _applications(facts),
        _sessions(within, where),
        _statements(within, where, slow, show_sql=show_sql),
    ]
    if facts.aborted:
        title = "connections that ended badly, since the start of the server"
        tables.append(Table("aborted", title, ("counter", "count"), facts.aborted))
    return tables


def _applications(facts: Facts) -> Table:
    limit = facts.limit - facts.reserved
    counts = Counter(session.name for session in facts.sessions)
    states = Counter((session.name, session.state) for session in facts.sessions)
    reserved = f", and {facts.reserved} reserved" if facts.reserved else ""
    return Table(
        "applications",
        f"connections by application: {len(facts.sessions)} of {limit}{reserved}",
        ("application", "connections", "share", *_STATES),
        tuple(
            (
                name,
                count,
                f"{count / max(1, limit):.0%}",
                *(states[name, each] for each in _STATES),
            )
            for name, count in counts.most_common()
        ),
    )


def _sessions(sessions: Iterable[Session], where: str) -> Table:
    rows = sorted(sessions, key=lambda each: (_STATES.index(each.state), -each.seconds))
    return Table(
        "sessions",
        f"sessions{where}: {len(rows)}",
        ("pid", "database", "user", "application", "client", "state", "seconds", "age", "waits_for", "table"),
        tuple(
            (
                each.pid,
                each.database,
                each.user,
                each.application or None,
                each.client,
                each.state,
                round(each.seconds, 1),
                None if each.age is None else round(each.age, 1),
                ("likely " if each.guessed else "") + " ".join(map(str, each.waits_for)) or None,
                each.table,
            )
            for each in rows
        ),
    )


def _statements(sessions: Iterable[Session], where: str, slow: float, *, show_sql: bool) -> Table:
    long: Sequence[Session] = sorted(
        (each for each in sessions if each.state in _STATES[:3] and each.seconds >= slow),
        key=lambda each: -each.seconds,
    )
    return Table(
        "statements",
        f"statements and transactions of {slow:g} s or more{where}: {len(long)}",
        ("pid", "application", "state", "seconds", *(["statement"] if show_sql else [])),
        tuple(
            (each.pid, each.name, each.state, round(each.seconds, 1), *([_text(each)] if show_sql else []))
            for each in long
        ),
    )


def _text(session: Session) -> str | None:
    if session.statement is None:
        return None
    return " ".join(session.statement.split())[:_LONGEST_STATEMENT]
