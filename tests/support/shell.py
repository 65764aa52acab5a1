"""A gate behind a gate of nothing but a lock and a clock, for the fast paths that calls take first."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

from greenlet import greenlet

from guardrails._core.gate import Refusal
from guardrails._core.outcome import Outcome
from guardrails._guard.call import Call
from guardrails._guard.call_settings import CallSettings
from guardrails._guard.locked_gate import LockedGate
from guardrails._guard.slot import run_in_slot
from guardrails.errors import CircuitOpenError


class Shell:
    """Makes a plain call's moves the fast path where it is open, and the long way where it is not.

    Attributes:
        now: The time.
        inside: By ticket, the calls that went the way of a bulkhead and have not come out yet.
    """

    def __init__(self, gate):
        self.gate = gate
        self.now = 0
        self.inside = {}
        self._turns = itertools.count()
        self._gate = SimpleNamespace(
            core=gate,
            lock=threading.RLock(),
            clock=lambda: self.now,
            postponed=(),
            part=gate.breaker.direct,
            tells_of_calls=False,
            leave=lambda ticket, outcome: gate.leave(self.now, ticket, outcome),
            shut_out=lambda retry_after: CircuitOpenError("db", "circuit_open", retry_after),
        )
        self.call_settings = CallSettings(self, "db", (self._gate,), None, None)

    def enter(self, now, place):
        """A ticket or a refusal the fast path, or what the long way says."""
        self.now = now
        if next(self._turns) % 2:
            return self._enter_slot() or self.gate.enter(now, place)
        call = Call()
        try:
            if call.try_enter_fast(self.call_settings, None):
                return call._ticket
        except CircuitOpenError as error:
            return Refusal(error.reason, error.retry_after)
        return self.gate.enter(now, place)

    def _enter_slot(self):
        """A ticket the way of a bulkhead, which is one function around the call; None if it is not open.

        The call goes on in a greenlet, so that the model can make other moves before it ends.
        """
        outside = greenlet.getcurrent()

        def work():
            outside.switch(self.gate.breaker.issued)

        inside = greenlet(lambda: run_in_slot(self.call_settings, lambda *_: None, work, (), {}))
        ticket = inside.switch()
        if ticket is not None:
            self.inside[ticket] = inside
        return ticket

    def leave(self, now, ticket):
        """Ends a call that went well the way it came, or the long way."""
        self.now = now
        if ticket in self.inside:
            inside = self.inside.pop(ticket)
            inside.parent = greenlet.getcurrent()
            inside.switch()
            # This way out reads no clock. What comes later must not look earlier than to the other gate.
            self.gate.last = max(self.gate.last, now)
            return inside.dead
        call = Call.waiting(self.call_settings, None)
        call.clock, call._ticket, call._verdict = self.call_settings.clock, ticket, Outcome.SUCCESS
        return call.try_exit_fast() or self.gate.leave(now, ticket, Outcome.SUCCESS)


class QuickWays:
    """A gate's fast paths through a gate, and nothing at all where they do not lead."""

    max_wait = 1

    def __init__(self, gate):
        self.core, self.lock, self.postponed = gate, threading.RLock(), ()
        self.tells_of_calls, self.part = False, gate.breaker.direct

    def check_out(self, now):
        """The number of a slot, a refusal, or 0."""
        self.now = now
        slot = LockedGate._try_enter_fast(self, reserve=False)
        return Refusal("bulkhead_full", None) if slot < 0 else slot

    def preview(self, now):
        """The open circuit's refusal, or None."""
        self.now = now
        return LockedGate.preview(self) or None

    def check_in(self, now, slot):
        """Whether the slot went back."""
        self.now, self.led = now, True
        LockedGate.check_in(self, slot)
        return self.led

    def begin(self, now):
        """A ticket, or 0."""
        self.now = now
        return LockedGate.begin(self, 0)

    def end(self, now, ticket, outcome=Outcome.SUCCESS):
        """Whether the success was noted."""
        self.now, self.led = now, True
        LockedGate.end(self, ticket, outcome)
        return self.led

    # What a gate's fast paths ask of it: the time, and the long ways, which here are closed.

    def clock(self):
        return self.now

    def step(self, *_):
        return 0

    def _check_in(self, _):
        self.led = False

    def _end(self, *_):
        self.led = False
