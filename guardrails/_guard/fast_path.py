"""Every fast path, once: the moves of a calm gate as straight lines without a lock.

Depends on gates and scopes; must not import gates, guards or callers.

While the circuit is closed, nobody waits and a slot is free, a move that goes well changes a few numbers.
Each move below looks at the gate, changes them, and is over. Where the fast path does not lead, it changes
nothing, and the move of the same name in `guardrails._core.gate` is made under the lock. The tests hold the
two equal.

**Nothing comes between the look and the last change.** CPython 3.11 to 3.15 looks at its *eval breaker*
before it hands the interpreter lock on, runs a signal handler, raises what another thread has sent, or
(from 3.12 on) collects garbage. It does so at the start of a function (RESUME), at a jump back
(JUMP_BACKWARD) and after a call of C code (CALL and its kin), and the JIT of 3.13 to 3.15 does it at the
same places. CPython 3.11 collects garbage where it makes an object that the collector tracks, such as a
tuple. So between the look and the last change there is no call, no jump back and no such object.
``tests/guard/test_fast_path.py`` reads the bytecode and says where there is.

What is compared and added there is float and int, and what is looked up is int: no code of anybody else
runs. A clock whose readings are something else closes the fast paths (`Gate.fast`), and so does an
interpreter that has no global lock, or is not CPython. In the middle of every other move they are closed
(`Gate.close_fast_paths`).

A tracer written in Python runs between two lines of ours. Each number is therefore changed in one line,
which reads and writes it. Such a tracer may let a call in that a moment later had been refused, but no slot
is lost. One that lets other threads run between two *opcodes* of these lines can lose one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._core.criticality import CRITICAL
from guardrails._core.gate import Gate
from guardrails._core.outcome import Outcome
from guardrails._core.workloads import Workload
from guardrails._runtime.scope import Scope, ambient, rank_of, ranked, touch
from guardrails._runtime.task_timeout import TaskTimeout
from guardrails.errors import Reason, RejectedError

__all__ = ["FULL", "FastCall", "FastGate"]

FULL = -1
"""In place of a slot's number: the bulkhead is full, and nobody else may wait."""

# Looked up once: this is the way every call goes. (An enum's members are slow to reach in Python 3.11.)
_SUCCESS, _FAILURE, _ABANDONED, _NEUTRAL = Outcome
_get_ambient, _set_ambient = ambient.get, ambient.set

_NONE: list[int] = []  # never written to


class FastGate:
    """The fast paths through one gate. A checkout takes a slot, and each statement on it is evidence.

    Attributes:
        core: The state.
        workload: The workload whose calls pass here; None where there are no compartments.
        clock: Where the time comes from.
        max_wait: Seconds a caller may queue for a slot.
        reports_calls: Whether a listener wants to know of each call's end.
    """

    __slots__ = ()

    core: Gate
    workload: Workload | None
    clock: Callable[[], float]
    max_wait: float
    reports_calls: bool

    # --- evidence, with a slot or without ------------------------------------------------------

    def begin(self, slot: int, slots: int = 0) -> int:
        """Starts a statement on a checked-out connection, or a call.

        Args:
            slot: The checkout's; `OPENING` for a new connection.
            slots: 1 for a call, which takes a slot; 0 for a statement, which has one.

        Returns:
            The ticket; 0 for a call that must ask ``enter``.
        """
        core, workload, now = self.core, self.workload, self.clock()
        bulkhead, breaker = core.bulkhead, core.breaker
        if now < core.fast_enter_until and (not slots or bulkhead.taken < bulkhead.limit):
            if now > core.last:
                core.last = now
            ticket = breaker.last_ticket = breaker.last_ticket + 1
            breaker.in_flight[ticket] = core.last
            if workload is not None:
                breaker.workload_by_ticket[ticket] = workload
            if slots:
                core.admitted += 1
                bulkhead.taken += 1
            return ticket
        return 0 if slots else self.begin_slowly(slot)

    def end(self, ticket: int, outcome: Outcome, slots: int = 0) -> None:  # noqa: C901 - written out
        """Ends a statement, or a call, which gives its slot back."""
        core, workload = self.core, self.workload
        breaker = core.breaker
        try:
            now = self.clock()
            calm = now < core.fast_leave_until
        except Exception:  # noqa: BLE001 - the user's clock: the long way knows what to do
            now, calm = 0.0, False
        except BaseException:
            self.end_slowly(ticket, outcome, slots)
            raise
        failing, in_flight = breaker.pending_failures, breaker.in_flight
        if (
            calm
            and ticket > breaker.generation
            and ticket in in_flight
            and not self.reports_calls
            and (outcome is not _FAILURE or failing < breaker.failure_margin)
        ):
            if now > core.last:
                core.last = now
            del in_flight[ticket]
            if slots:
                core.bulkhead.taken -= 1
            if workload is not None and ticket in breaker.workload_by_ticket:
                workload = breaker.workload_by_ticket[ticket]
                del breaker.workload_by_ticket[ticket]
                if outcome is _SUCCESS:
                    workload.pending_successes += 1
                    workload.bad_calls = 0
                    workload.last_success_at = core.last
            if outcome is _SUCCESS:
                breaker.pending_successes += 1
                breaker.last_success_at = core.last
            elif outcome is _FAILURE:
                before, so_far = breaker.failures_after, breaker.pending_successes
                before[so_far] = before[so_far] + 1 if so_far in before else 1
                breaker.pending_failures = failing + 1
            elif outcome is _NEUTRAL:
                breaker.succeeded += 1
            else:
                breaker.abandoned += 1
        else:
            self.end_slowly(ticket, outcome, slots)

    # --- a slot without evidence ---------------------------------------------------------------

    def try_enter_fast(self) -> int:
        """Takes a slot for a checkout: its number; 0 where the fast path does not lead, or `FULL`."""
        core = self.core
        scope = _get_ambient()
        while scope is not None and scope.closed:
            scope = scope.outer
        if scope is not None:
            reserved = None if scope.request is None else scope.request.reservations_at(core)
            if reserved is not None:
                return self._take_reserved_slot(reserved)
            if ranked and rank_of(scope) != CRITICAL:
                return 0
        now, bulkhead = self.clock(), core.bulkhead
        out = (now if now > core.last else core.last), 0
        if now < core.fast_enter_until and bulkhead.taken < bulkhead.limit:
            if now > core.last:
                core.last = now
            slot = core.admitted = core.admitted + 1
            core.checkouts[slot] = out
            bulkhead.taken += 1
            return slot
        return FULL if self.refuse_if_full(now) else 0

    def _take_reserved_slot(self, reserved: dict[Any, tuple[Any, int]]) -> int:
        """Puts the slot to use that the current request has here."""
        core, now = self.core, self.clock()
        checkouts, slot = core.checkouts, reserved.get(core, (None, 0))[1]
        out = (now if now > core.last else core.last), 0
        # The look for who else has taken it over counts as one at the gate.
        if now < core.admits_until and core in reserved and slot in checkouts and not checkouts[slot][1]:
            if now > core.last:
                core.last = now
            del reserved[core]
            checkouts[slot] = out
            return slot
        return 0

    def check_in(self, slot: int) -> None:
        """Gives a checkout's slot back; 0 is one that was taken before the guard was there."""
        core = self.core
        checkouts = core.checkouts
        try:
            now = self.clock()
            free = now < core.fast_enter_until
        except Exception:  # noqa: BLE001 - likewise
            now, free = 0.0, False
        except BaseException:
            self.check_in_slowly(slot)
            raise
        # Not a probe's connection, whose lease must be looked at.
        if free and slot in checkouts and not checkouts[slot][1]:
            if now > core.last:
                core.last = now
            del checkouts[slot]
            core.bulkhead.taken -= 1
        else:
            self.check_in_slowly(slot)

    # --- refusals ------------------------------------------------------------------------------

    def refuse_if_open(self, now: float) -> float | None:
        """Seconds until the circuit, which is open for sure, may let somebody in; None where it may now."""
        core = self.core
        if now < core.fast_refuse_until:
            if now > core.last:
                core.last = now
            core.fast_refusals += 1
            return core.breaker.open_until - core.last
        return None

    def refuse_if_full(self, now: float) -> bool:
        """True if the bulkhead is full for sure, and so is its queue."""
        core = self.core
        bulkhead = core.bulkhead
        waits = self.max_wait > 0 and len(bulkhead.queue) < bulkhead.max_queue_length(now)
        if now < core.admits_until and bulkhead.taken >= bulkhead.limit and not waits:
            if now > core.last:
                core.last = now
            core.fast_full_refusals += 1
            return True
        return False

    def refuse_call(self, now: float) -> None:
        """Raises the error of a call that may not start, if the fast path knows that.

        Raises:
            RejectedError: It may not.
        """
        retry_after = self.refuse_if_open(now)
        if retry_after is not None:
            raise self.fast_refusal_error("circuit_open", retry_after)
        if self.refuse_if_full(now):
            raise self.fast_refusal_error("bulkhead_full", None)

    # --- where the fast path does not lead -----------------------------------------------------

    def begin_slowly(self, slot: int) -> int:
        """Starts a statement under the lock."""
        raise NotImplementedError

    def end_slowly(self, ticket: int, outcome: Outcome, slots: int) -> None:
        """Ends a statement or a call under the lock."""
        raise NotImplementedError

    def check_in_slowly(self, slot: int) -> None:
        """Gives a checkout's slot back under the lock."""
        raise NotImplementedError

    def fast_refusal_error(self, reason: Reason, retry_after: float | None) -> RejectedError:
        """Tells of a refusal and builds its error."""
        raise NotImplementedError


class FastCall(TaskTimeout):
    """The fast paths of a plain call: it takes a slot, is evidence, and has a deadline.

    Attributes:
        call_settings: What it has in common with all calls through its guard.
        timeout: Seconds it is given; None is unbounded.
        ticket: Its ticket at the only gate of its call; 0 where it has none.
        tickets: Where its call has several gates, its tickets, in the order of the gates.
    """

    # No constructor: one frame less for each guarded call. `try_enter_fast` fills in what every call has.
    __slots__ = ("call_settings", "ticket", "tickets", "timeout")

    call_settings: Any  # a CallSettings, which knows gates
    timeout: float | None
    ticket: int
    tickets: list[int]

    def try_enter_fast(self, call_settings: Any, timeout: float | None) -> bool:  # noqa: C901 - written out
        """Begins the call; False if it must ask `enter`, and a RejectedError if it may not start."""
        self.call_settings = call_settings
        self.timeout = timeout
        self.guard = self.owner = call_settings.owner
        self.clock = clock = call_settings.clock
        self.at = self.request = None
        self.closed = self.armed = False
        self.timed_task = self.ticket = 0
        self.tickets = _NONE
        gate, outer = call_settings.only_gate, _get_ambient()
        while outer is not None and outer.closed:
            outer = outer.outer
        self.outer = outer
        now = clock()
        if outer is not None:
            if not self._apply_outer_scope(outer, now):
                return False
        elif timeout is not None:
            self.at = now + timeout
        if gate is None:
            return self._enter_gates(now)
        core, workload = gate.core, gate.workload
        bulkhead, breaker = core.bulkhead, core.breaker
        # ``FastGate.begin`` once more: every call comes by.
        if now < core.fast_enter_until and bulkhead.taken < bulkhead.limit:
            if now > core.last:
                core.last = now
            self.ticket = ticket = breaker.last_ticket = breaker.last_ticket + 1
            breaker.in_flight[ticket] = core.last
            if workload is not None:
                breaker.workload_by_ticket[ticket] = workload
            core.admitted += 1
            bulkhead.taken += 1
        else:
            gate.refuse_call(now)
            return False
        if self.at is not None:
            try:
                _set_ambient(self)  # without a deadline there is nothing to find out from it
            except BaseException:
                self.abandon()
                raise
        return True

    def _apply_outer_scope(self, outer: Scope, now: float) -> bool:
        """Takes on what is around the call; False if that is more than a deadline and a request."""
        call_settings, request, own = self.call_settings, outer.request, self.timeout
        root, clock = call_settings.root, self.clock
        self.request = request
        if request is not None:
            touch(outer, call_settings)
        if ranked and rank_of(outer) != CRITICAL:
            return False
        around: Scope | None = outer
        while around is not None:
            if around.guard is not None and not around.closed and around.guard.call_settings.root is root:
                return False
            request = around.request
            if request is around and request.reserved and not call_settings.attached:
                return False
            around = around.outer
        if own is not None:
            self.at = now + own
        at, owner = outer.at, outer.owner
        if at is not None:
            if (
                at <= now
                or outer.clock is not clock
                or (owner is not None and owner.call_settings.root is root)
            ):
                return False
            if self.at is None or at <= self.at:
                self.limit = self.at
                self.at = at
                self.owner = owner
                self.timed_task = outer.timed_task
        return True

    def _enter_gates(self, now: float) -> bool:
        """Begins a call that passes several gates; or none, where a pool's checkout takes the slot."""
        call_settings, place = self.call_settings, 0
        self.tickets = tickets = [*call_settings.no_tickets]
        try:
            for gate in call_settings.gates:
                auto_compartments = gate.auto_compartments
                if call_settings.attached:
                    if now >= gate.core.admits_until:
                        return False
                    if (
                        auto_compartments is not None
                        and not auto_compartments.divided
                        and auto_compartments.sole is not gate
                    ):
                        return False  # it must hear of this workload first
                else:
                    # Neighbours that share slots are asked for them under the lock.
                    tickets[place] = ticket = 0 if auto_compartments is not None else gate.begin(0, 1)
                    place += 1
                    if not ticket:
                        return False
            if self.at is not None or call_settings.attached:
                _set_ambient(self)
        except BaseException:
            self.abandon()
            raise
        return True

    def try_exit_fast(self, outcome: Outcome) -> bool:
        """Ends the call; False if it must `leave`."""
        gate, ticket = self.call_settings.only_gate, self.ticket
        if self.armed and self.fired:
            return False
        try:
            now = self.clock()
        except BaseException:
            self.abandon()
            raise
        if self.at is not None and now > self.at:
            return False
        if gate is None or outcome is not _SUCCESS or gate.reports_calls:
            return False
        core, workload = gate.core, gate.workload
        breaker = core.breaker
        # ``FastGate.end`` once more, for a success.
        if now < core.fast_leave_until and ticket > breaker.generation and ticket in breaker.in_flight:
            if now > core.last:
                core.last = now
            del breaker.in_flight[ticket]
            breaker.pending_successes += 1
            breaker.last_success_at = core.last
            if workload is not None and ticket in breaker.workload_by_ticket:
                workload = breaker.workload_by_ticket[ticket]
                del breaker.workload_by_ticket[ticket]
                workload.pending_successes += 1
                workload.bad_calls = 0
                workload.last_success_at = core.last
            core.bulkhead.taken -= 1
            self.ticket = 0
            # Whoever still has the scope, this context included, steps over it from now on.
            self.closed = True
        else:
            return False
        if self.armed:
            del self.timers.armed[self]
        if self.outer is not None:
            self.step_out()
        return True

    def step_out(self) -> None:
        """Makes the enclosing scope the current one again.

        Where there is none, a plain guard's call does without: the next one takes its place in the context,
        and whoever looks before that steps over a closed scope.
        """
        self.request = None
        if _get_ambient() is self:
            _set_ambient(self.outer)

    def abandon(self) -> None:
        """Gives everything back, without evidence; once more if that is interrupted."""
        try:
            self.release(_ABANDONED)
        except BaseException:
            self.release(_ABANDONED)
            raise

    def release(self, outcome: Outcome) -> None:
        """Gives everything back."""
        raise NotImplementedError
