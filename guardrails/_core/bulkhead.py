"""Slots and their bounded queue, first in, first out. Depends on ranks; must not import threads or loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from guardrails._core.criticality import CRITICAL
from guardrails._core.priority_shares import PriorityShares
from guardrails._core.workloads import Workload

__all__ = ["Bulkhead", "Waiter"]

CODEL_INTERVAL = 0.3
CODEL_TARGET = 0.005
"""Seconds. A queue that has not been empty for `CODEL_INTERVAL` is overload and no burst. From then on a new
caller waits at most `CODEL_TARGET`, so that slots go to callers who have not given up yet.

Source: controlled delay (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012), as adapted
in Maurer, "Fail at Scale" (ACM Queue 13(8), 2015). Maurer's interval of 0.1 s suits services that answer in a
few milliseconds. With 15 slots that are 80 % busy with queries of 50 ms, 0.1 s refuses 0.5 % of healthy
callers and 0.3 s refuses 0.08 %."""

QUEUE_FACTOR = 2
"""Maximum length of a standing queue, as a multiple of the callers that it serves in `CODEL_TARGET` at its
present rate. Callers beyond it would time out before they get a slot. With ten times the callers that 10
slots can serve, 61 % timed out in the queue without this limit and 8 % with it, with as many served
(``tests/core/test_waiting_room.py``)."""


class Waiter:
    """One caller in the queue.

    Attributes:
        workload: The caller's workload; None where the circuit does not separate workloads.
        rank: The caller's criticality; see `guardrails._core.criticality`.
        verdict: None while it waits. Then ``"granted"`` (it has a slot), ``"dismissed"`` (the circuit
            opened), ``"shed"`` (a more important caller took its place in the queue) or ``"let_in"`` (nothing
            is enforced any more). At last ``"settled"``: it has left the queue or taken over its slot.
        epoch: The bulkhead's ``epoch`` when it joined the queue.
    """

    __slots__ = ("epoch", "rank", "verdict", "workload")

    def __init__(self) -> None:
        self.epoch = 0
        self.workload: Workload | None = None
        self.rank = CRITICAL
        self.verdict: Literal["granted", "dismissed", "shed", "let_in", "settled"] | None = None


class Bulkhead:
    """Admits at most ``usable`` calls and queues at most ``max_waiting`` callers.

    Attributes:
        limit: Slots in total.
        usable: Slots that calls may use now: ``limit``, or fewer for a while after a recovery.
        taken: Slots in use, including those granted to a waiter that has not woken up yet.
        queue: The waiters in the order of their arrival.
        ranks: The slots by rank; None while every call has the same rank.
        served: Waiters that got a slot since the queue was last empty.
        epoch: Number of times that all slots and waiters were dropped.
        queued_since: Time since which the queue has not been empty; None while it is empty.
        timeouts: Waiters that got no slot in time.
        waits: Callers that have joined the queue.
    """

    __slots__ = (
        "epoch",
        "limit",
        "max_waiting",
        "queue",
        "queued_since",
        "ranks",
        "served",
        "taken",
        "timeouts",
        "usable",
        "waits",
    )

    def __init__(self, limit: int, max_waiting: int) -> None:
        self.limit = self.usable = limit
        self.max_waiting = max_waiting
        self.taken = self.served = self.waits = self.timeouts = self.epoch = 0
        self.queue: dict[Waiter, None] = {}
        self.queued_since: float | None = None
        self.ranks: PriorityShares | None = None

    def has_room(self) -> bool:
        """True if a slot is free and the queue is empty: a new caller never overtakes the queue."""
        return not self.queue and self.taken < self.usable

    def try_queue(self, waiter: Waiter, now: float) -> bool:
        """Joins the queue unless it is full."""
        if len(self.queue) >= self.max_queue_length(now):
            return False
        if not self.queue:
            self.queued_since = now
            self.served = 0
        waiter.epoch = self.epoch
        self.queue[waiter] = None
        self.waits += 1
        return True

    def max_queue_length(self, now: float) -> float:
        """Maximum queue length: callers beyond it would time out before they get a slot."""
        since = self.queued_since
        if since is None or now - since < CODEL_INTERVAL:
            return self.max_waiting
        return min(self.max_waiting, 1 + QUEUE_FACTOR * CODEL_TARGET * self.served / (now - since))

    def wait_limit(self, max_wait: float, now: float, rank: int = CRITICAL) -> float:
        """Seconds that a caller who joins the queue now may wait."""
        since = self.queued_since if self.ranks is None or rank >= CRITICAL else self.ranks.any_queued_since
        standing = since is not None and now - since >= CODEL_INTERVAL
        return min(max_wait, CODEL_TARGET) if standing else max_wait

    def leave(self) -> Waiter | None:
        """Frees a slot. Grants it to the first waiter, if any, and returns that waiter to be woken."""
        if self.queue and self.taken <= self.usable:
            return self._grant()
        self.taken -= 1
        return None

    def withdraw(self, waiter: Waiter) -> bool:
        """Takes a waiter out of the queue; False if it has a verdict already."""
        if waiter.verdict is not None or waiter not in self.queue:
            return False
        del self.queue[waiter]
        waiter.verdict = "settled"
        self._note_empty()
        return True

    def drop_all(self) -> None:
        """Drops all slots in use and all waiters. A slot granted to one of these waiters counts no longer."""
        self.queue.clear()
        self.queued_since = self.ranks = None
        self.taken = 0
        self.epoch += 1

    def dismiss(self, stays: Callable[[Workload | None], bool] | None = None) -> list[Waiter]:
        """Removes the waiters whose workload ``stays`` does not accept from the queue; returns them."""
        sent = [waiter for waiter in self.queue if stays is None or not stays(waiter.workload)]
        for waiter in sent:
            waiter.verdict = "dismissed"
            del self.queue[waiter]
        self._note_empty()
        return sent

    # --- calls of several ranks ----------------------------------------------------------------

    def has_room_for(self, ranks: PriorityShares, rank: int, now: float) -> bool:
        """True if the rank may have a slot and no waiter of this rank or a higher one goes first."""
        ranks.note_request(rank, now)
        guaranteed = ranks.below_guarantee(rank, self.usable)
        if any(waiter.rank == rank or (waiter.rank > rank and not guaranteed) for waiter in self.queue):
            return False
        return ranks.may_enter(rank, self.taken, self.usable)

    def try_queue_ranked(
        self, ranks: PriorityShares, waiter: Waiter, now: float
    ) -> tuple[bool, Waiter | None]:
        """Joins the queue. In a full queue it replaces the last waiter of the lowest rank below its own.

        Returns:
            True if it has joined, and the waiter that it has replaced.
        """
        shed = None
        if len(self.queue) >= self.max_waiting:
            shed = min(reversed(self.queue), key=lambda other: other.rank, default=waiter)
            if shed.rank >= waiter.rank:
                return False, None
            del self.queue[shed]
            shed.verdict = "shed"
        if not self.queue:
            ranks.any_queued_since = now
        if waiter.rank >= CRITICAL and self.queued_since is None:
            self.queued_since = now
        waiter.epoch = self.epoch
        self.queue[waiter] = None
        self.waits += 1
        return True, shed

    def grant_ranked(self, ranks: PriorityShares) -> list[Waiter]:
        """Grants the free slots. Returns the waiters that have one now, the most important first."""
        granted = []
        # A stable sort keeps the order of arrival within a rank.
        for waiter in sorted(self.queue, key=lambda waiter: -waiter.rank):
            if ranks.may_enter(waiter.rank, self.taken, self.usable):
                del self.queue[waiter]
                waiter.verdict = "granted"
                self.taken += 1
                ranks.held[waiter.rank] += 1
                granted.append(waiter)
        self._note_empty()
        return granted

    def resize(self, limit: int, usable: int | None = None) -> list[Waiter]:
        """Changes the number of slots, of which all are usable by default; calls keep theirs.

        Returns:
            The waiters that are granted a slot.
        """
        usable = limit if usable is None else usable
        self.limit, self.usable = limit, usable
        if self.ranks is not None:
            return self.grant_ranked(self.ranks)
        granted = []
        while self.queue and self.taken < usable:
            waiter = self._grant()
            self.taken += 1
            granted.append(waiter)
        return granted

    def _grant(self) -> Waiter:
        waiter = next(iter(self.queue))
        # Nothing is called from here on: an interrupt would lose the slot that the caller moves.
        del self.queue[waiter]
        waiter.verdict = "granted"
        self.served += 1
        if not self.queue:
            self.queued_since = None
        return waiter

    def _note_empty(self) -> None:
        if not self.queue:
            self.queued_since = None
        if self.ranks is not None:
            if not self.queue:
                self.ranks.any_queued_since = None
            elif not any(waiter.rank >= CRITICAL for waiter in self.queue):
                self.queued_since = None
