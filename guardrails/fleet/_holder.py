"""The rule by which one worker uses its lease on a budget. Pure: the time is an argument.

Depends on the records. Times are seconds on the worker's own monotonic clock.
"""

from __future__ import annotations

import math

from guardrails.fleet._records import FORGET_AFTER, GRANTED, LEASE, Reply

__all__ = ["FIRST_WAIT", "LeaseHolder"]

_DRIFT = 0.9
"""A worker ends its lease after this fraction of it, from when it asked. Its clock may be slower than the
store's, and the store counts from the later moment at which it answered."""

FIRST_WAIT = 0.5
"""Seconds for which a new worker has no connections while it waits for its first lease."""

_GROW_AFTER = FORGET_AFTER * 2 / 3000
"""Seconds without contact after which a worker that has less may grow to its safe share: by then the others
have made room for it, or have shrunk to theirs."""


class LeaseHolder:
    """One worker's lease on one budget.

    Args:
        minimum: The worker's floor.
        started: When it asked for its first lease.

    Attributes:
        grant: The last grant; None before the first.
        safe: Connections that it may keep without contact.
        renewed: When it sent the request that was answered last.
    """

    __slots__ = ("grant", "minimum", "renewed", "safe", "started")

    def __init__(self, minimum: int, started: float) -> None:
        self.minimum = minimum
        self.started = started
        self.grant: int | None = None
        self.safe = 0
        self.renewed = -math.inf

    def is_in_contact(self, now: float) -> bool:
        """True while the lease holds."""
        return now - self.renewed < LEASE / 1000 * _DRIFT

    def limit(self, now: float) -> int:
        """Returns the number of connections that may be open now."""
        if self.grant is None:
            return self.minimum if now - self.started >= FIRST_WAIT else 0
        if self.is_in_contact(now):
            return self.grant
        if now - self.renewed < _GROW_AFTER:
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

    def renew(self, sent: float, reply: Reply) -> None:
        """Takes a reply.

        Args:
            sent: When its request was sent.
            reply: The reply.
        """
        if reply.status == GRANTED and sent > self.renewed:
            self.grant, self.safe, self.renewed = reply.grant, reply.safe, sent
