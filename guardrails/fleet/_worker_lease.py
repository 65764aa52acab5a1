"""The rule by which one worker uses its lease on a budget, and asks for it. Pure: the time is an argument.

Pools and the simulator run it. Depends on the records. Times are seconds on the worker's own monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque

from guardrails.fleet._records import FORGET_AFTER, GRANTED, LEASE, Reply

__all__ = [
    "CLOSING",
    "CONTACT",
    "FIRST_WAIT",
    "GROW_AFTER",
    "PEAK",
    "QUICKEST",
    "RENEWAL",
    "Peaks",
    "WorkerLease",
    "demand",
    "wanted",
]

RENEWAL = 1.0
"""Seconds between two renewals."""

QUICKEST = 0.25
"""Seconds between two renewals while the worker is short of connections, or has just closed some."""

HURRY = 2 * LEASE / 1000
"""Seconds for which a worker below its floor asks every `QUICKEST`. Longer it stays below its floor only if
the floors do not fit into the budget, and then asking more often is of no use."""

CLOSING = 0.25
"""Seconds for which a closed connection is still reported as open, as the server takes a moment to see it."""

PEAK = 2.0
"""Seconds over which the largest demand counts, so that a lease does not follow each gap between calls."""

CONTACT = LEASE / 1000 * 0.9
"""Seconds after which a worker ends its lease, from when it asked: a tenth early, as its clock may be slower
than the store's, and the store counts from the later moment at which it answered."""

FIRST_WAIT = 0.5
"""Seconds for which a new worker has no connections while it waits for its first lease."""

GROW_AFTER = FORGET_AFTER * 2 / 3000
"""Seconds without contact after which a worker that has less may grow to its safe share: by then the others
have made room for it, or have shrunk to theirs."""


class Peaks:
    """The largest of the last values, which are noted in the order of their times.

    One thread notes; any may ask.

    Args:
        seconds: For how long a value counts.
    """

    __slots__ = ("_seconds", "_values")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, int]] = deque(maxlen=64)

    def note(self, now: float, value: int) -> None:
        """Adds a value."""
        values = self._values
        if values and values[-1][1] <= value:  # the one before counts for nothing from now on
            values[-1] = now, value
        else:
            values.append((now, value))
        while now - values[0][0] > self._seconds:
            values.popleft()

    def most(self, now: float) -> int:
        """Returns the largest value of the last seconds; 0 without one."""
        most = 0
        for at, value in list(self._values):
            if value > most and now - at <= self._seconds:
                most = value
        return most


def demand(peak: int, most: int) -> int:
    """Returns the demand to name in a request: the peak of the last `PEAK` seconds and a quarter more."""
    return min(most, peak + max(1, peak // 4))


def wanted(taken: int, waiting: int, limit: int, usable: int, *, refuses: bool) -> int:
    """Returns the connections that a worker could use now.

    The number of refused callers is unknown, so a worker that refuses wants twice what it has. While an
    adaptive limit or a ramp leaves fewer slots usable, that refuses them, and more connections would be idle.
    """
    if usable < limit:
        return max(taken, min(taken + waiting, usable))
    return max(taken + waiting, 2 * limit if refuses else 0)


class WorkerLease:
    """One worker's lease on one budget.

    Args:
        minimum: The worker's floor.
        started: When it asked for its first lease.

    Attributes:
        grant: The last grant; None before the first.
        safe: Connections that it may keep without contact.
        renewed: When it sent the request that was answered last.
        asked: When it sent its last request.
        told_cap: The cap that it named there.
        told_wants: The demand that it named there.
        below_since: When it asked for the first of the grants below its floor; None while the last grant is
            not below it.
    """

    __slots__ = (
        "asked", "below_since", "grant", "minimum", "renewed", "safe", "started", "told_cap", "told_wants",
    )  # fmt: skip

    def __init__(self, minimum: int, started: float) -> None:
        self.minimum = minimum
        self.started = started
        self.grant: int | None = None
        self.safe = 0
        self.renewed = self.asked = -math.inf
        self.told_cap = self.told_wants = 0
        self.below_since: float | None = None

    def is_in_contact(self, now: float) -> bool:
        """True while the lease holds."""
        return now - self.renewed < CONTACT

    def limit(self, now: float) -> int:
        """Returns the number of connections that may be open now."""
        if self.grant is None:
            return self.minimum if now - self.started >= FIRST_WAIT else 0
        if self.is_in_contact(now):
            return self.grant
        if now - self.renewed < GROW_AFTER:
            return max(self.minimum, min(self.grant, self.safe))
        return max(self.minimum, self.safe)

    def cap(self, now: float, has: int) -> int:
        """Returns the most connections that may be open until the next reply, for the store.

        Without contact that includes what the worker will grow to: this request may be received although its
        reply is lost.
        """
        if self.is_in_contact(now):
            return max(has, self.limit(now))
        return max(has, self.limit(now), self.safe, self.minimum if self.grant is not None else 0)

    def is_due(self, now: float, has: int, limit: int, wants: int) -> bool:
        """True if the store is to be asked now.

        Args:
            now: The time.
            has: Connections that are open.
            limit: Connections that the pool lets out.
            wants: Connections that it could use.
        """
        since = now - self.asked
        return since >= RENEWAL or (since >= QUICKEST and self.is_early(now, has, limit, wants))

    def is_early(self, now: float, has: int, limit: int, wants: int) -> bool:
        """True if the store is to be asked before `RENEWAL` is over; arguments as those of ``is_due``."""
        is_below = self.below_since is not None and now - self.below_since < HURRY
        return is_below or max(has, limit) < self.told_cap or wants > max(limit, self.told_wants)

    def ask(self, now: float, has: int, limit: int, wants: int) -> None:
        """Notes what the request says that is sent now; the arguments are those of ``is_due``."""
        self.asked = now
        # No connection may be opened before the first lease. Later the limit may be applied a moment late.
        applied = 0 if self.grant is None else limit
        self.told_cap, self.told_wants = max(applied, self.cap(now, has)), wants

    def renew(self, sent: float, reply: Reply) -> None:
        """Takes a reply.

        Args:
            sent: When its request was sent.
            reply: The reply.
        """
        if reply.status == GRANTED and sent > self.renewed:
            self.grant, self.safe, self.renewed = reply.grant, reply.safe, sent
            if reply.grant >= self.minimum:
                self.below_since = None
            elif self.below_since is None:
                self.below_since = sent
