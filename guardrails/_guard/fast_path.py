"""The fast path of each move of a gate, as straight lines without a lock.

Depends on the core and on scopes; must not import locked gates, guards or calls.

While the circuit is closed, the queue is empty and a slot is free, an ordinary move changes a few numbers.
Each fast path checks the gate, then changes the numbers. If its conditions do not hold, it changes nothing,
and the move of the same name in `guardrails._core.gate` is made under the lock. Tests prove that the two
agree.

**Nothing else can run between the check and the last change.** CPython 3.11 to 3.15 checks its *eval
breaker* before it releases the interpreter lock, runs a signal handler, raises an exception that another
thread has sent, or (from 3.12 on) collects garbage. It does so at the start of a function (RESUME), at a
backward jump (JUMP_BACKWARD) and after a call of C code (CALL and its variants). The JIT of 3.13 to 3.15 does
so at the same places. CPython 3.11 collects garbage when it creates an object that the collector tracks, such
as a tuple. So between the check and the last change there is no call, no backward jump and no such object.
``tests/guard/test_fast_path.py`` reads the bytecode and reports each violation.

These lines compare and add float and int and look up int, so no Python code of other classes runs. A clock
with readings of another type closes the fast paths (`Gate.fast`), and so does an interpreter that has no
global lock or is not CPython. They are closed during every other move (`Gate.close_fast_paths`).

A tracer written in Python runs between two lines. So each number is read and written in the same line. Such a
tracer may admit a call that would be refused a moment later, but no slot is lost. A tracer that lets other
threads run between two *opcodes* of these lines can lose a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._core.criticality import CRITICAL
from guardrails._core.gate import Gate
from guardrails._core.outcome import Outcome
from guardrails._core.workloads import Workload
from guardrails._runtime.scope import Scope, ambient, enforces, rank_of, ranked, touch
from guardrails._runtime.task_timeout import TaskTimeout
from guardrails.errors import Reason, RejectedError

__all__ = ["FULL", "FastCall", "FastGate"]

FULL = -1
"""Stands for a slot's number: the bulkhead is full, and so is its queue."""

# Looked up once: an enum's members are slow to reach in Python 3.11.
_SUCCESS, _FAILURE, _ABANDONED, _NEUTRAL = Outcome
_get_ambient, _set_ambient = ambient.get, ambient.set

_NONE: list[int] = []  # never written to


class FastGate:
    """The fast paths through one gate. A checkout takes a slot, and each statement on it is evidence.

    Attributes:
        core: The state.
        workload: The workload of the calls that come through this object; None without compartments.
        clock: Returns the time in seconds.
        max_wait: Longest time in seconds that a caller waits for a slot.
        reports_calls: True if a listener wants `CallFinished`.
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
            slot: The checkout's slot; `OPENING` for a new connection.
            slots: 1 for a call, which takes a slot; 0 for a statement, which has one.

        Returns:
            The ticket; 0 for a call that must take the slow path, ``enter``.
        """
        core, workload, now = self.core, self.workload, self.clock()
        bulkhead, breaker = core.bulkhead, core.breaker
        if now < core.fast_enter_until and (not slots or bulkhead.taken < bulkhead.usable):
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

    def end(  # noqa: C901, PLR0912 - written out
        self, ticket: int, outcome: Outcome, slots: int = 0, slot: int = 0
    ) -> None:
        """Ends a statement, or a call, which releases its slot.

        Args:
            ticket: Its ticket.
            outcome: Its outcome.
            slots: 1 for a call, 0 for a statement, as in ``begin``.
            slot: The slot of a statement's checkout; 0 without one.
        """
        core, workload = self.core, self.workload
        breaker = core.breaker
        good_since = breaker.good_since
        try:
            now = self.clock()
            calm = now < core.fast_leave_until
        except Exception:  # noqa: BLE001 - the user's clock raised: the slow path handles it
            now, calm = 0.0, False
        except BaseException:
            self.end_slowly(ticket, outcome, slots, slot)
            raise
        failing, in_flight = breaker.pending_failures, breaker.in_flight
        if (
            calm
            and ticket > breaker.generation
            and ticket in in_flight
            and not self.reports_calls
            and (outcome is not _FAILURE or failing < breaker.failure_margin)
            and (
                (first := slot not in good_since)
                or outcome is _NEUTRAL
                or (now if now > core.last else core.last) - good_since[slot] < breaker.slow_after
            )
        ):
            if now > core.last:
                core.last = now
            del in_flight[ticket]
            if slots:
                core.bulkhead.taken -= 1
            if outcome is _SUCCESS:
                breaker.succeeded += 1
                breaker.last_success_at = core.last
                if slot and slot in core.checkouts:  # `check_in` records it
                    if first:
                        good_since[slot] = core.last
                    if workload is not None and ticket in breaker.workload_by_ticket:
                        breaker.workload_by_ticket[-slot] = breaker.workload_by_ticket[ticket]
                        del breaker.workload_by_ticket[ticket]
                    return
            if not first and outcome is not _NEUTRAL:
                del good_since[slot]
            if workload is not None and ticket in breaker.workload_by_ticket:
                workload = breaker.workload_by_ticket[ticket]
                del breaker.workload_by_ticket[ticket]
                if outcome is _SUCCESS:
                    workload.pending_successes += 1
                    workload.bad_calls = 0
                    workload.last_success_at = core.last
            if outcome is _SUCCESS:
                breaker.pending_successes += 1
            elif outcome is _FAILURE:
                counts, so_far = breaker.failures_after, breaker.pending_successes
                counts[so_far] = counts[so_far] + 1 if so_far in counts else 1
                breaker.pending_failures = failing + 1
            elif outcome is _NEUTRAL:
                breaker.succeeded += 1
            else:
                breaker.abandoned += 1
        else:
            self.end_slowly(ticket, outcome, slots, slot)

    # --- a slot without evidence ---------------------------------------------------------------

    def try_enter_fast(self) -> int:
        """Takes a slot for a checkout. Returns its number, 0 for the slow path, or `FULL`."""
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
        if now < core.fast_enter_until and bulkhead.taken < bulkhead.usable:
            if now > core.last:
                core.last = now
            slot = core.admitted = core.admitted + 1
            core.checkouts[slot] = out
            bulkhead.taken += 1
            return slot
        return FULL if self.refuse_if_full(now) else 0

    def _take_reserved_slot(self, reserved: dict[Any, tuple[Any, int]]) -> int:
        """Uses the slot that the current request has reserved here; 0 for the slow path."""
        core, now = self.core, self.clock()
        checkouts, slot = core.checkouts, reserved.get(core, (None, 0))[1]
        out = (now if now > core.last else core.last), 0
        # Another call of the request may have taken it over: check again after the clock was read.
        if now < core.admits_until and core in reserved and slot in checkouts and not checkouts[slot][1]:
            if now > core.last:
                core.last = now
            del reserved[core]
            del checkouts[slot]
            checkouts[slot] = out  # behind those that began before it
            return slot
        return 0

    def check_in(self, slot: int) -> None:
        """Releases a checkout's slot, and records the success of its statements if all were good.

        0 is a slot that was taken before the guard was attached.
        """
        core, workload = self.core, self.workload
        checkouts, breaker = core.checkouts, core.breaker
        good_since = breaker.good_since
        try:
            now = self.clock()
            free = now < core.fast_enter_until
        except Exception:  # noqa: BLE001 - likewise
            now, free = 0.0, False
        except BaseException:
            self.check_in_slowly(slot)
            raise
        # A probe's permit is returned on the slow path.
        if (
            free
            and slot in checkouts
            and not checkouts[slot][1]
            and (slot not in good_since or now < core.fast_leave_until)
        ):
            if now > core.last:
                core.last = now
            del checkouts[slot]
            core.bulkhead.taken -= 1
            if slot in good_since:
                del good_since[slot]
                breaker.pending_successes += 1
                breaker.last_success_at = core.last
                if workload is not None and -slot in breaker.workload_by_ticket:
                    workload = breaker.workload_by_ticket[-slot]
                    del breaker.workload_by_ticket[-slot]
                    workload.pending_successes += 1
                    workload.bad_calls = 0
                    workload.last_success_at = core.last
            elif workload is not None and -slot in breaker.workload_by_ticket:
                del breaker.workload_by_ticket[-slot]  # its last statement was not good
        else:
            self.check_in_slowly(slot)

    # --- refusals ------------------------------------------------------------------------------

    def refuse_if_open(self, now: float) -> float | None:
        """Counts a refusal if the circuit is certainly open, and returns ``retry_after``; else None."""
        core = self.core
        if now < core.fast_refuse_until:
            if now > core.last:
                core.last = now
            core.fast_refusals += 1
            return core.breaker.open_until - core.last
        return None

    def refuse_if_full(self, now: float) -> bool:
        """Counts a refusal and returns True if the bulkhead and its queue are certainly full."""
        core = self.core
        bulkhead = core.bulkhead
        waits = self.max_wait > 0 and len(bulkhead.queue) < bulkhead.max_queue_length(now)
        if now < core.admits_until and bulkhead.taken >= bulkhead.usable and not waits and core.enforces:
            if now > core.last:
                core.last = now
            core.fast_full_refusals += 1
            return True
        return False

    def refuse_call(self, now: float) -> None:
        """Refuses a call if the fast path suffices to decide that.

        Raises:
            RejectedError: The circuit is open, or the bulkhead and its queue are full.
        """
        retry_after = self.refuse_if_open(now)
        if retry_after is not None:
            raise self.fast_refusal_error("circuit_open", retry_after)
        if self.refuse_if_full(now):
            raise self.fast_refusal_error("bulkhead_full", None)

    # --- the slow path -------------------------------------------------------------------------

    def begin_slowly(self, slot: int) -> int:
        """Starts a statement under the lock."""
        raise NotImplementedError

    def end_slowly(self, ticket: int, outcome: Outcome, slots: int, slot: int = 0) -> None:
        """Ends a statement or a call under the lock."""
        raise NotImplementedError

    def check_in_slowly(self, slot: int) -> None:
        """Releases a checkout's slot under the lock."""
        raise NotImplementedError

    def fast_refusal_error(self, reason: Reason, retry_after: float | None) -> RejectedError:
        """Reports a refusal and creates its error."""
        raise NotImplementedError


class FastCall(TaskTimeout):
    """The fast paths of a plain call: it takes a slot, is evidence, and has a deadline.

    Attributes:
        call_settings: The settings of all calls through its guard.
        timeout: Its own timeout in seconds; None is unbounded.
        ticket: Its ticket if the guard has one gate; 0 without one.
        tickets: Its tickets if the guard has several gates, in the order of the gates.
    """

    # No constructor, which saves a frame for each call: `try_enter_fast` sets the attributes.
    __slots__ = ("call_settings", "ticket", "tickets", "timeout")

    call_settings: Any  # a CallSettings, which this module must not import
    timeout: float | None
    ticket: int
    tickets: list[int]

    def try_enter_fast(self, call_settings: Any, timeout: float | None) -> bool:  # noqa: C901 - written out
        """Begins the call; False if it must take the slow path, `enter`.

        Raises:
            RejectedError: It may not start.
        """
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
        # A copy of ``FastGate.begin``: it saves each call a frame.
        if now < core.fast_enter_until and bulkhead.taken < bulkhead.usable:
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
                _set_ambient(self)  # a call without a deadline means nothing to the code inside it
            except BaseException:
                self.abandon()
                raise
        return True

    def _apply_outer_scope(self, outer: Scope, now: float) -> bool:
        """Applies the deadline and the request around the call; False if there is more around it."""
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
            if request is around and (
                (request.reserved and not call_settings.attached)
                or (request.client is not None and request.client.gone)
            ):
                return False
            around = around.outer
        if own is not None:
            self.at = now + own
        at, owner = outer.at, outer.owner
        if at is not None:
            if (
                at <= now
                or outer.clock is not clock
                or (
                    owner is not None
                    and (owner.call_settings.root is root or (root.core.enforces and not enforces(owner)))
                )
            ):
                return False
            if self.at is None or at <= self.at:
                self.limit = self.at
                self.at = at
                self.owner = owner
                self.timed_task = outer.timed_task
        return True

    def _enter_gates(self, now: float) -> bool:
        """Begins a call that has several gates, or takes no slot because a pool's checkout inside does."""
        call_settings, index = self.call_settings, 0
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
                        return False  # the compartments must note this workload first
                else:
                    # Compartments that share slots redistribute them under the lock.
                    tickets[index] = ticket = 0 if auto_compartments is not None else gate.begin(0, 1)
                    index += 1
                    if not ticket:
                        return False
            if self.at is not None or call_settings.attached:
                _set_ambient(self)
        except BaseException:
            self.abandon()
            raise
        return True

    def try_exit_fast(self, outcome: Outcome) -> bool:
        """Ends the call; False if it must take the slow path, `leave`."""
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
        # A copy of ``FastGate.end`` for a success.
        if now < core.fast_leave_until and ticket > breaker.generation and ticket in breaker.in_flight:
            if now > core.last:
                core.last = now
            del breaker.in_flight[ticket]
            breaker.succeeded += 1
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
            # The contexts that still have this scope, the caller's included, skip it from now on.
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

        A plain call without an enclosing scope skips this: `current` ignores a closed scope, and the next
        call replaces it in the context.
        """
        self.request = None
        if _get_ambient() is self:
            _set_ambient(self.outer)

    def abandon(self) -> None:
        """Releases slots and tickets without evidence. Repeats that if it is interrupted."""
        try:
            self.release(_ABANDONED)
        except BaseException:
            self.release(_ABANDONED)
            raise

    def release(self, outcome: Outcome) -> None:
        """Releases slots and tickets."""
        raise NotImplementedError
