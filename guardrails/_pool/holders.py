"""Holders of a pool's connections, and the cause of an exhausted pool.

Depends on plain records only; must not import a pool or a driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._pool.lock_waits import UNKNOWN_LINE, Blocker, LockWait

__all__ = [
    "ADVICE",
    "WORDS",
    "Cause",
    "Doing",
    "Holder",
    "PoolStatus",
    "advice",
    "busiest",
    "by_line",
    "cause_of",
]

Doing = Literal["statement", "waiting", "other_work", "nested", "gone"]
"""The activity of a holder.

``"statement"``: something runs on the connection. ``"waiting"``: it is held on purpose, by a subscriber of
Redis, by a command such as BLPOP or by a client with a single connection. ``"other_work"``: its code does
other work or is suspended. ``"nested"``: it has a second connection of the same pool, or was refused one.
``"gone"``: its code has ended and has not returned the connection.
"""

Cause = Literal["free", "busy", "slow_calls", "waiting", "held_idle", "nested", "leak", "locks"]
"""The cause of an exhausted pool; ``"free"`` if it has connections left."""

_POINTS_TO: dict[Doing, Cause] = {
    "gone": "leak",
    "nested": "nested",
    "other_work": "held_idle",
    "waiting": "waiting",
    "statement": "slow_calls",
}
"""The cause of an exhausted pool if most holders have this activity. The most certain one is first, and
wins a tie."""

ADVICE: dict[Cause, str] = {
    "free": "the pool has connections left",
    "busy": "most have just begun: a burst, a pool too small for it, or a lock that has just been taken",
    "slow_calls": "statements take long: look for locks in the database; a larger pool makes it worse",
    "waiting": "subscribers and commands that wait have them: give these a client of their own",
    "held_idle": "connections are held across other work: end the transaction or close the session before it",
    "nested": "code that holds a connection asks for a second one: pass the first on, or use another engine",
    "leak": "connections were not returned: close them in a with block",
    "locks": "statements wait for locks that other sessions hold: end those; a larger pool makes it worse",
}
"""The meaning of a cause, and the remedy."""

_REDIS_ADVICE: dict[Cause, str] = {
    "busy": "most have just begun: a burst, or a pool too small for it",
    "slow_calls": "commands take long: look at the server, its slow log and the network",
}
"""Likewise for Redis, which has no locks that a command waits for."""


WORDS: dict[Doing, str] = {
    "statement": "in a statement",
    "waiting": "held on purpose",
    "other_work": "held across other work",
    "nested": "in want of a second one",
    "gone": "gone",
}


_BRIEF = 0.05
"""Seconds. A connection held for less is not the cause: its call has just failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One connection that is out of its pool.

    Attributes:
        seconds: Seconds since its checkout.
        doing: The activity of its holder: ``"statement" "waiting" "other_work" "nested" "gone"``.
        where: The lines of the application that asked for it, such as ``"shop/orders.py:42 in load"``, the
            innermost first.
        now: The lines where its holder runs now or is suspended; empty once it has ended.
        route: The template of the route it serves, under the middleware; else None.
        compartment: The compartment it belongs to, or None.
        pid: The server's number of its session; None if the driver does not know it. Behind a pooler it is
            the pooler's number.
        port: The client's port of its connection; None for a Unix socket, or if the driver does not know it.
        blocked_by: The sessions that hold the lock for which it waits, as the server said when it was asked
            last; empty if none is known.
        at_yield: True if a suspended generator holds it, such as a dependency or the body of a stream. Then
            ``now`` is the line of its ``yield``.
    """

    seconds: float
    doing: Doing
    where: tuple[str, ...]
    now: tuple[str, ...]
    route: str | None
    compartment: str | None
    pid: int | None = None
    port: int | None = None
    blocked_by: tuple[Blocker, ...] = ()
    at_yield: bool = False

    @property
    def advice(self) -> str:
        """The code that holds it, and what to do, for the log."""
        at = self.now[0] if self.now else "an unknown line"
        if self.doing == "gone":
            return "its code has ended and nothing that runs keeps it: close it in a with block"
        if self.at_yield:
            return f"{at} holds it across its yield: close the session before a stream or a background task"
        return f"its holder does other work at {at}: end the transaction or close the session before that"


def advice(cause: Cause, system: str) -> str:
    """The meaning of a cause, and the remedy, for the pool of a kind of server; see `PoolSnapshot.system`."""
    return (system == "redis" and _REDIS_ADVICE.get(cause)) or ADVICE[cause]


def busiest(holders: Sequence[Holder], taken: int, limit: int) -> str:
    """Describes the most common line of code and activity of these connections.

    Holders that wait on purpose are left out, as they say nothing about the server. Empty without others.

    Args:
        holders: Their holders.
        taken: Slots in use, including those without a connection yet.
        limit: Number of slots.
    """
    alike = Counter((each.doing, each.where[:1], each.route) for each in holders if each.doing != "waiting")
    if not alike:
        return ""
    (doing, where, route), count = alike.most_common(1)[0]
    line = ", ".join(filter(None, [*where, route]))
    longest = max(each.seconds for each in holders if (each.doing, each.where[:1]) == (doing, where))
    if longest < _BRIEF:
        return line and f"such as {line}"
    busy = f"{count} of {limit} slots {WORDS[doing]} for up to {longest:.1f} s, {line}".removesuffix(", ")
    waiting = taken - len(holders)
    return f"{busy}; {waiting} without a connection yet" if waiting > 0 else busy


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus(PoolSnapshot):
    """One pool at one moment: its figures, see `PoolSnapshot`, with the holders of its connections.

    Attributes:
        name: The guard's name.
        checked_out: Slots in use: ``in_use``, and the checkouts that have no connection yet.
        holders: The holders of those that are out, the longest first.
        cause: Why none is left: ``"busy" "slow_calls" "locks" "waiting" "held_idle" "nested" "leak"``;
            ``"free"`` if some are.
        failed_cancels: Number of cancel requests that did not reach the server since the guard was attached.
            0 with a driver that does not report it, such as asyncpg.
        lock_waits: The connections that wait for locks, and the sessions that hold them, as the server said
            when it was asked last.
    """

    name: str
    checked_out: int
    holders: tuple[Holder, ...]
    cause: Cause
    failed_cancels: int = 0
    lock_waits: tuple[LockWait, ...] = ()

    def __str__(self) -> str:
        full = (
            f"{self.checked_out} of {self.capacity} connections checked out, {self.waiting} callers waiting"
        )
        failed = [f"  orders to cancel that did not reach the server: {self.failed_cancels}"]
        waits = [f"  {wait}" for wait in self.lock_waits]
        lines = [*by_line(self.holders), *waits, *(failed if self.failed_cancels else [])]
        return "\n".join([f"pool {self.name!r}: {full}: {advice(self.cause, self.system)}", *lines])


def by_line(holders: Iterable[Holder]) -> list[str]:
    """Returns one text for each line of code and activity: number of holders, time and line."""
    alike: dict[tuple[str, Doing], list[Holder]] = {}
    for holder in holders:
        alike.setdefault((holder.where[0] if holder.where else UNKNOWN_LINE, holder.doing), []).append(holder)
    return [
        f"  {len(group)} x {WORDS[doing]}{_since(group[0])}, held for up to {group[0].seconds:.1f} s, "
        f"checked out at {where}"
        for (where, doing), group in sorted(alike.items(), key=lambda item: -len(item[1]))
    ]


def _since(holder: Holder) -> str:
    """The line at which a holder does other work."""
    return f" at {holder.now[0]}" if holder.doing == "other_work" and holder.now else ""


def cause_of(holders: Sequence[Holder], capacity: int, slow_from: float) -> Cause:
    """The cause of an exhausted pool by the activity of most holders; ``"free"`` if it is not exhausted.

    Args:
        holders: The holders of its connections.
        capacity: The most connections that it lets out.
        slow_from: Seconds from which on a statement takes long. Before that, one that waits for a lock looks
            like one of a burst.
    """
    if len(holders) < capacity:
        return "free"
    count = Counter(holder.doing for holder in holders)
    cause = _POINTS_TO[max(_POINTS_TO, key=lambda doing: count[doing])]  # the first of equals
    if cause != "slow_calls":
        return cause
    running = [holder for holder in holders if holder.doing == "statement"]
    if 2 * sum(bool(holder.blocked_by) for holder in running) > len(running):
        return "locks"
    return cause if 2 * sum(holder.seconds >= slow_from for holder in running) >= len(running) else "busy"
