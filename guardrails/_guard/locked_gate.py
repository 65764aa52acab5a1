"""A gate with a lock and a clock. Depends on the core and the runtime; must not import guards.

A *step* is: lock, read the clock, make one move of the gate, unlock, act. Waking waiters, notifying
listeners, logging and raising happen after the lock is released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from time import monotonic as _monotonic
from typing import Any, Concatenate, ParamSpec, TypeVar

from guardrails._core.breaker import CallEnd, Transition
from guardrails._core.bulkhead import Waiter
from guardrails._core.gate import Gate, Refusal, SlotsChanged
from guardrails._core.outcome import Outcome
from guardrails._core.shadow import UNCOUNTED
from guardrails._core.shadow_queue import Late
from guardrails._core.workloads import Workload
from guardrails._guard.attachment import FleetMember
from guardrails._guard.error_classes import OWN_ERRORS
from guardrails._guard.fast_path import FULL, FastGate
from guardrails._guard.gate_reports import GateReports
from guardrails._runtime.fork import LockOwner, check_process, fork_aware, renew_after_fork
from guardrails._runtime.guard_log import GuardLog, log
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import (
    Scope,
    ambient,
    current,
    rank_of,
    would_not_run,
)
from guardrails._runtime.waiters import TaskWaiter, ThreadWaiter, WakeableWaiter, on_event_loop
from guardrails._util.names import fields_of
from guardrails.errors import (
    Reason,
    RejectedError,
)
from guardrails.events import Listener

__all__ = ["LockedGate", "all_gates"]

P = ParamSpec("P")
T = TypeVar("T")

# Looked up once: an enum's members are slow to reach in Python 3.11.
_ABANDONED = Outcome.ABANDONED

_FULL = Refusal("bulkhead_full", None)

_SHORTEST_PART = 0.001
"""Seconds. A caller that waits looks for a slot that has become usable at most once in this time."""

_get_ambient = ambient.get


class LockedGate(GateReports, FastGate, LockOwner):
    """One guard's gate, shared by threads and event loops.

    Attributes:
        core: The state. Only steps and the fast paths change it.
        workload: The workload of the calls that come through this object; None without compartments.
        workload_gates: This gate for the calls of each compartment.
        parent: The parent guard's gate for this compartment's calls; None for an outermost guard.
        max_wait: Longest time in seconds that a caller waits for a slot.
        deferred: Moves that were requested during a step of the same thread, to be made at its end.
        auto_compartments: The automatic compartments that this gate is one of; None for other gates.
        refused: Counted by a `WorkloadGate` only.
        share_slots: Called when an adaptive limit has changed, to fit the compartments to it.
        servers: Iterates over the gates of the servers to which the calls go, for a gate that stands for
            several of them; None for other gates. It is read to the end only if no server admits calls.
        fleet_member: The guard's part in a fleet; None without one. It keeps the fast paths closed until the
            first caller has come here.
    """

    auto_compartments: Any = None
    refused: int = 0
    fleet_member: FleetMember | None

    __slots__ = (
        "__weakref__",
        "deferred",
        "fleet_member",
        "max_wait",
        "parent",
        "servers",
        "share_slots",
        "workload",
        "workload_gates",
    )

    def __init__(
        self,
        name: str,
        core: Gate,
        *,
        clock: Callable[[], float],
        max_wait: float,
        listeners: Iterable[Listener] = (),
    ) -> None:
        super().__init__(name, listeners)
        self.core = core
        self.clock = clock
        self.max_wait = max_wait
        self.errors = OWN_ERRORS
        self.deferred: list[Callable[[float], object]] = []
        self.fleet_member = None
        self.workload: Workload | None = None
        self.parent: WorkloadGate | None = None
        self.share_slots: Callable[[], object] = int
        self.servers: Callable[[], Iterable[LockedGate]] | None = None
        self.workload_gates: list[WorkloadGate] = []
        self.report.gates.add(self)
        renew_after_fork(self)

    def join(self, report: GuardLog) -> None:
        """Logs this gate's refusals in the log of the guard whose compartment it belongs to."""
        self.report = report
        report.gates.add(self)

    def workload_gate(self, below: LockedGate, *, judged: bool) -> WorkloadGate:
        """Makes this gate's `WorkloadGate` for the calls of a compartment.

        Args:
            below: The compartment's own gate.
            judged: False if this gate has no circuit, which could judge the workload.
        """
        workload = self.step(self.core.add_workload, below.core.breaker) if judged else None
        workload_gate = below.parent = WorkloadGate(self, workload)
        with self.lock:
            self.workload = self.core.breaker.uncompartmented
            self.workload_gates.append(workload_gate)
        return workload_gate

    # --- one step ------------------------------------------------------------------------------

    def step(self, move: Callable[Concatenate[float, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Makes one move of the gate in a step: under the lock, at the present time."""
        return self._make(self.clock, move, *args, **kwargs)

    def _release_step(self, move: Callable[Concatenate[float, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Makes a move that releases something. It must succeed even if the user's clock raises."""
        return self._make(self._safe_now, move, *args, **kwargs)

    def _make(
        self,
        clock: Callable[[], float],
        move: Callable[Concatenate[float, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        check_process()
        todo: list[tuple[int, Waiter | Transition | Refusal | Late | SlotsChanged]] = []
        core, inside_another = self.core, self._in_step()
        with self.lock:
            core.close_fast_paths()
            breaker, now = core.breaker, clock()
            if now >= breaker.next_overdue_at and self.clock is _monotonic:
                self._exclude_pauses(now)
            outside, breaker.caller_workload = breaker.caller_workload, self.workload
            nested, core.nested = core.nested, inside_another
            try:
                result = move(now, *args, **kwargs)
            finally:
                breaker.caller_workload, core.nested = outside, nested
            while self.deferred and not inside_another:
                self.deferred.pop(0)(self._safe_now())
            if core.outbox:
                todo = [(self.next_number(), item) for item in core.outbox]
                core.outbox.clear()
        if todo:
            self._act(todo)
        return result

    def _act(self, todo: list[tuple[int, Waiter | Transition | Refusal | Late | SlotsChanged]]) -> None:
        """Does what a step asks for, without the lock."""
        # First wake the waiters: they must not wait for the listeners.
        for _, item in todo:
            if isinstance(item, WakeableWaiter) and not item.wake():
                self.step(self.core.abandon, item)  # its event loop is closed: release its slot
        for seq, item in todo:
            if isinstance(item, Transition):
                self.report_transition(seq, item)
                if self.parent is not None and item.new == "open":
                    self.parent.step(self.parent.core.reevaluate)
            elif isinstance(item, SlotsChanged):
                self.share_slots()
            elif isinstance(item, Late):
                self.report_would_reject(seq, item.refusal, item.call.origin)
                if item.call.owner is not None:
                    item.call.owner.leave_model()
            elif isinstance(item, Refusal):
                scope = current()
                self.report_would_reject(seq, item, None if scope is None else scope.request)

    def _exclude_pauses(self, now: float) -> None:
        """Excludes a pause of this process from the durations of calls, before they become overdue."""
        breaker = self.core.breaker
        breaker.exclude_pause(*pause_detector.latest(now))
        if breaker.slow_after < math.inf:
            pause_detector.wake(now + 2 * breaker.slow_after + 1)

    def _safe_now(self) -> float:
        try:
            return self.clock() + 0.0  # raises for a reading that is not a number
        except Exception:  # noqa: BLE001 - logged; the slot must be released all the same
            words = "the clock of guard %r raised; for this step time stands still"
            log.exception(words, self.name, extra=fields_of(self.name))
            return self.core.last

    def _in_step(self) -> bool:
        held: bool = self.lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001 - as Condition does
        return held

    def _defer(self, move: Callable[[float], object]) -> bool:
        """Defers a move to the end of the step that this thread is in; False if it is in none.

        The garbage collector and signal handlers may run in the middle of a step. They may end calls and
        return connections there.
        """
        if self._in_step():
            self.deferred.append(move)
            return True
        return False

    # --- admission -----------------------------------------------------------------------------

    def enter(
        self,
        *,
        checkout: bool = False,
        budget: float | None = None,
        wait: Callable[[Any], Any] | None = None,
        may_wait: bool = True,
    ) -> int:
        """Takes a slot for a thread, and waits for one in the queue if none is free.

        Args:
            checkout: True takes a slot without evidence; see ``Gate.check_out``.
            budget: Seconds that the caller has left, a limit of the wait; None without a deadline.
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.
            may_wait: False refuses instead of waiting.

        Returns:
            The ticket, or for a checkout the number of its slot.

        Raises:
            RejectedError: The call may not start.
        """
        if (member := self.fleet_member) is not None and not member.started:
            member.admit(wait, may_wait=wait is not None or not on_event_loop())
        if not self.core.enforces:
            waits = may_wait and (wait is not None or not on_event_loop())
            number = self._let_in(budget, self.max_wait if waits else 0.0, checkout=checkout)
            if number:
                return number
        waiter: ThreadWaiter | TaskWaiter | None = None
        if may_wait and self.max_wait > 0:
            # Do not block an event loop: its tasks hold the slots that this caller would wait for.
            waiter = TaskWaiter() if wait is not None else None if on_event_loop() else ThreadWaiter()
        held = [0]
        try:
            verdict = self.request_slot(held, waiter, checkout=checkout)
            if verdict is None and isinstance(waiter, ThreadWaiter):
                wait_limit, late = self.wait_limit(waiter, budget)
                for seconds in self._parts_of_wait(waiter, wait_limit):
                    waiter.wait(seconds)
                verdict = self.end_wait(held, waiter, late, checkout=checkout)
            elif verdict is None and isinstance(waiter, TaskWaiter) and wait is not None:
                verdict = wait(self._queue(held, waiter, budget, checkout=checkout))
        except BaseException:
            self._abort_admission(held, waiter, checkout=checkout)
            raise
        if held[0]:
            return held[0]
        raise self.refusal_error(_refusal(verdict))

    async def enter_async(self, *, checkout: bool = False, budget: float | None = None) -> int:
        """Takes a slot for an asyncio task; see ``enter``."""
        held: list[int] = [0]
        refusal = await self._enter_async(held, checkout=checkout, budget=budget)
        if held[0]:
            return held[0]
        raise self.refusal_error(refusal)

    async def _enter_async(self, held: list[int], *, checkout: bool, budget: float | None) -> Refusal:
        if (member := self.fleet_member) is not None and not member.started:
            await member.admit_async()
        if not self.core.enforces:
            held[0] = self._let_in(budget, self.max_wait, checkout=checkout)
            if held[0]:
                return _FULL
        waiter = TaskWaiter() if self.max_wait > 0 else None
        try:
            verdict = self.request_slot(held, waiter, checkout=checkout)
            if verdict is None and waiter is not None:
                verdict = await self._queue(held, waiter, budget, checkout=checkout)
        except BaseException:
            self._abort_admission(held, waiter, checkout=checkout)
            raise
        return _refusal(verdict)

    def check_out(self, wait: Callable[[Any], Any] | None, *, budget: float | None = None) -> int:
        """Takes a slot for a pool's checkout and returns its number.

        Args:
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.
            budget: Seconds that the caller has left, a limit of the wait; None without a deadline.

        Raises:
            RejectedError: The checkout may not start.
        """
        slot = self.try_enter_fast()
        if slot == FULL:
            raise self.fast_refusal_error("bulkhead_full", None)
        if slot:
            return slot
        return self.enter(checkout=True, budget=budget, wait=wait)

    async def check_out_async(self, *, budget: float | None = None) -> int:
        """Takes a slot for an asyncio pool's checkout; see ``check_out``."""
        slot = self.try_enter_fast()
        if slot == FULL:
            raise self.fast_refusal_error("bulkhead_full", None)
        return slot or await self.enter_async(checkout=True, budget=budget)

    def check_out_now(self) -> int:
        """Takes a slot for a pool's checkout without waiting; see ``check_out``."""
        return self.enter(checkout=True, may_wait=False)

    # --- in shadow, and off --------------------------------------------------------------------

    def _let_in(self, budget: float | None, max_wait: float, *, checkout: bool) -> int:
        """Admits a call in any case; see ``Gate.let_in``. 0 if the guard enforces by now."""
        core, scope, held = self.core, current(), [0]
        request = None if scope is None else scope.request
        try:
            judged, reserved = not would_not_run(scope, core), self._reservations()
            if reserved is not None and judged:
                verdict = self.step(core.take_over, reserved, held, checkout=checkout)
                if held[0]:
                    return held[0]
                judged = not isinstance(verdict, Refusal)
            waits_for_itself = scope is not None and not checkout and self._holds_all(scope)
            options = {"checkout": checkout, "judged": judged, "waits_for_itself": waits_for_itself}
            self.step(core.let_in, held, rank_of(scope), max_wait, budget, request, **options)
        except BaseException:
            self._abort_admission(held, None, checkout=checkout)
            raise
        return held[0]

    def _holds_all(self, scope: Scope | None) -> bool:
        """True if the calls around the caller have every slot, so that it would wait for itself."""
        held = 0
        while scope is not None:
            guard: Any = None if scope.closed else scope.guard
            held += guard is not None and any(gate.core is self.core for gate in guard.call_settings.gates)
            scope = scope.outer
        return held >= self.core.bulkhead.limit

    def let_pass(self) -> int:
        """Admits a call that an earlier gate would have refused."""
        held = [0]
        try:
            self.step(self.core.let_in, held, judged=False)
        except BaseException:
            self._abort_admission(held, None, checkout=False)
            raise
        return held[0] or UNCOUNTED

    def _reservations(self) -> dict[Any, tuple[Any, int]] | None:
        """The reserved slots that include one of this gate for the current request; None without one."""
        scope = current()
        return None if scope is None or scope.request is None else scope.request.reservations_at(self.core)

    def request_slot(self, held: list[int], waiter: Waiter | None, *, checkout: bool) -> int | Refusal | None:
        """Takes the slot that the current request has reserved here, or requests another one.

        Returns:
            As ``Gate.enter``. None: ``waiter`` waits for at most ``wait_limit``; then ``end_wait`` follows.
        """
        core, scope = self.core, current()
        reserved = self._reservations()
        if reserved is not None:
            verdict = self.step(core.take_over, reserved, held, checkout=checkout)
            if verdict is not None:
                return verdict
        return self.step(core.check_out if checkout else core.enter, waiter, rank_of(scope), held)

    def end_wait(self, held: list[int], waiter: Waiter, late: Reason, *, checkout: bool) -> int | Refusal:
        """Admits or refuses a caller that was woken or whose time is up; see ``Gate.woken``."""
        core = self.core
        return self.step(core.woken_checkout if checkout else core.woken, waiter, late, held)

    async def _queue(
        self, held: list[int], waiter: TaskWaiter, budget: float | None, *, checkout: bool
    ) -> int | Refusal:
        wait_limit, late = self.wait_limit(waiter, budget)
        for seconds in self._parts_of_wait(waiter, wait_limit):
            await waiter.wait(seconds)
        return self.end_wait(held, waiter, late, checkout=checkout)

    def _abort_admission(self, held: list[int], waiter: Waiter | None, *, checkout: bool) -> None:
        """Releases the slot, ticket or place in the queue of an admission that an exception ended."""
        if held[0] and checkout:
            self.check_in_slowly(held[0])
        elif held[0]:
            self.end_slowly(held[0], _ABANDONED, 1)
        elif waiter is not None and not self._defer(lambda now: self.core.abandon(now, waiter)):
            self._release_step(self.core.abandon, waiter)

    def wait_limit(self, waiter: Waiter, budget: float | None) -> tuple[float, Reason]:
        """The seconds for which a caller in the queue may wait, and the reason of its refusal after them."""
        with self.lock:
            wait_limit = self.core.bulkhead.wait_limit(self.max_wait, self.core.last, waiter.rank)
        if budget is not None and budget < wait_limit:
            return budget, "deadline_spent"
        return wait_limit, "queue_timeout"

    def _parts_of_wait(self, waiter: Waiter, seconds: float) -> Iterator[float]:
        """Divides a wait at the times at which more slots become usable, and grants them there."""
        core = self.core
        while True:
            part = min(seconds, max(core.grows_at - core.last, _SHORTEST_PART))
            yield part
            seconds -= part
            if seconds <= 0 or waiter.verdict is not None:
                return
            self.step(core.advance_model)

    # --- reservations of a web request ---------------------------------------------------------

    async def reserve(self, *, budget: float | None = None) -> int | Refusal:
        """Reserves a slot for the first checkout or call inside the current request.

        Args:
            budget: Seconds that the request has left, a limit of the wait; None without a deadline.

        Returns:
            The slot, to be released with ``check_in`` unless it was taken over; or a refusal, which has been
            reported to the listeners.
        """
        slot, refusal, held = self.try_enter_fast(), _FULL, [0]
        if not slot:
            refusal = await self._enter_async(held, checkout=True, budget=budget)
            slot = held[0]
        if slot > 0 or slot < FULL:
            return slot
        self.report_refusal(refusal, at_edge=True)
        return refusal

    def preview(self) -> Refusal | None:
        """Returns the refusal that the circuit would give; None for a request that has reserved a slot."""
        if _get_ambient() is not None and self._reservations() is not None:
            return None
        if not self.core.enforces and (self.core.mode == "off" or would_not_run(current())):
            return None
        retry_after = self.refuse_if_open(self.clock())
        return self.step(self.core.preview) if retry_after is None else Refusal("circuit_open", retry_after)

    def preview_servers(self) -> Refusal | None:
        """Returns the refusal that the circuits of all servers would give; None if one of them is not open.

        Its time is the shortest of theirs. The refusal is counted here, once.
        """
        waits, now = list[float | None](), self.clock()
        for gate in self.servers() if self.servers is not None else ():
            breaker = gate.core.breaker
            if breaker.state == "forced_open":
                waits.append(None)
            elif breaker.state == "open" and now < breaker.open_until:
                waits.append(breaker.open_until - now)
            else:
                return None
        if not waits:
            return None
        self.step(self.core.refuse, "circuit_open")
        return Refusal("circuit_open", min((each for each in waits if each is not None), default=None))

    # --- refusals that were decided elsewhere ---------------------------------------------------

    def count_refusal(self, reason: Reason) -> RejectedError:
        """Counts and reports a refusal that was decided outside the gate; returns its error."""
        return self.refusal_error(self.step(self.core.refuse, reason))

    def refuse(self, reason: Reason) -> None:
        """Refuses a call for a reason that was decided outside the gate; in shadow only counts the refusal.

        Raises:
            RejectedError: The guard enforces.
        """
        if self.core.enforces:
            raise self.count_refusal(reason)
        core, reserved = self.core, self._reservations()
        runs = reserved is None or core.would_run(reserved[core][1])
        if core.mode == "shadow" and runs and not would_not_run(current(), core):
            self.step(core.refuse, reason)

    # --- release -------------------------------------------------------------------------------

    def end_slowly(self, ticket: int, outcome: Outcome, slots: int, slot: int = 0) -> None:
        """See FastGate."""
        core = self.core

        def end(now: float) -> CallEnd | None:
            return core.leave(now, ticket, outcome) if slots else core.end(now, ticket, outcome, slot)

        if not self._defer(end):
            self.report_end(outcome, self._release_step(end))

    def check_in_slowly(self, slot: int) -> None:
        """See FastGate."""
        if not self._defer(lambda now: self.core.check_in(now, slot)):
            self._release_step(self.core.check_in, slot)

    def begin_slowly(self, slot: int) -> int:
        """See FastGate."""
        held = [0]
        try:
            self.step(self.core.begin, slot, held)
        except BaseException:
            if held[0]:
                self.end(held[0], _ABANDONED)
            raise
        return held[0]

    # --- forks ---------------------------------------------------------------------------------

    def reset_in_child(self) -> None:
        """See ForkAware."""
        LockOwner.reset_in_child(self)
        for workload_gate in self.workload_gates:
            workload_gate.lock = self.lock
        self.deferred.clear()
        self.report.restart()
        self.core.drop_calls_and_waiters()


class WorkloadGate(LockedGate):
    """The parent's gate for the calls of one compartment.

    It shares the state, lock and listeners of the parent's gate, and records calls for the compartment's
    workload.

    Args:
        gate: The parent's gate.
        workload: The compartment's workload; None if the parent's gate has no circuit.

    Attributes:
        refused: Calls of the compartment that the parent's gate has refused.
    """

    __slots__ = ("gate", "refused")

    def __init__(self, gate: LockedGate, workload: Workload | None) -> None:  # forks are handled by ``gate``
        self.name, self.identity = gate.name, gate.identity
        self.lock = gate.lock
        self.listeners = gate.listeners
        self._wanted = gate._wanted  # noqa: SLF001 - the same gate
        self.reports_calls = gate.reports_calls
        self.report = gate.report
        self.errors = gate.errors
        self.core = gate.core
        self.clock = gate.clock
        self.max_wait = gate.max_wait
        self.deferred = gate.deferred
        self.fleet_member = gate.fleet_member
        self.workload_gates = []
        self.share_slots = gate.share_slots
        self.servers = None
        self.parent = gate.parent
        self.workload = workload
        self.gate = gate
        self.refused = 0
        self.last_error = ""

    def next_number(self) -> int:
        """See Notifier."""
        return self.gate.next_number()

    def report_refusal(self, refusal: Refusal, *, at_edge: bool = False) -> None:
        """See GateReports."""
        self.refused += 1  # no lock: an interrupt could leave it held, and this figure is only shown
        GateReports.report_refusal(self, refusal, at_edge=at_edge)

    def fast_refusal_error(self, reason: Reason, retry_after: float | None) -> RejectedError:
        """See GateReports."""
        self.refused += not self.listeners  # otherwise `report_refusal` counts it
        return GateReports.fast_refusal_error(self, reason, retry_after)


def all_gates() -> list[LockedGate]:
    """The gates of all guards and compartments in this process, in no order."""
    return [survivor for survivor in fork_aware() if isinstance(survivor, LockedGate)]


def _refusal(verdict: int | Refusal | None) -> Refusal:
    return verdict if isinstance(verdict, Refusal) else _FULL
