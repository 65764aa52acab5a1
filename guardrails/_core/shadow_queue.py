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
from typing import TYPE_CHECKING, Any, NamedTuple

from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.criticality import CRITICAL
from guardrails._core.outcome import Outcome

if TYPE_CHECKING:
    from guardrails._core.breaker import Breaker
    from guardrails.errors import Reason

__all__ = ["Late", "ShadowQueue", "WouldWait"]


class Late(NamedTuple):
    """A refusal after a wait in the model, and the request that the call belongs to."""

    refusal: Any
    origin: object


class WouldWait:
    """A call that runs although enforcing would have made it wait.

    Attributes:
        number: Its number; its key in ``Outside.outside``.
        waiter: Its place in the model's queue.
        checkout: True for a pool's checkout.
        since: The time at which it began.
        late: The reason of the refusal when its time in the queue is up.
        origin: The request that it belongs to, or None; reported with a refusal.
        inner: The ticket or slot that it has in the model; 0 while it waits there.
        waited: Seconds that it has waited, once it has a slot in the model.
        ended: The time and the outcome of the real call's end; None while it runs.
        ends_at: The time at which it ends in the model, after the real call has ended; None before.
    """

    __slots__ = (
        "checkout",
        "ended",
        "ends_at",
        "inner",
        "late",
        "number",
        "origin",
        "since",
        "waited",
        "waiter",
    )

    def __init__(
        self, number: int, waiter: Waiter, since: float, late: Reason, origin: object, *, checkout: bool
    ) -> None:
        self.number = number
        self.waiter = waiter
        self.checkout = checkout
        self.since = since
        self.late: Reason = late
        self.origin = origin
        self.inner = 0
        self.waited = 0.0
        self.ended: tuple[float, Outcome] | None = None
        self.ends_at: float | None = None


class ShadowQueue:
    """The waits of one gate's model.

    Attributes:
        last: The latest moment seen; see Gate.
        outside: The calls that were let in without a slot, by number. The value is a `WouldWait` for a call
            that waits in the model or has waited there; else None. A call that enforcing would have stopped
            has its ticket as its number, a checkout its slot times -1.
        unslotted: The number of those that run and hold no slot in the model.
        phantoms: The number of slots in the model that are held for calls which have ended.
        events: The planned changes of the model, a heap: (time, order, call).
    """

    __slots__ = ("_waiting", "events", "last", "outside", "phantoms", "unslotted")

    last: float
    outside: dict[int, WouldWait | None]
    unslotted: int
    phantoms: int
    events: list[tuple[float, int, WouldWait]]
    _waiting: dict[Waiter, WouldWait]

    if TYPE_CHECKING:
        breaker: Breaker
        bulkhead: Bulkhead
        checkouts: dict[int, tuple[float, int]]
        outbox: list[Any]

        def _begin_move(self, now: float) -> float: ...
        def _end_move(self, result: Any) -> Any: ...
        def _find_slot(self, now: float, waiter: Waiter | None, rank: int) -> Any: ...
        def _decide_woken(self, now: float, waiter: Waiter, late: Reason) -> Any: ...
        def _take(self, now: float, rank: int, waiter: Any, held: Any, *, checkout: bool = False) -> int: ...
        def _release(self, number: int, outcome: Outcome, now: float, *, checkout: bool) -> None: ...
        def _release_slot(self, rank: int = CRITICAL) -> None: ...
        def _refuse(self, reason: Reason, retry_after: float | None) -> Any: ...

    # --- one call ------------------------------------------------------------------------------

    def _would_wait(self, call: WouldWait, seconds: float) -> None:
        """Starts the wait of a call that has joined the queue, for at most ``seconds``."""
        self.outside[call.number] = self._waiting[call.waiter] = call
        heappush(self.events, (self.last + seconds, -call.number, call))
        if not seconds:
            self.catch_up(self.last)

    def _end_later(self, call: WouldWait, now: float) -> None:
        """Plans the end of a call in the model: later than the real end by the time that it has waited."""
        self.phantoms += 1
        call.ends_at = now + call.waited
        heappush(self.events, (call.ends_at, -call.number, call))

    def _end_in_model(self, call: WouldWait, now: float, outcome: Outcome) -> None:
        self.outside.pop(call.number, None)
        self._release(call.inner, outcome, now, checkout=call.checkout)

    def _end_if_due(self, call: WouldWait, at: float) -> bool:
        """Ends a call in the model if its end was planned for ``at``; else returns False."""
        if call.ends_at != at or call.ended is None:
            return False
        self.phantoms -= 1
        call.ends_at = None
        self._end_in_model(call, self.last, call.ended[1])
        return True

    def _drop(self, call: WouldWait) -> None:
        """Removes a refused call from the model. While the real call runs, it is outside."""
        if call.ended is None:
            self.outside[call.number] = None
        else:
            self.outside.pop(call.number, None)

    def _end_model(self) -> None:
        """Ends the model: drops all waits and planned changes. A running call keeps the slot that it has."""
        for call in [*self._waiting.values()]:
            self.bulkhead.withdraw(call.waiter)
            self._drop(call)
        self._waiting.clear()
        events, self.events = sorted(self.events), []
        for at, _, call in events:
            self._end_if_due(call, at)

    # --- changes that are due ------------------------------------------------------------------

    def play(self, now: float) -> None:
        """Brings the model up to ``now``, and does nothing else."""
        self._begin_move(now)
        self._end_move(None)

    def catch_up(self, now: float) -> None:
        """Makes the planned changes that are due at ``now``, each at its own time."""
        while self.events and self.events[0][0] <= now:
            at, _, call = heappop(self.events)
            self.last = max(self.last, at)
            if not self._end_if_due(call, at) and call.waiter in self._waiting:
                del self._waiting[call.waiter]
                self._ask_as(call)
                self._drop(call)
            self.follow_waiters()

    def follow_waiters(self) -> None:
        """Takes the model's waiters out of the outbox, and admits those with a slot and drops the others."""
        while True:
            found = next((item for item in self.outbox if item in self._waiting), None)
            if found is None:
                return
            self.outbox.remove(found)
            call = self._waiting.pop(found)
            if self._ask_as(call) is not True:
                self._drop(call)
                continue
            self._admit_in_model(call)

    def _ask_as(self, call: WouldWait) -> Any:
        outside, self.breaker.caller_workload = self.breaker.caller_workload, call.waiter.workload
        try:
            verdict = self._decide_woken(self.last, call.waiter, call.late)
        finally:
            self.breaker.caller_workload = outside
        if verdict is not True:
            self.outbox[-1] = Late(verdict, call.origin)
        return verdict

    def _admit_in_model(self, call: WouldWait) -> None:
        outside, self.breaker.caller_workload = self.breaker.caller_workload, call.waiter.workload
        try:
            call.inner = self._take(self.last, call.waiter.rank, call.waiter, None, checkout=call.checkout)
        finally:
            self.breaker.caller_workload = outside
        call.waited = self.last - call.since
        if call.ended is None:
            self.unslotted -= 1
        else:
            self._end_later(call, call.ended[0])
