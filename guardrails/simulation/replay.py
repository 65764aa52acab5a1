"""Replays a trace through a real guard, in virtual time.

Depends on guards and traces. A call is a checkout with one statement that takes the call's duration: the same
moves of the same gates as in front of a pool. Only the clock is simulated, and the waiting.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from typing import Any

from guardrails._core.gate import Refusal
from guardrails._core.outcome import Outcome
from guardrails._guard.auto_compartments import LOOK_AGAIN, CompartmentGate
from guardrails._guard.compartments import compartment_for, form_compartments
from guardrails._guard.fast_path import FULL
from guardrails._guard.guard import Guard, attach, guard_of_settings, switch
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.waiters import WakeableWaiter
from guardrails.events import Event, StateChanged
from guardrails.simulation.real_guard import SimulatedPool, quiet
from guardrails.simulation.replay_sums import SLICES, WHOLE, Opening, Replay, RouteSums
from guardrails.simulation.settings import Policy
from guardrails.simulation.trace import Trace

__all__ = ["replay"]


def replay(trace: Trace, policy: Policy, *, seed: int = 1) -> Replay:
    """Replays a trace through a guard with these settings.

    Args:
        trace: The calls.
        policy: The guard's settings.
        seed: Of the jitter of open periods.
    """
    with quiet():
        return _Run(trace, policy, seed).run()


class _Call(WakeableWaiter):
    """One call of the trace that has not been admitted by all of its gates yet.

    Attributes:
        index: Its place in the trace.
        gates: The gates that it has to pass.
        held: Those that it has passed, with its slots.
        asked: When it came.
        waiting: The gate at which it waits; None while it does not.
        timer: The number of the event that ends its wait, or a part of it.
        left: The seconds of its wait after that event.
        late: The reason of the refusal if it gets no slot in time.
    """

    __slots__ = ("asked", "gates", "held", "index", "late", "left", "run", "timer", "waiting")

    def __init__(self, run: _Run, index: int, gates: Sequence[LockedGate], asked: float) -> None:
        super().__init__()
        self.run = run
        self.index, self.gates, self.asked = index, gates, asked
        self.held: list[tuple[LockedGate, int]] = []
        self.waiting: LockedGate | None = None
        self.timer, self.left = 0, 0.0
        self.late: Any = "queue_timeout"

    def wake(self) -> bool:
        """See WakeableWaiter: it continues at this moment, after the move that wakes it."""
        self.run.woken.append(self)
        return True


class _Run:
    """One replay."""

    def __init__(self, trace: Trace, policy: Policy, seed: int) -> None:
        self.trace, self.policy = trace, policy
        self.now = 0.0
        self.woken: list[_Call] = []
        self._slice = (trace.seconds or 1.0) / SLICES
        self._sums = [RouteSums() for _ in trace.names]
        self._states: dict[str, list[StateChanged]] = {}
        self.result = Replay(policy, dict(zip(trace.names, self._sums, strict=True)), self._slice)
        self._slow = policy.breaker.slow_call_duration_threshold if policy.breaker else float("inf")
        self._counter = 0
        # (moment, number, None, call) ends a wait; (moment, number, tickets, slots, outcome) a call.
        self._events: list[tuple[Any, ...]] = []
        listener = _Listener(self._states)
        self.guard = guard_of_settings(
            WHOLE,
            policy.max_concurrent_calls,
            max_wait_duration=policy.max_wait_duration,
            max_waiting=policy.max_waiting,
            timeout=policy.timeout,
            breaker=policy.breaker,
            listeners=[listener],
            clock=lambda: self.now,
            random=random.Random(seed).random,  # noqa: S311 - a simulation repeats itself by its seed
        )
        switch(self.guard, "enforce")  # whatever the environment says
        if policy.compartments == "auto":
            form_compartments(self.guard)
        attach(self.guard, SimulatedPool(policy.max_concurrent_calls))
        self._parts: list[Guard | None] = [None] * len(trace.names)
        self._slots = self.guard.call_settings.gates[-1].core.bulkhead

    # --- the events, in their order ------------------------------------------------------------------

    def run(self) -> Replay:
        events, routes = self._events, self.trace.routes
        for index, moment in enumerate(self.trace.moments):
            while events and events[0][0] <= moment:
                self._next()
            self.now = moment
            self._arrive(index, routes[index])
        while events:
            self._next()
        self.result.openings = self._openings()
        return self.result

    def _next(self) -> None:
        self.now, number, tickets, *rest = heapq.heappop(self._events)
        if tickets is None:
            (call,) = rest
            if call.timer == number and call.left:
                self._look_again(call)
            elif call.timer == number:
                self._continue(call)
        else:
            held, outcome = rest
            for (gate, slot), ticket in zip(reversed(held), reversed(tickets), strict=True):
                gate.end(ticket, outcome, 0, slot)
            for gate, slot in reversed(held):
                gate.check_in(slot)
        while self.woken:
            self._continue(self.woken.pop(0))

    def _at(self, moment: float, *what: Any) -> None:
        self._counter += 1
        heapq.heappush(self._events, (moment, self._counter, *what))

    # --- one call ------------------------------------------------------------------------------------

    def _gates_of(self, route: int) -> tuple[LockedGate, ...]:
        compartments = self.guard.call_settings.auto_compartments
        if compartments is None:
            return self.guard.call_settings.gates
        part = self._parts[route]
        if part is None:
            part = self._parts[route] = compartment_for(self.guard, self.trace.names[route] or "default")
        gates = part.call_settings.gates
        if compartments.divided or compartments.is_divided_for(gates[0]):
            return gates
        return self.guard.call_settings.gates

    def _arrive(self, index: int, route: int) -> None:
        self._sums[route].calls += 1
        call = _Call(self, index, self._gates_of(route), self.now)
        self._enter(call)
        while self.woken:
            self._continue(self.woken.pop(0))

    def _enter(self, call: _Call) -> None:
        """Passes the remaining gates, up to one at which it waits or is refused."""
        for gate in call.gates[len(call.held) :]:
            if isinstance(gate, CompartmentGate) and gate.auto_compartments is not None:
                gate.note_request(gate.auto_compartments)
            slot = gate.try_enter_fast()
            if slot == FULL:
                self._refuse(call, "bulkhead_full")
                return
            if not slot:
                found, call.verdict = [0], None
                verdict = gate.request_slot(found, call if gate.max_wait > 0 else None, checkout=True)
                if isinstance(verdict, Refusal):
                    self._refuse(call, verdict.reason)
                    return
                if verdict is None:
                    limit, call.late = gate.wait_limit(call, None)
                    self._wait(call, gate, limit)
                    return
                slot = found[0]
            call.held.append((gate, slot))
        self._begin(call)

    def _wait(self, call: _Call, gate: LockedGate, seconds: float) -> None:
        """Waits at a gate. At one whose slots are kept for other compartments it looks again soon."""
        is_cut = (
            isinstance(gate, CompartmentGate) and gate.auto_compartments is not None and gate.member.is_cut
        )
        part = LOOK_AGAIN if is_cut and seconds > LOOK_AGAIN else seconds
        call.waiting, call.left = gate, seconds - part
        self._at(self.now + part, None, call)
        call.timer = self._counter

    def _look_again(self, call: _Call) -> None:
        gate, call.timer = call.waiting, 0
        if isinstance(gate, CompartmentGate) and gate.auto_compartments is not None:
            gate.auto_compartments.redistribute(gate)
            if call in self.woken:  # it continues at once, and the others after it
                self.woken.remove(call)
                self._continue(call)
            else:
                self._wait(call, gate, call.left)

    def _continue(self, call: _Call) -> None:
        """Ends a wait: the call was woken, or its time is up."""
        gate, call.waiting = call.waiting, None
        if gate is None:
            return
        call.timer, found = 0, [0]
        verdict = gate.end_wait(found, call, call.late, checkout=True)
        if isinstance(verdict, Refusal):
            self._refuse(call, verdict.reason)
        else:
            call.held.append((gate, found[0]))
            self._enter(call)

    def _begin(self, call: _Call) -> None:
        trace, index, timeout = self.trace, call.index, self.policy.timeout
        sums, place = self._sums[trace.routes[index]], self._place()
        tickets = [gate.begin(slot) for gate, slot in call.held]
        duration, outcome = trace.durations[index], Outcome(trace.outcomes[index])
        if timeout is not None and duration > timeout:
            duration, outcome = timeout, Outcome.FAILURE
            sums.stopped += 1
        self._at(self.now + duration, tickets, call.held, outcome)
        sums.admitted += 1
        if self.now > call.asked:
            sums.waits.append(self.now - call.asked)
        result, in_use = self.result, self._slots.taken
        result.admitted[place] += 1
        result.held += duration
        result.in_use[place] = max(result.in_use[place], in_use)
        result.most_in_use = max(result.most_in_use, in_use)

    def _refuse(self, call: _Call, reason: str) -> None:
        index = call.index
        sums = self._sums[self.trace.routes[index]]
        sums.refused[reason] += 1
        self.result.refused[self._place()] += 1
        if self.trace.outcomes[index] == Outcome.FAILURE or self.trace.durations[index] > self._slow:
            sums.refused_bad += 1
        elif self.trace.outcomes[index] == Outcome.SUCCESS:
            sums.refused_good += 1
        for gate, slot in reversed(call.held):
            gate.check_in(slot)

    def _place(self) -> int:
        return min(SLICES - 1, int(self.now / self._slice))

    # --- circuits ------------------------------------------------------------------------------------

    def _openings(self) -> list[Opening]:
        found = [each for name, states in self._states.items() for each in _periods(name, states, self.now)]
        return sorted(found, key=lambda opening: (opening.at, opening.guard))


class _Listener:
    """Keeps the transitions of each circuit."""

    events = (StateChanged,)

    def __init__(self, states: dict[str, list[StateChanged]]) -> None:
        self._states = states

    def __call__(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self._states.setdefault(event.compartment or event.guard, []).append(event)


def _periods(name: str, states: Sequence[StateChanged], end: float) -> Iterator[Opening]:
    opened: StateChanged | None = None
    rounds = 0
    for event in states:
        if event.new == "closed" and opened is not None:
            yield Opening(name, opened.at, event.at - opened.at, opened.cause, rounds, ended=True)
            opened, rounds = None, 0
        elif event.new == "open" and opened is None:
            opened = event
        rounds += event.new == "half_open"
    if opened is not None:
        yield Opening(name, opened.at, max(0.0, end - opened.at), opened.cause, rounds, ended=False)
