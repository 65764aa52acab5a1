"""The fast paths of a gate without its slow paths, and plain calls on them."""

from __future__ import annotations

import itertools

from guardrails._core.gate import Refusal
from guardrails._core.outcome import Outcome
from guardrails._guard.call import Call
from guardrails._guard.call_settings import CallSettings
from guardrails._guard.fast_path import FastGate
from guardrails.errors import BulkheadFullError, CircuitOpenError, RejectedError

ERRORS = {"circuit_open": CircuitOpenError, "bulkhead_full": BulkheadFullError}


def take(bulkhead):
    """Takes a slot as the gate does, if there is one."""
    found = bulkhead.has_room()
    bulkhead.taken += found
    return found


class FastPaths(FastGate):
    """The fast paths of a gate; where they are closed, nothing happens.

    Attributes:
        now: The time.
        led: True if the last release took the fast path.
    """

    max_wait = 1
    reports_calls = False
    auto_compartments = None

    def __init__(self, gate, max_wait=1):
        self.core, self.workload = gate, gate.breaker.uncompartmented
        self.max_wait = max_wait
        self.now, self.led = 0, True

    def clock(self):
        return self.now

    def check_out(self, now):
        """The number of a slot, a refusal, or 0."""
        self.now = now
        slot = self.try_enter_fast()
        return Refusal("bulkhead_full", None) if slot < 0 else slot

    def preview(self, now):
        """The open circuit's refusal, or None."""
        retry_after = self.refuse_if_open(now)
        return None if retry_after is None else Refusal("circuit_open", retry_after)

    def checks_in(self, now, slot):
        """Releases a slot; True if the fast path did it."""
        self.now, self.led = now, True
        self.check_in(slot)
        return self.led

    def begins(self, now, slots=0):
        """A ticket, or 0."""
        self.now = now
        return self.begin(0, slots)

    def ends(self, now, ticket, outcome=Outcome.SUCCESS, slots=0, slot=0):
        """Ends a statement; True if the fast path did it."""
        self.now, self.led = now, True
        self.end(ticket, outcome, slots, slot)
        return self.led

    # The slow paths.

    def begin_slowly(self, slot):
        return 0

    def end_slowly(self, ticket, outcome, slots, slot=0):
        self.led = False

    def check_in_slowly(self, slot):
        self.led = False

    def fast_refusal_error(self, reason, retry_after):
        return ERRORS[reason]("db", reason, retry_after)


class Shell:
    """Makes a plain call's moves on the fast path where it is open, and on the slow path where it is not.

    There are two fast paths that must be the same: that of a call with one gate, and that of a gate.
    """

    def __init__(self, gate, max_wait=0):
        self.gate = gate
        self.locked = FastPaths(gate, max_wait)
        self.call_settings = CallSettings(self, "db", (self.locked,), None, None)
        self._turns = itertools.count()

    def enter(self, now, waiter):
        """A ticket or a refusal on the fast path, or the result of the slow path."""
        self.locked.now = now
        self.locked.max_wait = 0 if waiter is None else 1
        if next(self._turns) % 2:
            return self.locked.begins(now, 1) or self.gate.enter(now, waiter)
        call = Call()
        try:
            if call.try_enter_fast(self.call_settings, None):
                return call.ticket
        except RejectedError as error:
            return Refusal(error.reason, error.retry_after)
        return self.gate.enter(now, waiter)

    def leave(self, now, ticket, outcome=Outcome.SUCCESS):
        """Ends a call on the fast path or the slow path; returns its end, or True."""
        self.locked.now = now
        if outcome is Outcome.SUCCESS and next(self._turns) % 2:
            call = Call.waiting(self.call_settings, None)
            call.clock, call.ticket, call.outer = self.call_settings.clock, ticket, None
            return call.try_exit_fast(outcome) or self.gate.leave(now, ticket, outcome)
        return self.locked.ends(now, ticket, outcome, 1) or self.gate.leave(now, ticket, outcome)
