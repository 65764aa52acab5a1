"""Slots and a bounded first-in-first-out queue for them. Knows who waits, never how they wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from guardrails._core.criticality import CRITICAL
from guardrails._core.priority_shares import PriorityShares
from guardrails._core.workloads import Workload

__all__ = ["Bulkhead", "Waiter"]

CODEL_INTERVAL = 0.3
CODEL_TARGET = 0.005
"""Seconds. A queue that has not been empty for STANDING is no burst but overload; from then on a
newcomer waits at most HURRIED_WAIT, so that those who get a slot are callers who still want one.
(Controlled delay as in "Fail at Scale", Ben Maurer, ACM Queue 13(8), 2015, whose 0.1 s is for services that
answer in a few milliseconds: with 15 slots, 80 % busy with queries of 50 ms, it refuses 0.5 % of healthy
callers, and 0.3 s refuses 0.08 %.)"""

QUEUE_FACTOR = 2
"""Once a queue stands, a newcomer joins it only behind so many times the callers that HURRIED_WAIT serves at
its pace. Whoever comes after them would wait in vain, at a price: of ten times as many callers as 10 slots
can serve, 61 % waited in vain, and now 8 %, with as many served (``tests/core/test_waiting_room.py``)."""


class Waiter:
    """One caller's place in the queue.

    Attributes:
        owner: The workload it is for, where a circuit tells them apart.
        rank: How much the caller matters; see `guardrails._core.criticality`.
        verdict: None while waiting, then ``"granted"`` (a slot is theirs), ``"sent_away"``, or ``"shed"``
            (sent away for somebody who matters more); and ``"settled"`` once the caller has left the queue
            or taken its slot over.
    """

    __slots__ = ("owner", "rank", "verdict")

    def __init__(self) -> None:
        self.owner: Workload | None = None
        self.rank = CRITICAL
        self.verdict: Literal["granted", "sent_away", "shed", "settled"] | None = None


class Bulkhead:
    """At most ``limit`` inside, at most ``max_waiting`` outside the gate.

    Attributes:
        taken: Slots in use, including those handed to a waiter that has not woken up yet.
        queue: The waiting places, first come first.
        ranks: Who has the slots; None while all calls matter the same, and all come in order.
        served: How many of the queue have got a slot since it was last empty.
        standing_since: When the queue was last empty, or None while it is.
    """

    __slots__ = ("limit", "max_waiting", "queue", "ranks", "served", "standing_since", "taken")

    def __init__(self, limit: int, max_waiting: int) -> None:
        self.limit = limit
        self.max_waiting = max_waiting
        self.taken = self.served = 0
        self.queue: dict[Waiter, None] = {}
        self.standing_since: float | None = None
        self.ranks: PriorityShares | None = None

    def try_enter(self) -> bool:
        """Takes a slot if one is free and nobody waits for it: a newcomer never overtakes the queue."""
        if self.queue or self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    def try_queue(self, waiter: Waiter, now: float) -> bool:
        """Joins the queue unless it is full."""
        if len(self.queue) >= self.room(now):
            return False
        if not self.queue:
            self.standing_since = now
            self.served = 0
        self.queue[waiter] = None
        return True

    def room(self, now: float) -> float:
        """How many may wait before a newcomer may not: in a standing queue, the first and who has hope."""
        since = self.standing_since
        if since is None or now - since < CODEL_INTERVAL:
            return self.max_waiting
        return min(self.max_waiting, 1 + QUEUE_FACTOR * CODEL_TARGET * self.served / (now - since))

    def patience(self, max_wait: float, now: float, rank: int = CRITICAL) -> float:
        """Seconds a caller that queues now may wait."""
        since = self.standing_since if self.ranks is None or rank >= CRITICAL else self.ranks.low_since
        standing = since is not None and now - since >= CODEL_INTERVAL
        return min(max_wait, CODEL_TARGET) if standing else max_wait

    def leave(self) -> Waiter | None:
        """Gives a slot back, straight to the first in the queue, who is returned to be woken."""
        if self.queue and self.taken <= self.limit:
            return self._grant()
        self.taken -= 1
        return None

    def withdraw(self, waiter: Waiter) -> bool:
        """Leaves the queue; False for somebody who was granted a slot or sent away meanwhile."""
        if waiter.verdict is not None:
            return False
        del self.queue[waiter]
        waiter.verdict = "settled"
        self._note_empty()
        return True

    def claim(self, waiter: Waiter) -> bool:
        """Takes over the slot granted to a place, once: the caller, or who finds that it is no more."""
        if waiter.verdict != "granted":
            return False
        waiter.verdict = "settled"
        return True

    def send_away(self, stays: Callable[[Workload | None], bool] | None = None) -> list[Waiter]:
        """Empties the queue of all but those whose workload stays; returns who was sent away."""
        sent = [waiter for waiter in self.queue if stays is None or not stays(waiter.owner)]
        for waiter in sent:
            waiter.verdict = "sent_away"
            del self.queue[waiter]
        self._note_empty()
        return sent

    # --- calls that matter more and less -------------------------------------------------------

    def try_enter_ranked(self, ranks: PriorityShares, rank: int, now: float) -> bool:
        """Takes a slot for a call of a rank; nobody overtakes their own class, or a higher one's queue."""
        ranks.ask(rank, now)
        entitled = ranks.entitled(rank, self.limit)
        if any(waiter.rank == rank or (waiter.rank > rank and not entitled) for waiter in self.queue):
            return False
        if not ranks.may_enter(rank, self.taken, self.limit):
            return False
        self.taken += 1
        ranks.held[rank] += 1
        return True

    def try_queue_ranked(
        self, ranks: PriorityShares, waiter: Waiter, now: float
    ) -> tuple[bool, Waiter | None]:
        """Joins the queue; if it is full, instead of the last of the lowest class below, who is returned."""
        shed = None
        if len(self.queue) >= self.max_waiting:
            shed = min(reversed(self.queue), key=lambda other: other.rank, default=waiter)
            if shed.rank >= waiter.rank:
                return False, None
            del self.queue[shed]
            shed.verdict = "shed"
        if not self.queue:
            ranks.low_since = now
        if waiter.rank >= CRITICAL and self.standing_since is None:
            self.standing_since = now
        self.queue[waiter] = None
        return True, shed

    def leave_ranked(self, ranks: PriorityShares, rank: int) -> list[Waiter]:
        """Gives a slot back; returns who has got one by it, the most important first."""
        self.taken -= 1
        ranks.held[rank] -= 1
        return self._grant_ranked(ranks)

    def _grant_ranked(self, ranks: PriorityShares) -> list[Waiter]:
        heirs = []
        for waiter in sorted(
            self.queue, key=lambda waiter: -waiter.rank
        ):  # stable: first come within a class
            if ranks.may_enter(waiter.rank, self.taken, self.limit):
                del self.queue[waiter]
                waiter.verdict = "granted"
                self.taken += 1
                ranks.held[waiter.rank] += 1
                heirs.append(waiter)
        self._note_empty()
        return heirs

    def resize(self, limit: int) -> list[Waiter]:
        """Changes the number of slots. Shrinking lets calls inside end; growing returns whom to wake."""
        self.limit = limit
        if self.ranks is not None:
            return self._grant_ranked(self.ranks)
        heirs = []
        while self.queue and self.taken < limit:
            self.taken += 1
            heirs.append(self._grant())
        return heirs

    def _grant(self) -> Waiter:
        waiter = next(iter(self.queue))
        del self.queue[waiter]
        waiter.verdict = "granted"
        self.served += 1
        self._note_empty()
        return waiter

    def _note_empty(self) -> None:
        if not self.queue:
            self.standing_since = None
        if self.ranks is not None:
            if not self.queue:
                self.ranks.low_since = None
            elif not any(waiter.rank >= CRITICAL for waiter in self.queue):
                self.standing_since = None
