"""Who may have a slot when some calls matter more. Knows ranks and numbers; the queue is the bulkhead's."""

from __future__ import annotations

import math

from guardrails._core.criticality import CLASSES, CRITICAL

__all__ = ["PriorityShares"]

GUARANTEED = 10, 10, 50, 20
"""Per cent of the slots, rounded down, that each class can count on, in the order of `CLASSES`. The tenth
that is left goes to whoever comes."""

HEADROOM = 20
"""Per cent of the slots, rounded down, that a call leaves free for each active class above its own: what
matters more then rarely waits for what matters less. (Trunk reservation, as telephone networks have it.)"""

ACTIVE = 10.0
"""Seconds after a call of it for which a class's guaranteed slots are kept free of others; later they are
lent. Longer than the gaps in the traffic of anything that matters."""


class PriorityShares:
    """The slots of one bulkhead by the rank of who has them.

    Attributes:
        held: Slots in use, by rank.
        asked: When a call of each rank came last.
        owners: The ranks of calls inside that are not `CRITICAL`; the rest of what is held is.
        low_since: Since when there has been a queue; the bulkhead's own ``standing_since`` is then since
            when there has been one of `CRITICAL` calls or above, whom a crowd below must not hurry.
        now: The latest moment seen.
    """

    __slots__ = ("asked", "held", "low_since", "now", "owners")

    def __init__(self, taken: int, standing_since: float | None, now: float) -> None:
        self.held = [0] * len(CLASSES)
        self.held[CRITICAL] = taken
        self.asked = [-math.inf] * len(CLASSES)
        self.owners: dict[int, int] = {}
        self.low_since = standing_since
        self.now = now

    def ask(self, rank: int, now: float) -> None:
        """Notes that a call of a rank has come."""
        self.asked[rank] = self.now = now

    def may_enter(self, rank: int, taken: int, limit: int) -> bool:
        """Whether a call may have one of the free slots: its own class's, or one that nobody is owed."""
        if taken >= limit:
            return False
        return self.entitled(rank, limit) or taken + self._owed(rank, limit) < limit

    def entitled(self, rank: int, limit: int) -> bool:
        """Whether a class has less than it can count on."""
        return self.held[rank] < limit * GUARANTEED[rank] // 100

    def outranked(self, rank: int) -> bool:
        """Whether calls that matter more have come lately: then a refusal is for their sake."""
        return any(self._active(other) for other in range(rank + 1, len(CLASSES)))

    def over(self, now: float) -> bool:
        """Whether nothing but `CRITICAL` calls is inside or has come lately, so that ranks mean nothing."""
        self.now = max(self.now, now)
        others = [rank for rank in range(len(CLASSES)) if rank != CRITICAL]
        return not any(self.held[rank] or self._active(rank) for rank in others)

    def _owed(self, to: int, limit: int) -> int:
        owed = 0
        for rank, share in enumerate(GUARANTEED):
            if rank != to and self._active(rank):
                least = limit * HEADROOM // 100 if rank > to else 0
                owed += max(least, limit * share // 100 - self.held[rank])
        return owed

    def _active(self, rank: int) -> bool:
        return self.now - self.asked[rank] < ACTIVE
