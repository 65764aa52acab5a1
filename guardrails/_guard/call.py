"""One call's call through a guard, from admission to release. Knows gates and deadlines, not callers."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from guardrails._core.criticality import CRITICAL
from guardrails._core.outcome import Outcome
from guardrails._guard.call_settings import CallSettings
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import Scope, ambient, close, enter, note_guard_error, rank_of, ranked, touch
from guardrails._runtime.task_timeout import TaskTimeout
from guardrails._runtime.timeouts import budget_of, set_deadline
from guardrails._runtime.unentered import check_entered
from guardrails.errors import CallTimeoutError

__all__ = ["Call"]

# Looked up once: this is the way every call goes. (An enum's members are slow to reach in Python 3.11.)
_SUCCESS = Outcome.SUCCESS
_get_ambient, _set_ambient = ambient.get, ambient.set


class Call(TaskTimeout):
    """One call through a guard, used once: the scope of its deadline, and the timer of that, in one.

    There are two ways through. The quick one is for the call that meets nothing on its way: one gate, no
    enclosing deadline, a closed circuit, a free slot; and coming out, a success in time. The long one is
    for all others and means the same.
    """

    # No constructor: one frame less for each guarded call. `try_enter_fast` fills in what every call has.
    __slots__ = ("_held", "_ticket", "_verdict", "call_settings", "timeout")

    call_settings: CallSettings
    timeout: float | None
    _ticket: int  # what the fast path took
    _held: list[tuple[LockedGate, int]]  # what the long way took; not there before it begins
    _verdict: Outcome

    @classmethod
    def waiting(cls, call_settings: CallSettings, timeout: float | None) -> Self:
        """Makes a call that is begun later, by ``with``."""
        call = cls()
        call.call_settings, call.timeout = call_settings, timeout
        call.at = call.outer = call.request = None
        call.closed, call.armed, call._ticket, call._verdict = False, False, 0, _SUCCESS
        return call

    def remaining(self) -> float | None:
        """Seconds this call has left, 0.0 when time is up, None when it is unbounded."""
        left = super().remaining()
        return None if left is None else max(0.0, left)

    def judge(self, result: object) -> None:
        """Applies the policy's ``is_failure_result`` to what the call is about to return."""
        self._verdict = self.call_settings.judge(result)

    # --- the two flavours differ in the wait and in the timer, in nothing else -----------------

    def __enter__(self) -> Self:
        self._check_new()
        if not self.try_enter_fast(self.call_settings, self.timeout):
            self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First of all the slot: an interrupt at a line before it would lose it.
        if error is None and self.try_exit_fast():
            if self.at is not None and _get_ambient() is not self:
                check_entered(self, _get_ambient())
            return
        try:
            if _get_ambient() is not self and (self.at is not None or not self._ticket):
                check_entered(self, _get_ambient())
        finally:
            self.leave(error)

    async def __aenter__(self) -> Self:
        self._check_new()
        if not self.try_enter_fast(self.call_settings, self.timeout):
            await self.enter_async()
        if self.at is not None and not self.call_settings.attached:
            self.arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self.try_exit_fast():
            self.leave_async(error)

    def _check_new(self) -> None:
        if hasattr(self, "owner"):
            raise RuntimeError("a call is used once; ask the guard for another")

    # --- the fast path -------------------------------------------------------------------------
    # ``Gate.enter`` and ``Gate.leave`` written out for a calm gate; the tests hold these two to them. From
    # the first number changed to the last nothing is called, so no signal and no collection comes between.
    # The lock is taken by hand: ``with`` costs as much again. `Gate.let_go` is for an interrupt just then.

    def try_enter_fast(self, call_settings: CallSettings, timeout: float | None) -> bool:  # noqa: C901 - written out
        """Begins the call; False if it must ask `enter`, and CircuitOpenError if it may not start."""
        self.call_settings = call_settings
        self.timeout = timeout
        self.guard = self.owner = call_settings.owner
        self.clock = clock = call_settings.clock
        self.at = self.request = None
        self.closed = self.armed = False
        self.timed_task = self._ticket = 0
        self._verdict = _SUCCESS
        gate, outer = call_settings.only_gate, _get_ambient()
        while outer is not None and outer.closed:
            outer = outer.outer
        self.outer = outer
        if (outer is not None and not self._alone_in(outer)) or gate is None:
            return False
        core, lock = gate.core, gate.lock
        bulkhead, breaker = core.bulkhead, core.breaker
        refused = 0.0
        try:
            lock.acquire()
            now = clock()
            last = core.last
            if now > last:
                last = now
            if now < core.fast_enter_until and bulkhead.taken < bulkhead.limit:
                core.last = last
                self._ticket = ticket = breaker.issued = breaker.issued + 1
                breaker.in_flight[ticket] = last
                if gate.part is not None:
                    breaker.owners[ticket] = gate.part
                core.admitted += 1
                bulkhead.taken += 1
            elif now < core.fast_refuse_until:
                core.last = last
                core.turned_away += 1
                refused = breaker.open_until - last
            lock.release()
            if gate.postponed:
                gate.catch_up()
            if timeout is not None and self._ticket:
                self.at = now + timeout
                _set_ambient(self)  # without a deadline there is nothing to find out from it
        except BaseException:
            gate.release_lock()
            self._settle(Outcome.ABANDONED)
            raise
        if refused:
            raise gate.shut_out(refused) if outer is None else note_guard_error(gate.shut_out(refused))
        return self._ticket > 0

    def _alone_in(self, outer: Scope) -> bool:
        """Whether an enclosing scope brings no deadline, no slot and no rank along."""
        self.request = request = outer.request
        touch(outer, self.call_settings)
        plain = outer.at is None and outer.guard is None and not (request is not None and request.reserved)
        return plain and (not ranked or rank_of(outer) == CRITICAL)

    def try_exit_fast(self) -> bool:
        """Whether a call that returned got out the fast path; if not, it must `leave`."""
        gate, ticket = self.call_settings.only_gate, self._ticket
        if gate is None or not ticket or self._verdict is not _SUCCESS or gate.tells_of_calls:
            return False
        if self.armed and self.fired:
            return False
        core, lock = gate.core, gate.lock
        breaker = core.breaker
        try:
            lock.acquire()
            now = self.clock()
            if (
                now < core.fast_leave_until
                and (self.at is None or now <= self.at)
                and ticket > breaker.generation
                and ticket in breaker.in_flight
            ):
                if now > core.last:
                    core.last = now
                del breaker.in_flight[ticket]
                breaker.unwritten += 1
                if gate.part is not None and (part := breaker.owners.pop(ticket, None)) is not None:
                    part.unwritten += 1
                    part.bad = 0
                    part.good_at = core.last
                core.bulkhead.taken -= 1
                # Whoever still has the scope, this context included, steps over it from now on.
                self.closed = True
            lock.release()
            if gate.postponed:
                gate.catch_up()
        except BaseException:
            gate.release_lock()
            self._settle(Outcome.ABANDONED)
            raise
        if self.armed and self.closed:
            del self.timers.armed[self]
        return self.closed

    def unarmed(self) -> None:
        """See Ringing: a call without its timer does not start."""
        self._settle(Outcome.ABANDONED)

    # --- the long way --------------------------------------------------------------------------

    def enter(self) -> None:
        """Passes the gates, waiting where there is a queue, or raises the RejectedError."""
        try:
            self._held = []
            budget = self._check_budget()
            for gate in self._gates():
                self._hold(gate, gate.enter(budget=budget))
            self._open()
        except BaseException:
            self._settle(Outcome.ABANDONED)
            raise

    async def enter_async(self) -> None:
        """Passes the gates, for an asyncio task; see `enter`."""
        try:
            self._held = []
            budget = self._check_budget()
            for gate in self._gates():
                self._hold(gate, await gate.enter_async(budget=budget))
            self._open()
        except BaseException:
            self._settle(Outcome.ABANDONED)
            raise

    def leave(self, error: BaseException | None) -> None:
        """Ends the call with what came out of it; once, so a second time does nothing."""
        outcome = Outcome.ABANDONED
        try:
            outcome = self._outcome(error)
            self._settle(outcome)
        except BaseException:  # the user's rules and clock, or Ctrl-C on the way: the slot goes back
            self._settle(outcome)
            raise

    def leave_async(self, error: BaseException | None) -> None:
        """Ends an asyncio task's call.

        Raises:
            CallTimeoutError: The task was cancelled by this call's own timer.
        """
        if not self.armed or not self.disarm(error):
            self.leave(error)
            return
        # Only a deadline this guard set itself says anything about the dependency.
        own = self.owner is self.call_settings.owner
        missed = self.timeout is not None and pause_detector.missed(self.timeout)
        self._settle(Outcome.FAILURE if own and not missed else Outcome.ABANDONED)
        given = self.timeout if own and self.timeout is not None else self.given
        self.call_settings.gates[-1].report.note_stopped()
        raise note_guard_error(CallTimeoutError(self.call_settings.name, given)) from error

    def _check_budget(self) -> float | None:
        budget = None if self.outer is None else budget_of(self)
        if budget is not None and budget <= 0:
            raise self.call_settings.gates[0].refuse("deadline_spent")
        return budget

    def _gates(self) -> tuple[LockedGate, ...]:
        gates = self.call_settings.gates
        if not self.call_settings.attached:
            return gates
        for gate in gates:
            refusal = gate.preview()
            if refusal is not None:
                raise gate.refused(refusal)
        return ()

    def _hold(self, gate: LockedGate, ticket: int) -> None:
        self._held = [*self._held, (gate, ticket)]

    def _open(self) -> None:
        now, held = self.clock(), self._held
        # Waiting at the parent's gate is not the dependency's slowness.
        for gate, ticket in held[:-1]:
            gate.step(gate.core.restart, ticket)
        set_deadline(self, now)
        if held and self.owner is not self.call_settings.owner and self.at is not None and self.at <= now:
            raise self.call_settings.gates[0].refuse("deadline_spent")  # it passed while the call queued
        enter(self)

    def _outcome(self, error: BaseException | None) -> Outcome:
        outcome = self._verdict if error is None else self.call_settings.classify(error)
        own = self.at is not None and self.owner is self.call_settings.owner
        if outcome is _SUCCESS and own and self.at is not None and self.clock() > self.at:
            return Outcome.FAILURE  # a synchronous call that came back after its deadline
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        close(self)
        if self._ticket:
            self._held, self._ticket = [(self.call_settings.gates[0], self._ticket)], 0
        held = getattr(self, "_held", [])
        while held:
            gate, ticket = held[-1]
            try:
                gate.leave(ticket, outcome)
            except BaseException:  # Ctrl-C: once more, as nothing is settled twice; then the other gates
                try:
                    gate.leave(ticket, outcome)
                finally:
                    held.pop()
                    self._settle(outcome)
                raise
            held.pop()
