"""Shares of a bulkhead's slots for each class of criticality. Depends on ranks; must not import queues."""

from __future__ import annotations

import math

from guardrails._core.criticality import CLASSES, CRITICAL

__all__ = ["PriorityShares"]

GUARANTEED = 10, 10, 50, 20
"""Per cent of the slots, rounded down, that each class is guaranteed, in the order of `CLASSES`. Any class
may use the tenth that is left."""

HEADROOM = 20
"""Per cent of the slots, rounded down, that a call leaves free for each active class above its own, so that
important calls rarely wait for others. (Trunk reservation, as in telephone networks.)"""

ACTIVE = 10.0
"""Seconds after its last call for which a class is active and its guaranteed slots are kept free. Longer than
the gaps in the traffic of an important class."""


class PriorityShares:
    """The slots of one bulkhead by the rank of the calls that hold them.

    Attributes:
        held: Slots in use, by rank.
        last_request: Time of the last request for a slot, by rank.
        rank_by_number: The rank of each admitted call that is not `CRITICAL`, by its ticket; of a checkout,
            by its slot's number below zero.
        any_queued_since: Time since which the queue has not been empty. The bulkhead's ``queued_since`` then
            counts waiters of rank `CRITICAL` or above only, so that a queue of lesser calls does not cut
            their wait.
        now: The latest time seen.
    """

    __slots__ = ("any_queued_since", "held", "last_request", "now", "rank_by_number")

    def __init__(self, taken: int, since: float | None, now: float) -> None:
        self.held = [0] * len(CLASSES)
        self.held[CRITICAL] = taken
        self.last_request = [-math.inf] * len(CLASSES)
        self.rank_by_number: dict[int, int] = {}
        self.any_queued_since = since
        self.now = now

    def note_request(self, rank: int, now: float) -> None:
        """Notes a request for a slot."""
        self.last_request[rank] = self.now = now

    def may_enter(self, rank: int, taken: int, limit: int) -> bool:
        """True if a call may take a free slot: one that its class is guaranteed, or an unreserved one."""
        if taken >= limit:
            return False
        return self.below_guarantee(rank, limit) or taken + self._reserved_for_others(rank, limit) < limit

    def below_guarantee(self, rank: int, limit: int) -> bool:
        """True if a class holds fewer slots than it is guaranteed."""
        return self.held[rank] < limit * GUARANTEED[rank] // 100

    def outranked(self, rank: int) -> bool:
        """True if a more important class is active, so that a refusal is for its sake."""
        return any(self._active(other) for other in range(rank + 1, len(CLASSES)))

    def not_needed(self, now: float) -> bool:
        """True if no other class than `CRITICAL` is active or holds a slot, so that ranks are not needed."""
        self.now = max(self.now, now)
        others = [rank for rank in range(len(CLASSES)) if rank != CRITICAL]
        return not any(self.held[rank] or self._active(rank) for rank in others)

    def _reserved_for_others(self, own: int, limit: int) -> int:
        reserved = 0
        for rank, share in enumerate(GUARANTEED):
            if rank != own and self._active(rank):
                least = limit * HEADROOM // 100 if rank > own else 0
                reserved += max(least, limit * share // 100 - self.held[rank])
        return reserved

    def _active(self, rank: int) -> bool:
        return self.now - self.last_request[rank] < ACTIVE
