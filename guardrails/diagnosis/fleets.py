"""Compares what a fleet reports with what the database server counts. Must not connect to a server.

Both change all the time, and a worker reports once a second. So each count of the server is compared with the
reports before and after it, and a difference counts if it is found twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from guardrails._pool.sessions import Session
from guardrails.diagnosis.findings import Facts, Finding
from guardrails.fleet._uses import BudgetUse

__all__ = ["Whose", "reconcile"]

_RENEWED = 1.3
"""Seconds in which each worker in contact reports at least once."""

_SHOWN = 5
"""Most programs named in one finding."""


@dataclass(frozen=True)
class Whose:
    """The sessions of a server that should be a fleet's.

    Attributes:
        role: The role that logged in; None is that of the asker.
        application: Their application name; None is any.
    """

    role: str | None = None
    application: str | None = None

    def among(self, facts: Facts) -> list[Session]:
        """Returns these sessions. The asker's own is not among them."""
        role = self.role_in(facts)
        return [
            session
            for session in facts.sessions
            if session.user == role and self.application in {None, session.application}
        ]

    def role_in(self, facts: Facts) -> str:
        """Returns the name of the role."""
        return facts.user if self.role is None else self.role


def reconcile(
    whose: Whose,
    report: Callable[[], BudgetUse],
    ask: Callable[[], Facts | Finding],
    pause: Callable[[float], object] = time.sleep,
) -> list[Finding]:
    """Returns the difference between a fleet's reports and its server's count, if there is one.

    It takes about a second and a half, and twice as long if there is a difference.

    Args:
        whose: The sessions that should be the fleet's.
        report: Returns what the workers of the budget report now.
        ask: Returns the facts of the server, or why there are none.
        pause: Waits some seconds.
    """
    last = 0
    for _ in range(2):
        before, facts = report(), ask()
        if isinstance(facts, Finding):
            return [facts]
        pause(_RENEWED)
        after = report()
        seen = _Seen(whose, before, after, facts, whose.among(facts))
        if not seen.difference or seen.difference * last < 0:
            return []
        last = seen.difference
    return [_strangers(seen) if last > 0 else _missing(seen)]


class _Seen(NamedTuple):
    """What the workers of a budget reported before and after the server was asked, and its answer."""

    whose: Whose
    before: BudgetUse
    after: BudgetUse
    facts: Facts
    sessions: Sequence[Session]

    @property
    def difference(self) -> int:
        """The sessions that no worker reported; below 0 for those reported that are not there."""
        count = len(self.sessions)
        more = count - max(self.before.has, self.after.has)
        less = min(self.before.connected, self.after.connected) - count
        return max(0, more) or -max(0, less)

    def __str__(self) -> str:
        named = self.whose.application
        with_name = "" if named is None else f" with the application name {named!a}"
        return f"of role {self.whose.role_in(self.facts)!a}{with_name}"


def _strangers(seen: _Seen) -> Finding:
    count, budget = len(seen.sessions), seen.after.connections
    above = f", and the budget is {budget}" if count > budget else ""
    return Finding(
        "fleet",
        f"fleet budget {seen.after.name!a}: the server has {count} connections {seen}, the workers report "
        f"{seen.after.has}: {seen.difference} are not the fleet's{above}",
        tuple(_programs(seen.sessions)),
        "programs and workers outside the fleet, or sessions whose client is gone: give them a role of their "
        "own, or take their number off the budget",
    )


def _missing(seen: _Seen) -> Finding:
    return Finding(
        "fleet",
        f"fleet budget {seen.after.name!a}: the workers report {seen.after.connected} connections, the "
        f"server has only {len(seen.sessions)} {seen}: {-seen.difference} lead elsewhere",
        tuple(_programs(seen.sessions)),
        "a pooler in between (the budget then counts the connections to the pooler, and the pooler limits "
        "those to the server), or the workers use another server, role or application name",
    )


def _programs(sessions: Sequence[Session]) -> Iterator[str]:
    programs = Counter(session.application for session in sessions)
    for application, count in programs.most_common(_SHOWN):
        yield f"{count} x " + (f"{application!a}" if application else "no application name")
    if len(programs) > _SHOWN:
        yield f"and {len(programs) - _SHOWN} more programs"
