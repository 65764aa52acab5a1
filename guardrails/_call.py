"""One call's passage through a guard, from admission to release. Knows doors and deadlines, not callers."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from guardrails._criticality import CRITICAL
from guardrails._deadline import Scope, ambient, close, enter, note_trouble, rank_of, ranked, touch
from guardrails._door import Door
from guardrails._outcome import Outcome
from guardrails._passage import Passage
from guardrails._pulse import pulse
from guardrails._ringing import Ringing
from guardrails._timeouts import budget_of, set_deadline
from guardrails._unseen import check_seen
from guardrails.errors import CallTimeoutError

__all__ = ["Call"]

# Looked up once: this is the way every call goes. (An enum's members are slow to reach in Python 3.11.)
_SUCCESS = Outcome.SUCCESS
_get_ambient, _set_ambient = ambient.get, ambient.set


class Call(Ringing):
    """One passage through a guard, used once: the scope of its deadline, and the alarm of that, in one.

    There are two ways through. The quick one is for the call that meets nothing on its way: one door, no
    enclosing deadline, a closed circuit, a free slot; and coming out, a success in time. The long one is
    for all others and means the same.
    """

    # No constructor: one frame less for each guarded call. `slip_in` fills in what every call has.
    __slots__ = ("_held", "_ticket", "_verdict", "passage", "timeout")

    passage: Passage
    timeout: float | None
    _ticket: int  # what the quick way took
    _held: list[tuple[Door, int]]  # what the long way took; not there before it begins
    _verdict: Outcome

    @classmethod
    def waiting(cls, passage: Passage, timeout: float | None) -> Self:
        """Makes a call that is begun later, by ``with``."""
        call = cls()
        call.passage, call.timeout = passage, timeout
        call.at = call.outer = call.request = None
        call.closed, call.armed, call._ticket, call._verdict = False, False, 0, _SUCCESS
        return call

    def remaining(self) -> float | None:
        """Seconds this call has left, 0.0 when time is up, None when it is unbounded."""
        left = super().remaining()
        return None if left is None else max(0.0, left)

    def judge(self, result: object) -> None:
        """Applies the policy's ``is_failure_result`` to what the call is about to return."""
        self._verdict = self.passage.judge(result)

    # --- the two flavours differ in the wait and in the alarm, in nothing else -----------------

    def __enter__(self) -> Self:
        self._check_new()
        if not self.slip_in(self.passage, self.timeout):
            self.come_in()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First of all the slot: an interrupt at a line before it would lose it.
        if error is None and self.slip_out():
            if self.at is not None and _get_ambient() is not self:
                check_seen(self, _get_ambient())
            return
        try:
            if _get_ambient() is not self and (self.at is not None or not self._ticket):
                check_seen(self, _get_ambient())
        finally:
            self.leave(error)

    async def __aenter__(self) -> Self:
        self._check_new()
        if not self.slip_in(self.passage, self.timeout):
            await self.come_in_async()
        if self.at is not None and not self.passage.attached:
            self.arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self.slip_out():
            self.leave_async(error)

    def _check_new(self) -> None:
        if hasattr(self, "owner"):
            raise RuntimeError("a call is used once; ask the guard for another")

    # --- the quick way -------------------------------------------------------------------------
    # ``Gate.enter`` and ``Gate.leave`` written out for a calm gate; the tests hold these two to them. From
    # the first number changed to the last nothing is called, so no signal and no collection comes between.
    # The lock is taken by hand: ``with`` costs as much again. `Door.let_go` is for an interrupt just then.

    def slip_in(self, passage: Passage, timeout: float | None) -> bool:  # noqa: C901 - written out
        """Begins the call; False if it must ask `come_in`, and CircuitOpenError if it may not start."""
        self.passage = passage
        self.timeout = timeout
        self.guard = self.owner = passage.owner
        self.clock = clock = passage.clock
        self.at = self.request = None
        self.closed = self.armed = False
        self.alarmed = self._ticket = 0
        self._verdict = _SUCCESS
        door, outer = passage.only_door, _get_ambient()
        while outer is not None and outer.closed:
            outer = outer.outer
        self.outer = outer
        if (outer is not None and not self._alone_in(outer)) or door is None:
            return False
        gate, lock = door.gate, door.lock
        bulkhead, breaker = gate.bulkhead, gate.breaker
        refused = 0.0
        try:
            lock.acquire()
            now = clock()
            last = gate.last
            if now > last:
                last = now
            if now < gate.free_until and bulkhead.taken < bulkhead.limit:
                gate.last = last
                self._ticket = ticket = breaker.issued = breaker.issued + 1
                breaker.in_flight[ticket] = last
                if door.part is not None:
                    breaker.owners[ticket] = door.part
                gate.admitted += 1
                bulkhead.taken += 1
            elif now < gate.shut_until:
                gate.last = last
                gate.turned_away += 1
                refused = breaker.open_until - last
            lock.release()
            if door.postponed:
                door.catch_up()
            if timeout is not None and self._ticket:
                self.at = now + timeout
                _set_ambient(self)  # without a deadline there is nothing to find out from it
        except BaseException:
            door.let_go()
            self._settle(Outcome.ABANDONED)
            raise
        if refused:
            raise door.shut_out(refused) if outer is None else note_trouble(door.shut_out(refused))
        return self._ticket > 0

    def _alone_in(self, outer: Scope) -> bool:
        """Whether an enclosing scope brings no deadline, no slot and no rank along."""
        self.request = request = outer.request
        touch(outer, self.passage)
        plain = outer.at is None and outer.guard is None and not (request is not None and request.reserved)
        return plain and (not ranked or rank_of(outer) == CRITICAL)

    def slip_out(self) -> bool:
        """Whether a call that returned got out the quick way; if not, it must `leave`."""
        door, ticket = self.passage.only_door, self._ticket
        if door is None or not ticket or self._verdict is not _SUCCESS or door.tells_of_calls:
            return False
        if self.armed and self.rung:
            return False
        gate, lock = door.gate, door.lock
        breaker = gate.breaker
        try:
            lock.acquire()
            now = self.clock()
            if (
                now < gate.calm_until
                and (self.at is None or now <= self.at)
                and ticket > breaker.era
                and ticket in breaker.in_flight
            ):
                if now > gate.last:
                    gate.last = now
                del breaker.in_flight[ticket]
                breaker.unwritten += 1
                if door.part is not None and (part := breaker.owners.pop(ticket, None)) is not None:
                    part.unwritten += 1
                    part.bad = 0
                    part.good_at = gate.last
                gate.bulkhead.taken -= 1
                # Whoever still has the scope, this context included, steps over it from now on.
                self.closed = True
            lock.release()
            if door.postponed:
                door.catch_up()
        except BaseException:
            door.let_go()
            self._settle(Outcome.ABANDONED)
            raise
        if self.armed and self.closed:
            del self.alarms.armed[self]
        return self.closed

    def unarmed(self) -> None:
        """See Ringing: a call without its alarm does not start."""
        self._settle(Outcome.ABANDONED)

    # --- the long way --------------------------------------------------------------------------

    def come_in(self) -> None:
        """Passes the doors, waiting where there is a queue, or raises the RejectedError."""
        try:
            self._held = []
            budget = self._check_budget()
            for door in self._doors():
                self._hold(door, door.enter(budget=budget))
            self._open()
        except BaseException:
            self._settle(Outcome.ABANDONED)
            raise

    async def come_in_async(self) -> None:
        """Passes the doors, for an asyncio task; see `come_in`."""
        try:
            self._held = []
            budget = self._check_budget()
            for door in self._doors():
                self._hold(door, await door.enter_async(budget=budget))
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
            CallTimeoutError: The task was cancelled by this call's own alarm.
        """
        if not self.armed or not self.silence(error):
            self.leave(error)
            return
        # Only a deadline this guard set itself says anything about the dependency.
        own = self.owner is self.passage.owner
        missed = self.timeout is not None and pulse.missed(self.timeout)
        self._settle(Outcome.FAILURE if own and not missed else Outcome.ABANDONED)
        given = self.timeout if own and self.timeout is not None else self.given
        self.passage.doors[-1].report.note_stopped()
        raise note_trouble(CallTimeoutError(self.passage.name, given)) from error

    def _check_budget(self) -> float | None:
        budget = None if self.outer is None else budget_of(self)
        if budget is not None and budget <= 0:
            raise self.passage.doors[0].refuse("deadline_spent")
        return budget

    def _doors(self) -> tuple[Door, ...]:
        doors = self.passage.doors
        if not self.passage.attached:
            return doors
        for door in doors:
            refusal = door.preview()
            if refusal is not None:
                raise door.refused(refusal)
        return ()

    def _hold(self, door: Door, ticket: int) -> None:
        self._held = [*self._held, (door, ticket)]

    def _open(self) -> None:
        now, held = self.clock(), self._held
        # Waiting at the parent's door is not the dependency's slowness.
        for door, ticket in held[:-1]:
            door.step(door.gate.restart, ticket)
        set_deadline(self, now)
        if held and self.owner is not self.passage.owner and self.at is not None and self.at <= now:
            raise self.passage.doors[0].refuse("deadline_spent")  # it passed while the call queued
        enter(self)

    def _outcome(self, error: BaseException | None) -> Outcome:
        outcome = self._verdict if error is None else self.passage.classify(error)
        own = self.at is not None and self.owner is self.passage.owner
        if outcome is _SUCCESS and own and self.at is not None and self.clock() > self.at:
            return Outcome.FAILURE  # a synchronous call that came back after its deadline
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        close(self)
        if self._ticket:
            self._held, self._ticket = [(self.passage.doors[0], self._ticket)], 0
        held = getattr(self, "_held", [])
        while held:
            door, ticket = held[-1]
            try:
                door.leave(ticket, outcome)
            except BaseException:  # Ctrl-C: once more, as nothing is settled twice; then the other doors
                try:
                    door.leave(ticket, outcome)
                finally:
                    held.pop()
                    self._settle(outcome)
                raise
            held.pop()
