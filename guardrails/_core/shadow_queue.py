"""Models in shadow the wait of calls that find no slot. A part of `guardrails._core.gate.Gate`.

Depends on bulkheads and outcomes; must not import clocks or locks.

A call that enforcing would keep waiting runs at once. In the model it joins the queue: it is granted a slot
that comes free, or is refused when its time is up. In the model it ends later than in reality, by the time
that it has waited there. So it holds its slot for as long as the real call took.

Time is an argument here, too. Each move first makes the changes of the model that were due before it, each
at its own time (`ShadowQueue.catch_up`).
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.outcome import Outcome

if TYPE_CHECKING:
    from guardrails._core.breaker import Breaker
    from guardrails.errors import Reason

__all__ = ["Late", "ModelledCall", "ShadowQueue", "WouldWait"]


class ModelledCall(Protocol):
    """A call or checkout that the model treats as one of its calls.

    Attributes:
        since: When a checkout got its connection; 0.0 before.
    """

    since: float

    def leave_model(self) -> None:
        """Takes it out of the model of each of its gates: enforcing, it would have been refused."""


class Late(NamedTuple):
    """A refusal after a wait in the model, and the call that was refused."""

    refusal: Any
    call: WouldWait


class WouldWait(Waiter):
    """A call that runs although enforcing would have made it wait: its waiter in the model's queue.

    Attributes:
        number: Its number; its key in ``Outside.outside``. 0 before it has one.
        checkout: True for a pool's checkout.
        since: The time at which it began.
        late: The reason of the refusal when its time in the queue is up.
        origin: The request that it belongs to, or None; reported with a refusal.
        inner: The ticket or slot that it has in the model; 0 while it waits there.
        waited: Seconds that it has waited, once it has a slot in the model.
        ended: The time and the outcome of the real call's end; None while it runs.
        due: The time of its next planned change: the end of its wait in the model, or its end in the model
            after the real call has ended. None if there is none.
        owner: The call or checkout itself; None until it is known.
        usual: Seconds that such a checkout usually lasts, if the real pool has no connection for it now.
    """

    __slots__ = (
        "checkout",
        "due",
        "ended",
        "inner",
        "late",
        "number",
        "origin",
        "owner",
        "since",
        "usual",
        "waited",
    )

    def __init__(self, since: float, origin: object, *, checkout: bool) -> None:
        super().__init__()
        self.number = self.inner = 0
        self.checkout = checkout
        self.since = since
        self.late: Reason = "queue_timeout"
        self.origin = origin
        self.waited = 0.0
        self.ended: tuple[float, Outcome] | None = None
        self.due: float | None = None
        self.owner: Any = None
        self.usual: float | None = None


class ShadowQueue:
    """The waits of one gate's model.

    Attributes:
        last: The latest moment seen; see Gate.
        outside: The calls that were let in without a slot, by number. The value is a `WouldWait` for a call
            that waits in the model or has waited there; else None. A call that enforcing would have stopped
            has its ticket as its number, a checkout its slot times -1.
        unslotted: The number of those that run and hold no slot in the model.
        slots_of_ended: The number of slots in the model that are held for calls which have ended.
        events: The planned changes of the model, a heap: (time, order, call). One whose time is not the
            call's ``due`` is ignored.
    """

    __slots__ = ("events", "last", "outside", "slots_of_ended", "unslotted")

    last: float
    outside: dict[int, WouldWait | None]
    unslotted: int
    slots_of_ended: int
    events: list[tuple[float, int, WouldWait]]

    if TYPE_CHECKING:
        mode: str
        breaker: Breaker
        bulkhead: Bulkhead
        checkouts: dict[int, tuple[float, int]]
        outbox: list[Any]
        grows_at: float
        releasing: int | None

        def _begin_move(self, now: float) -> float: ...
        def _end_move(self, result: Any) -> Any: ...
        def _fit_slots(self, limit: int) -> None: ...
        def _find_slot(self, now: float, waiter: Waiter | None, rank: int) -> Any: ...
        def _decide_woken(self, now: float, waiter: Waiter, late: Reason) -> Any: ...
        def _take(self, now: float, rank: int, waiter: Any, held: Any, *, checkout: bool = False) -> int: ...
        def _end_checkout(self, now: float, slot: int) -> None: ...
        def _release(self, number: int, outcome: Outcome, now: float, *, checkout: bool) -> None: ...
        def _release_granted(self, waiter: Waiter) -> None: ...
        def _release_slot(self, number: int = 0) -> None: ...

    # An interrupt may come at any function call below. So the lines that change the model are together, with
    # no function call between them, and the next move completes what an interrupt has cut short: `catch_up`
    # repeats a change until it is no longer due, and `follow_waiters` until the call is settled.

    # --- one call ------------------------------------------------------------------------------

    def _would_wait(self, call: WouldWait, number: int, max_wait: float, budget: float | None) -> None:
        """Starts the wait of a call that has joined the queue."""
        seconds = self.bulkhead.wait_limit(max_wait, self.last, call.rank)
        if budget is not None and budget < seconds:
            seconds, call.late = budget, "deadline_spent"
        at = self.last + seconds
        heappush(self.events, (at, -number, call))
        call.number, call.due = number, at
        self.outside[number] = call
        self.catch_up(self.last)

    def end_early(self, now: float, slot: int, seconds: float, owner: Any) -> None:
        """Ends a checkout in the model after its usual time, if its pool has no connection for it by then.

        Enforcing, no more callers have a slot than the pool has connections, so that none waits there.

        Args:
            now: The time.
            slot: The checkout's slot.
            seconds: Its usual time.
            owner: The checkout; its ``since`` is 0.0 while it waits.
        """
        now = self._begin_move(now)
        call = self.outside.get(slot)
        if self.mode != "shadow":  # it was switched since the caller looked
            pass
        elif call is not None and not call.inner:
            call.owner, call.usual = owner, seconds  # from its slot in the model on
        elif call is not None or (slot in self.checkouts and not self.checkouts[slot][1]):
            if call is None:
                call = WouldWait(now, None, checkout=True)
                call.inner = slot
            number = -abs(slot)
            heappush(self.events, (now + seconds, -number, call))
            call.owner, call.due, call.number = owner, now + seconds, number
            self.outside[number] = call
        self._end_move(None)

    def _end_real(self, call: WouldWait, now: float, outcome: Outcome, at: float) -> None:
        """Notes the end of the real call, and plans its end in the model for ``at`` if it has begun there."""
        if not call.inner:  # in the model it still waits
            call.ended = now, outcome
            self.unslotted -= 1
            return
        heappush(self.events, (at, -call.number, call))
        call.ended, call.due = (now, outcome), at
        self.slots_of_ended += 1
        self.catch_up(now)

    def _release_in_model(self, call: WouldWait, outcome: Outcome) -> None:
        self._release(call.inner, outcome, self.last, checkout=call.checkout)
        del self.outside[call.number]
        self.slots_of_ended -= 1
        call.due = None

    def _drop(self, call: WouldWait) -> None:
        """Removes a refused call from the model. While the real call runs, it is outside."""
        call.due = None
        if call.ended is None:
            self.outside[call.number] = None
        else:
            del self.outside[call.number]

    def _end_model(self) -> None:
        """Ends the model: drops all waits and planned changes. A running call keeps the slot that it has."""
        self.follow_waiters()
        calls = [call for call in self.outside.values() if call is not None]
        # The waits first: the end of a call would grant its slot to one of them.
        for call in calls:
            if not call.inner:
                self.bulkhead.withdraw(call)
                self._drop(call)
        for call in calls:
            if call.inner and call.ended is not None:
                self._release_in_model(call, call.ended[1])
        self.events.clear()

    # --- changes that are due ------------------------------------------------------------------

    def advance_model(self, now: float) -> None:
        """Makes the changes of the model that are due at ``now``."""
        self._begin_move(now)
        self._end_move(None)

    def catch_up(self, now: float) -> None:
        """Makes the planned changes that are due at ``now``, each at its own time."""
        while self.events and min(self.events[0][0], self.grows_at) <= now:
            at, _, call = self.events[0]
            if call.due != at:  # it was made, or replaced
                heappop(self.events)
                continue
            acted = len(self.outbox)
            if self.grows_at <= at:
                self.last = max(self.last, self.grows_at)
                self._fit_slots(self.bulkhead.limit)
                self.follow_waiters(acted)
                continue
            self.last = max(self.last, at)
            if call.inner and call.ended is not None:
                self._release_in_model(call, call.ended[1])
            elif call.inner:
                self._end_unless_out(call)
            else:
                self._settle(call)
            self.follow_waiters(acted)

    def _end_unless_out(self, call: WouldWait) -> None:
        """Ends a checkout in the model whose usual time is over, unless it has got its connection."""
        if not call.owner.since and self.outside.get(call.number) is call:
            self._end_checkout(self.last, call.inner)
            self.unslotted += 1
            self.outside[call.number] = None
        call.due = None

    def follow_waiters(self, first: int = 0) -> None:
        """Settles the model's waiters in the outbox: those that were granted a slot, or refused one."""
        for item in islice(self.outbox, first, None):  # it grows meanwhile
            if isinstance(item, WouldWait) and item.verdict != "settled":
                self._settle(item)

    def _settle(self, call: WouldWait) -> None:
        """Ends a wait in the model: the call gets its slot there, or is refused."""
        breaker, verdict = self.breaker, None
        workload, breaker.caller_workload = breaker.caller_workload, call.workload
        try:
            if call.verdict == "settled":  # it has left the queue, and an interrupt came then
                self._drop(call)
                return
            if self.outside.get(call.number) is not call:  # it was dropped after it had been granted a slot
                self._release_granted(call)
                return
            verdict = self._decide_woken(self.last, call, call.late)
            if verdict is True:
                self._admit_in_model(call)
        finally:
            breaker.caller_workload = workload
        if verdict is not True:
            self.outbox[-1] = Late(verdict, call)
            call.verdict = "settled"
            self._drop(call)

    def _admit_in_model(self, call: WouldWait) -> None:
        waited, usual = self.last - call.since, call.usual
        at = None if usual is None else self.last + usual
        if call.ended is not None:
            at = call.ended[0] + waited
        if at is not None:
            heappush(self.events, (at, -call.number, call))
        call.inner = self._take(self.last, call.rank, call, None, checkout=call.checkout)
        call.waited, call.due, call.origin = waited, at, None
        if usual is None:
            call.owner = None  # otherwise what its caller forgets would never be collected
        if call.ended is None:
            self.unslotted -= 1
        else:
            self.slots_of_ended += 1
