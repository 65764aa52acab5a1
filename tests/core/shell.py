"""A gate behind a door of nothing but a lock and a clock, for the quick way that every call takes first."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from guardrails._call import Call
from guardrails._core.gate import Refusal
from guardrails._outcome import Outcome
from guardrails._passage import Passage
from guardrails.errors import CircuitOpenError


class Shell:
    """Makes a plain call's moves the quick way where it is open, and the long way where it is not."""

    def __init__(self, gate):
        self.gate = gate
        self.now = 0
        door = SimpleNamespace(
            gate=gate,
            lock=threading.RLock(),
            clock=lambda: self.now,
            postponed=(),
            tells_of_calls=False,
            shut_out=lambda retry_after: CircuitOpenError("db", "circuit_open", retry_after),
        )
        self.passage = Passage(self, "db", (door,), None, None)

    def enter(self, now, place):
        """A ticket or a refusal the quick way, or what the long way says."""
        self.now = now
        call = Call()
        try:
            if call.slip_in(self.passage, None):
                return call._ticket
        except CircuitOpenError as error:
            return Refusal(error.reason, error.retry_after)
        finally:
            call.closed = True  # leaves no scope behind
        return self.gate.enter(now, place)

    def leave(self, now, ticket):
        """Ends a call that went well the quick way, or the long way."""
        self.now = now
        call = Call.waiting(self.passage, None)
        call.clock, call._ticket, call._verdict = self.passage.clock, ticket, Outcome.SUCCESS
        return call.slip_out() or self.gate.leave(now, ticket, Outcome.SUCCESS)
