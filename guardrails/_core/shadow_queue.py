"""The calls that would wait in shadow: a model plays their wait. A part of `guardrails._core.gate.Gate`.

Depends on bulkheads and outcomes; must not import clocks or locks.

A call that enforcing would keep waiting runs at once. In the model it joins the queue. It gets the slot that
comes free for it, or is refused when its time is up. Its call in the model ends later than the real one, by
the time that it would have waited. So a slot is in use for as long as it would be.

Time is an argument here as well. So what the model would have done meanwhile is done at the next move, each
event at its own moment (`ShadowQueue.catch_up`).
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
    """A refusal that there would have been after a wait, and where the call had come from."""

    refusal: Any
    origin: object


class WouldWait:
    """A call that runs, and that enforcing would have kept waiting.

    Attributes:
        number: Its number; its key in ``Outside.outside``.
        waiter: Its place in the model's queue.
        checkout: Whether it is a pool's checkout.
        since: When it came.
        late: The reason for a refusal when its time is up.
        origin: Where it came from, for whoever hears of the refusal.
        inner: The ticket or slot that it has in the model; 0 while it would wait.
        waited: Seconds that it would have waited, once it has a slot in the model.
        ended: When the real call ended, and how; None while it runs.
        ends_at: When its call in the model ends, once the real one has; None before.
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
        outside: The calls without a slot, by number: one that would wait, or None. A call that would have
            been stopped keeps its ticket as its number, a checkout its slot times -1.
        unslotted: Those of them that run and hold no slot in the model.
        phantoms: Slots in the model that are held for a call which has ended.
        events: What the model does later: (moment, order, call), the earliest first.
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
        """Lets a call that has joined the queue wait there for at most so many seconds."""
        self.outside[call.number] = self._waiting[call.waiter] = call
        heappush(self.events, (self.last + seconds, -call.number, call))
        if not seconds:
            self.catch_up(self.last)

    def _end_later(self, call: WouldWait, now: float) -> None:
        """Ends a call in the model after the real one, by the time that it has waited."""
        self.phantoms += 1
        call.ends_at = now + call.waited
        heappush(self.events, (call.ends_at, -call.number, call))

    def _end_in_model(self, call: WouldWait, now: float, outcome: Outcome) -> None:
        self.outside.pop(call.number, None)
        self._release(call.inner, outcome, now, checkout=call.checkout)

    def _end_if_due(self, call: WouldWait, at: float) -> bool:
        """Ends a call in the model if that was planned for this moment."""
        if call.ends_at != at or call.ended is None:
            return False
        self.phantoms -= 1
        call.ends_at = None
        self._end_in_model(call, self.last, call.ended[1])
        return True

    def _drop(self, call: WouldWait) -> None:
        """Would be refused after a wait: from now on it is a call that would not have run."""
        if call.ended is None:
            self.outside[call.number] = None
        else:
            self.outside.pop(call.number, None)

    def _end_model(self) -> None:
        """Forgets what would have happened later. Calls with a slot in the model keep it."""
        for call in [*self._waiting.values()]:
            self.bulkhead.withdraw(call.waiter)
            self._drop(call)
        self._waiting.clear()
        events, self.events = sorted(self.events), []
        for at, _, call in events:
            self._end_if_due(call, at)

    # --- what the model does meanwhile ---------------------------------------------------------

    def play(self, now: float) -> None:
        """Brings the model up to a moment; asks for nothing."""
        self._begin_move(now)
        self._end_move(None)

    def catch_up(self, now: float) -> None:
        """Does what the model would have done up to a moment, each event at its own."""
        while self.events and self.events[0][0] <= now:
            at, _, call = heappop(self.events)
            self.last = max(self.last, at)
            if not self._end_if_due(call, at) and call.waiter in self._waiting:
                del self._waiting[call.waiter]
                self._ask_as(call)
                self._drop(call)
            self.follow_waiters()

    def follow_waiters(self) -> None:
        """Takes the model's waiters out of the outbox: those that have a slot now, or none to hope for."""
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
