"""Records in shadow each piece of work that passes the limit at which enforcing would have stopped it.

Depends on the guard and its checkouts; must not import a driver. It uses the timers that an enforcing guard
uses, so the slots and the circuit of the model change at the same times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guardrails._core.outcome import Outcome
from guardrails._dbapi.loop_watch import limit_on_loop
from guardrails._dbapi.watchdog import watch
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.frames import lines
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import ambient, current, would_not_run

if TYPE_CHECKING:
    from guardrails._dbapi.limit import Limit
    from guardrails._pool.checkout import HeldCheckout
    from guardrails._pool.route_times import RouteTimes
    from guardrails._runtime.scope import RequestScope

__all__ = ["Observation", "has_slots", "observe"]


class Observation:
    """One piece of work whose limit stops nothing. The timers call it in place of a driver; it is a Limit.

    Args:
        gates: The gates of the work's guard, its own first.
        checkout: The connection's checkout; None while a connection is opened.
        tickets: The tickets of the work, each with its gate and the slot of its checkout; 0 for work that is
            evidence only if it is late.
        seconds: The limit.
        request: The request that the work is part of, or None.
        own: Whether the limit is the guard's own timeout.

    Attributes:
        interrupts_task: False: no task is cancelled.
    """

    __slots__ = (
        "_checkout",
        "_gates",
        "_over",
        "_own",
        "_request",
        "_seconds",
        "_tickets",
        "_times",
        "limit",
    )

    interrupts_task = late = False

    def __init__(
        self,
        gates: Sequence[LockedGate],
        checkout: HeldCheckout | None,
        tickets: Sequence[tuple[LockedGate, int, int]],
        seconds: float,
        request: RequestScope | None,
        *,
        own: bool,
    ) -> None:
        self._gates = gates
        self._checkout = checkout
        self._tickets = tickets
        self._seconds = seconds
        self._request = request
        self._own = own
        self._over = False
        self._times: RouteTimes | None = None
        self.limit: Limit | None = None

    def end(self) -> bool:
        """Ends the limit: the work has ended, in time or not. False: its connection may be used again."""
        self._over = True
        limit, self.limit = self.limit, None  # it refers to this object: a cycle would wait for the collector
        if limit is not None and limit.end():
            self._end_overtime()
        return False

    def _end_overtime(self) -> None:
        """Notes the end of the work after its limit; may be called twice."""
        self._gates[0].report.sums.ended(self)
        if self._times is not None:
            self._times.overtime.discard(self)

    def failed(self, error: BaseException) -> bool:  # noqa: ARG002
        """See Limit."""
        return self.end()

    def cancel_target(self, connection: Any) -> Any:
        """See Canceller."""

    def cancel(self, target: Any, within: float) -> None:  # noqa: ARG002
        """Time is up: ends the work in the model, and its checkout, which enforcing would discard."""
        if not has_slots(self._checkout):
            return  # it has left the model already
        missed = self._own and pause_detector.missed(self._seconds)
        outcome = Outcome.FAILURE if self._own and not missed else Outcome.ABANDONED
        for gate, ticket, slot in list(self._tickets):
            gate.end(ticket or gate.begin(slot), outcome, 0, slot)
        for gate, slot in [] if self._checkout is None else list(self._checkout.slots):
            if slot:
                gate.step(gate.core.end_in_model, slot, Outcome.ABANDONED, checkout=True)
        for gate in self._gates:
            gate.step(gate.core.count_would_stop)
        self._times = None if self._checkout is None else self._checkout.times
        if self._times is not None:
            self._times.runs_on(self)
        where = () if self._checkout is None else lines(self._checkout.site)
        self._gates[0].note_would_stop(self, self._seconds, where, self._request)
        if self._over:  # the work has ended meanwhile
            self._end_overtime()

    def cancel_again(self, target: Any, within: float) -> None:
        """See Canceller."""

    def kill(self, connection: Any) -> None:
        """See Canceller."""

    def retire(self, connection: Any) -> None:
        """See Canceller."""

    def abandon(self, connection: Any) -> None:
        """See Driver."""


def has_slots(checkout: HeldCheckout | None) -> bool:
    """True unless a checkout runs only because nothing is enforced."""
    if checkout is not None:
        for gate, slot in checkout.slots:
            core = gate.core
            # While every call has a slot there is nothing to look up.
            if (core.outside or slot < 0) and not core.has_slot(slot):
                return False
    return True


def observe(
    gates: Sequence[LockedGate],
    checkout: HeldCheckout | None,
    tickets: Sequence[tuple[LockedGate, int, int]],
    seconds: float | None,
    *,
    own: bool,
    on_loop: bool,
) -> Observation | None:
    """Starts to observe a piece of work; see Observation.

    Returns:
        None for work without a limit, and for work that enforcing would not have run.
    """
    core = gates[0].core
    if seconds is None or seconds <= 0 or core.mode != "shadow":
        return None
    scope = None if ambient.get() is None else current()
    if not has_slots(checkout) or (scope is not None and would_not_run(scope, core)):
        return None
    request = None if scope is None else scope.request
    found = Observation(gates, checkout, tickets, seconds, request, own=own)
    found.limit = limit_on_loop(found, None, seconds) if on_loop else watch(found, None, seconds)
    return found
