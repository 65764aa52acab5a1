"""Slots and a bounded first-in-first-out queue for them. Knows who waits, never how they wait."""

from __future__ import annotations

from typing import Literal

__all__ = ["Bulkhead", "Place"]

STANDING = 0.3
HURRIED_WAIT = 0.005
"""Seconds. A queue that has not been empty for STANDING is no burst but overload; from then on a
newcomer waits at most HURRIED_WAIT, so that those who get a slot are callers who still want one.
(Controlled delay as in "Fail at Scale", Ben Maurer, ACM Queue 13(8), 2015, whose 0.1 s is for services that
answer in a few milliseconds: with 15 slots, 80 % busy with queries of 50 ms, it refuses 0.5 % of healthy
callers, and 0.3 s refuses 0.08 %.)"""


class Place:
    """One caller's place in the queue.

    Attributes:
        verdict: None while waiting, then ``"granted"`` (a slot is theirs) or ``"sent_away"``; and
            ``"settled"`` once the caller has left the queue or taken its slot over.
    """

    __slots__ = ("verdict",)

    def __init__(self) -> None:
        self.verdict: Literal["granted", "sent_away", "settled"] | None = None


class Bulkhead:
    """At most ``limit`` inside, at most ``max_waiting`` outside the door.

    Attributes:
        taken: Slots in use, including those handed to a waiter that has not woken up yet.
        queue: The waiting places, first come first.
        standing_since: When the queue was last empty, or None while it is.
    """

    __slots__ = ("limit", "max_waiting", "queue", "standing_since", "taken")

    def __init__(self, limit: int, max_waiting: int) -> None:
        self.limit = limit
        self.max_waiting = max_waiting
        self.taken = 0
        self.queue: dict[Place, None] = {}
        self.standing_since: float | None = None

    def try_enter(self) -> bool:
        """Takes a slot if one is free and nobody waits for it: a newcomer never overtakes the queue."""
        if self.queue or self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    def try_queue(self, place: Place, now: float) -> bool:
        """Joins the queue unless it is full."""
        if len(self.queue) >= self.max_waiting:
            return False
        if not self.queue:
            self.standing_since = now
        self.queue[place] = None
        return True

    def patience(self, max_wait: float, now: float) -> float:
        """Seconds a caller that queues now may wait."""
        standing = self.standing_since is not None and now - self.standing_since >= STANDING
        return min(max_wait, HURRIED_WAIT) if standing else max_wait

    def leave(self) -> Place | None:
        """Gives a slot back, straight to the first in the queue, who is returned to be woken."""
        if self.queue and self.taken <= self.limit:
            return self._grant()
        self.taken -= 1
        return None

    def withdraw(self, place: Place) -> bool:
        """Leaves the queue; False for somebody who was granted a slot or sent away meanwhile."""
        if place.verdict is not None:
            return False
        del self.queue[place]
        place.verdict = "settled"
        self._note_empty()
        return True

    def claim(self, place: Place) -> bool:
        """Takes over the slot granted to a place, once: the caller, or who finds that it is no more."""
        if place.verdict != "granted":
            return False
        place.verdict = "settled"
        return True

    def send_away(self) -> list[Place]:
        """Empties the queue and returns who was in it."""
        sent = list(self.queue)
        for place in sent:
            place.verdict = "sent_away"
        self.queue.clear()
        self._note_empty()
        return sent

    def resize(self, limit: int) -> list[Place]:
        """Changes the number of slots. Shrinking lets calls inside end; growing returns whom to wake."""
        self.limit = limit
        heirs = []
        while self.queue and self.taken < limit:
            self.taken += 1
            heirs.append(self._grant())
        return heirs

    def _grant(self) -> Place:
        place = next(iter(self.queue))
        del self.queue[place]
        place.verdict = "granted"
        self._note_empty()
        return place

    def _note_empty(self) -> None:
        if not self.queue:
            self.standing_since = None
