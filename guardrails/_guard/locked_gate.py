"""A gate with a lock and a clock: each move is one step. Knows no callers' code.

A step is: lock, read the clock, decide, unlock, act. Waking waiters, telling listeners, logging and
raising happen after the lock has been let go.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from time import monotonic as _monotonic
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from guardrails._core.breaker import Ended, Transition
from guardrails._core.bulkhead import Waiter
from guardrails._core.criticality import CRITICAL
from guardrails._core.gate import Gate, Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.workloads import Workload
from guardrails._runtime.fork import check_process, fork_aware, renew_after_fork
from guardrails._runtime.guard_log import GuardLog, log
from guardrails._runtime.notifier import Notifier
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import current, note_guard_error, rank_of, ranked
from guardrails._runtime.waiters import TaskWaiter, ThreadWaiter, WakeableWaiter, on_event_loop
from guardrails.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    CommitUnknownError,
    DeadlineSpentError,
    Reason,
    RejectedError,
    ShedError,
)
from guardrails.events import CallFinished, CallRejected, Listener

__all__ = ["ErrorClasses", "LockedGate", "all_gates"]

P = ParamSpec("P")
T = TypeVar("T")

# Looked up once: an enum's members are slow to reach in Python 3.11.
_SUCCESS, _NEUTRAL = Outcome.SUCCESS, Outcome.NEUTRAL

# An exception's own constructor has all there is to do; what the class adds are names for it.
_new_error: Callable[..., RejectedError] = CircuitOpenError.__new__

_CROWDED = Refusal("bulkhead_full", None)
_NO_ROOM = -1


class ErrorClasses(NamedTuple):
    """The classes of the errors that one guard raises."""

    rejected: Mapping[Reason, type[RejectedError]]
    timeout: type[CallTimeoutError]
    commit_unknown: type[CommitUnknownError]

    @classmethod
    def of(
        cls,
        circuit_open: type[CircuitOpenError],
        bulkhead_full: type[BulkheadFullError],
        deadline_spent: type[DeadlineSpentError],
        shed: type[ShedError],
        timeout: type[CallTimeoutError],
        commit_unknown: type[CommitUnknownError],
    ) -> ErrorClasses:
        """Sorts the classes by the reason of a refusal."""
        rejected: dict[Reason, type[RejectedError]] = {
            "circuit_open": circuit_open,
            "bulkhead_full": bulkhead_full,
            "queue_timeout": bulkhead_full,
            "deadline_spent": deadline_spent,
            "shed": shed,
        }
        return cls(rejected, timeout, commit_unknown)


OWN_ERRORS = ErrorClasses.of(
    CircuitOpenError, BulkheadFullError, DeadlineSpentError, ShedError, CallTimeoutError, CommitUnknownError
)


class LockedGate(Notifier):
    """One guard's gate, shared by threads and event loops.

    Attributes:
        core: The state; touched only in a step.
        part: The workload whose calls pass here; None where there are no compartments.
        lanes: The lanes of its compartments.
        above: Of a compartment, its lane through the parent's gate.
        clock: Where the time comes from.
        max_wait: Seconds a caller may queue for a slot.
        postponed: Moves that came up in the middle of a step and wait for its end.
        errors: The classes of the errors it raises.
    """

    __slots__ = ("__weakref__", "above", "clock", "errors", "lanes", "max_wait", "part", "postponed")

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
        self.postponed: list[Callable[[float], object]] = []
        self.part: Workload | None = None
        self.above: Lane | None = None
        self.lanes: list[Lane] = []
        self.report.gates.add(self)
        renew_after_fork(self)

    def join(self, report: GuardLog) -> None:
        """Has this gate's refusals told with those of the guard that it is a compartment of."""
        self.report = report
        report.gates.add(self)

    def lane(self, below: LockedGate) -> Lane:
        """The way through this gate for the calls of a compartment, given its own gate."""
        lane = below.above = Lane(self, self.step(self.core.split, below.core.breaker))
        with self.lock:
            self.part = self.core.breaker.direct
            self.lanes.append(lane)
        return lane

    # --- one step ------------------------------------------------------------------------------

    def step(self, move: Callable[Concatenate[float, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Makes one move of the gate, then does what it asks for."""
        return self._make(self.clock, move, *args, **kwargs)

    def _step_out(self, move: Callable[Concatenate[float, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A step that gives something back, which must work whatever the user's clock does."""
        return self._make(self._moment, move, *args, **kwargs)

    def _make(
        self,
        clock: Callable[[], float],
        move: Callable[Concatenate[float, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        check_process()
        todo: list[tuple[int, Waiter | Transition]] = []
        core, inside_another = self.core, self._in_a_step()
        with self.lock:
            core.pause()
            breaker, now = core.breaker, clock()
            if now >= breaker.quiet_until and self.clock is _monotonic:
                self._look_back(now)
            outside, breaker.asking = breaker.asking, self.part
            try:
                result = move(now, *args, **kwargs)
            finally:
                breaker.asking = outside
            while self.postponed and not inside_another:
                self.postponed.pop(0)(self._moment())
            if inside_another:
                core.pause()  # a signal handler's step, in the middle of one that goes on
            if core.outbox:
                todo = [(self.next_number(), item) for item in core.outbox]
                core.outbox.clear()
        # Who has a slot now does not wait for the listeners.
        for _, item in todo:
            if isinstance(item, WakeableWaiter) and not item.wake():
                self.step(core.abandon, item)  # its event loop is gone: pass the slot on
        for seq, item in todo:
            if isinstance(item, Transition):
                self.tell_change(seq, item)
                if self.above is not None and item.new == "open":
                    self.above.step(self.above.core.consider)
        return result

    def _look_back(self, now: float) -> None:
        """Before calls become overdue: takes back the time in which this process could not look."""
        breaker = self.core.breaker
        breaker.forgive(*pause_detector.latest(now))
        if breaker.slow_after < math.inf:
            pause_detector.wake(now + 2 * breaker.slow_after + 1)

    def _moment(self) -> float:
        try:
            return self.clock() + 0.0  # what is no number cannot be added
        except Exception:  # noqa: BLE001 - logged; a slot goes back whatever the user's clock does
            log.exception("the clock of guard %r raised; for this step time stands still", self.name)
            return self.core.last

    def _in_a_step(self) -> bool:
        held: bool = self.lock._is_owned()  # type: ignore[attr-defined] # noqa: SLF001 - as Condition does
        return held

    def release_lock(self) -> None:
        """Gives the lock back if an interrupt (Ctrl-C, a signal's exception) came while it was held."""
        if self._in_a_step():
            self.lock.release()

    def _postpone(self, move: Callable[[float], object]) -> bool:
        """Puts a move off to the end of the step this thread is in; False if it is in none.

        The garbage collector runs where it likes, even in the middle of a step of ours, and there and
        then ends calls and returns connections that nobody holds any more. A signal handler may, too.
        """
        if self._in_a_step():
            self.postponed.append(move)
            return True
        return False

    def catch_up(self) -> None:
        """Makes the moves that were postponed during a quick step, unless that is itself inside a step."""
        if not self._in_a_step():
            self.step(self.core.refresh)

    # --- the fast paths ------------------------------------------------------------------------
    # While the circuit is closed and nobody waits, a move of a pool that goes well changes a few numbers; and
    # so does a refusal, while the bulkhead has no room or the circuit is open. `_try_enter_fast`, `preview`,
    # `check_in`, `begin` and `end` are ``Gate.check_out`` and so on, written out for that; the tests hold
    # them to it. They exist because every statement comes through here, and under overload every request. As
    # in `_call`, the lock is taken by hand, and from the first number changed to the last nothing is called.

    # --- coming in -----------------------------------------------------------------------------

    def enter(self, *, checkout: bool = False, budget: float | None = None) -> int:
        """Takes a slot for a thread, waiting a little if there is none free.

        Args:
            checkout: True takes a slot without evidence; see ``Gate.check_out``.
            budget: Seconds the caller has left, which bound the wait.

        Returns:
            The ticket, or for a checkout the number of its slot.

        Raises:
            RejectedError: The call may not start.
        """
        if self.core.reserved and (ticket := self._take_over(checkout=checkout)):
            return ticket
        # Blocking the event loop would stop the very callers whose slots this one waits for.
        waiter = ThreadWaiter() if self.max_wait > 0 and not on_event_loop() else None
        core = self.core
        verdict = self.step(core.check_out if checkout else core.enter, waiter, rank_of(current()))
        if verdict is None and waiter is not None:
            patience, late = self._patience(waiter, budget)
            try:
                waiter.wait(patience)
            except BaseException:
                self._abandon(waiter)
                raise
            verdict = self.step(core.woken_checkout if checkout else core.woken, waiter, late)
        return self._admitted(verdict)

    async def enter_async(self, *, budget: float | None = None) -> int:
        """Takes a slot for an asyncio task; see ``enter``."""
        if self.core.reserved and (ticket := self._take_over(checkout=False)):
            return ticket
        waiter = TaskWaiter() if self.max_wait > 0 else None
        verdict = self.step(self.core.enter, waiter, rank_of(current()))
        if verdict is None and waiter is not None:
            late = await self._queue(waiter, budget)
            verdict = self.step(self.core.woken, waiter, late)
        return self._admitted(verdict)

    def check_out(self, wait: Callable[[Any], Any] | None, *, budget: float | None = None) -> int:
        """Takes a slot for a pool's checkout and returns its number.

        Args:
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.
            budget: Seconds the caller has left, which bound the wait.

        Raises:
            RejectedError: There is no slot in time.
        """
        if self.core.reserved and (slot := self._take_over(checkout=True)):
            return slot
        rank = rank_of(current()) if ranked else CRITICAL
        if rank == CRITICAL and (slot := self._try_enter_fast(reserve=False)):
            if slot == _NO_ROOM:
                raise self.refused(_CROWDED)
            return slot
        if wait is None:
            return self.enter(checkout=True, budget=budget)
        waiter = TaskWaiter() if self.max_wait > 0 else None
        verdict = self.step(self.core.check_out, waiter, rank)
        if verdict is None and waiter is not None:
            late = wait(self._queue(waiter, budget))
            verdict = self.step(self.core.woken_checkout, waiter, late)
        return self._admitted(verdict)

    def _try_enter_fast(self, *, reserve: bool) -> int:
        """The number of a slot the fast path, or `_NO_ROOM`; 0 where it does not lead."""
        core, lock, slot, crowded = self.core, self.lock, 0, False
        bulkhead = core.bulkhead
        try:
            lock.acquire()
            now = self.clock()
            if now < core.fast_enter_until and bulkhead.taken < bulkhead.limit:
                if now > core.last:
                    core.last = now
                slot = core.admitted = core.admitted + 1
                core.checkouts[slot] = (core.last, 0)
                bulkhead.taken += 1
                if reserve:
                    core.reserved[slot] = None
            elif now < core.admits_until:
                if now > core.last:
                    core.last = now
                crowded = self.max_wait <= 0 or len(bulkhead.queue) >= bulkhead.room(core.last)
                core.crowded_out += crowded
            lock.release()
        except BaseException:
            self.release_lock()
            if slot:
                self._check_in(slot)
            raise
        if self.postponed:
            self.catch_up()
        return _NO_ROOM if crowded else slot

    async def check_out_async(self, *, budget: float | None = None) -> int:
        """Takes a slot for an asyncio pool's checkout; see ``check_out``."""
        if self.core.reserved and (slot := self._take_over(checkout=True)):
            return slot
        return self._admitted(await self._slot_async(budget, reserve=False))

    def check_out_now(self) -> int:
        """Takes a slot for a pool's checkout without waiting, from wherever; see ``check_out``."""
        if self.core.reserved and (slot := self._take_over(checkout=True)):
            return slot
        return self._admitted(self.step(self.core.check_out, None, rank_of(current())))

    async def _slot_async(self, budget: float | None, *, reserve: bool) -> int | Refusal:
        core = self.core
        rank = rank_of(current()) if ranked else CRITICAL
        if rank == CRITICAL and (slot := self._try_enter_fast(reserve=reserve)):
            return _CROWDED if slot == _NO_ROOM else slot
        waiter = TaskWaiter() if self.max_wait > 0 else None
        verdict = self.step(core.check_out, waiter, rank)
        if verdict is None and waiter is not None:
            late = await self._queue(waiter, budget)
            verdict = self.step(core.woken_checkout, waiter, late)
        if reserve and isinstance(verdict, int):
            self.step(core.reserve, verdict)
        return verdict or _CROWDED

    # --- for a request, before the work in it --------------------------------------------------

    async def reserve(self, *, budget: float | None = None) -> int | Refusal:
        """Takes a slot that the first checkout or call inside the current request will take over.

        Args:
            budget: Seconds the request has left, which bound the wait.

        Returns:
            The slot, to be given back with ``give_back`` whether it was used or not; or a refusal, of
            which the listeners have been told.
        """
        verdict = await self._slot_async(budget, reserve=True)
        if isinstance(verdict, Refusal):
            self.tell_refusal(verdict)
        return verdict

    def give_back(self, slot: int) -> None:
        """Gives a reserved slot back; one that was taken over is not the request's any more."""
        if slot in self.core.reserved:
            with self.lock:
                self.core.reserved.pop(slot, None)
            self.check_in(slot)

    def preview(self) -> Refusal | None:
        """Refuses what the circuit would refuse anyway; a request that has a slot here has asked before."""
        core, lock, refusal = self.core, self.lock, None
        if core.reserved and self in _reserved_here():
            return None
        try:
            lock.acquire()
            now = self.clock()
            if now < core.fast_refuse_until:
                if now > core.last:
                    core.last = now
                refusal = Refusal("circuit_open", core.breaker.open_until - core.last)
                core.turned_away += 1
            lock.release()
        except BaseException:
            self.release_lock()
            raise
        if self.postponed:
            self.catch_up()
        return refusal or self.step(core.preview)

    def _take_over(self, *, checkout: bool) -> int:
        slot = _reserved_here().pop(self, 0)
        verdict = self.step(self.core.take_over, slot, checkout=checkout) if slot else None
        return 0 if verdict is None else self._admitted(verdict)

    async def _queue(self, waiter: TaskWaiter, budget: float | None) -> Reason:
        patience, late = self._patience(waiter, budget)
        try:
            await waiter.wait(patience)
        except BaseException:
            self._abandon(waiter)
            raise
        return late

    def _abandon(self, waiter: Waiter) -> None:
        if not self._postpone(lambda now: self.core.abandon(now, waiter)):
            self._step_out(self.core.abandon, waiter)

    def _patience(self, waiter: Waiter, budget: float | None) -> tuple[float, Reason]:
        with self.lock:
            patience = self.core.bulkhead.patience(self.max_wait, self.core.last, waiter.rank)
        if budget is not None and budget < patience:
            return budget, "deadline_spent"
        return patience, "queue_timeout"

    def _admitted(self, verdict: int | Refusal | None) -> int:
        if isinstance(verdict, int):
            return verdict
        raise self.refused(verdict or _CROWDED)

    def shut_out(self, retry_after: float) -> RejectedError:
        """Like ``refused``, for the one refusal that there may be many of."""
        if not self.report.scheduled:
            self.report.schedule()
        if self.listeners:
            self.tell_refusal(Refusal("circuit_open", retry_after))
        return _new_error(self.errors.rejected["circuit_open"], self.name, "circuit_open", retry_after)

    def refused(self, refusal: Refusal) -> RejectedError:
        """Tells the listeners of a refusal and builds its error, a new one each time."""
        self.tell_refusal(refusal)
        reason, retry_after = refusal
        return note_guard_error(self.errors.rejected[reason](self.name, reason, retry_after))

    def tell_refusal(self, refusal: Refusal) -> None:
        """Tells the listeners of a refusal that nobody raises."""
        if not self.report.scheduled:
            self.report.schedule()
        if self.listeners and self.wanted(CallRejected):
            reason, retry_after = refusal
            self.tell(
                CallRejected, at=self.clock(), seq=self.next_number(), reason=reason, retry_after=retry_after
            )

    def refuse(self, reason: Reason) -> RejectedError:
        """Counts a refusal decided outside the gate and builds its error."""
        return self.refused(self.step(self.core.refuse, reason))

    # --- going out -----------------------------------------------------------------------------

    def leave(self, ticket: int, outcome: Outcome) -> None:
        """Ends a plain call: evidence and slot in one step."""
        if not self._postpone(lambda now: self.core.leave(now, ticket, outcome)):
            self._tell_end(outcome, self._step_out(self.core.leave, ticket, outcome))

    def check_in(self, slot: int) -> None:
        """Gives a checkout's slot back; 0 is one that was taken before the guard was there."""
        core, lock, done = self.core, self.lock, False
        checkouts = core.checkouts
        try:
            lock.acquire()
            now = self.clock()
            # Not for a probe's connection, whose lease must be looked at.
            if now < core.fast_enter_until and slot in checkouts and not checkouts[slot][1]:
                if now > core.last:
                    core.last = now
                del checkouts[slot]
                core.bulkhead.taken -= 1
                done = True
            lock.release()
        except Exception:  # noqa: BLE001 - the user's clock: the long way knows what to do
            self.release_lock()
        except BaseException:
            self.release_lock()
            if not done:
                self._check_in(slot)
            raise
        if self.postponed:
            self.catch_up()
        if not done:
            self._check_in(slot)

    def _check_in(self, slot: int) -> None:
        if not self._postpone(lambda now: self.core.check_in(now, slot)):
            self._step_out(self.core.check_in, slot)

    # --- evidence without a slot ---------------------------------------------------------------

    def begin(self, slot: int) -> int:
        """Starts a statement on a checked-out connection and returns its ticket."""
        core, lock, ticket = self.core, self.lock, 0
        try:
            lock.acquire()
            now = self.clock()
            if now < core.fast_enter_until:
                if now > core.last:
                    core.last = now
                breaker = core.breaker
                ticket = breaker.issued = breaker.issued + 1
                breaker.in_flight[ticket] = core.last
                if self.part is not None:
                    breaker.owners[ticket] = self.part
            lock.release()
        except BaseException:
            self.release_lock()
            if ticket:
                self._end(ticket, Outcome.ABANDONED)
            raise
        if self.postponed:
            self.catch_up()
        return ticket or self.step(core.begin, slot)

    def end(self, ticket: int, outcome: Outcome) -> None:  # noqa: C901 - written out
        """Ends a statement."""
        core, lock, done = self.core, self.lock, False
        if (outcome is _SUCCESS or outcome is _NEUTRAL) and not self.tells_of_calls:
            breaker, good = core.breaker, outcome is _SUCCESS
            try:
                lock.acquire()
                now = self.clock()
                if (
                    now < core.fast_leave_until
                    and ticket > breaker.generation
                    and ticket in breaker.in_flight
                ):
                    if now > core.last:
                        core.last = now
                    del breaker.in_flight[ticket]
                    part = None if self.part is None else breaker.owners.pop(ticket, None)
                    if good:
                        breaker.unwritten += 1
                        breaker.back_at = core.last
                        if part is not None:
                            part.unwritten += 1
                            part.bad = 0
                            part.good_at = core.last
                    else:
                        breaker.succeeded += 1
                    done = True
                lock.release()
            except Exception:  # noqa: BLE001 - likewise
                self.release_lock()
            except BaseException:
                self.release_lock()
                if not done:
                    self._end(ticket, outcome)
                raise
            if self.postponed:
                self.catch_up()
        if not done:
            self._end(ticket, outcome)

    def _end(self, ticket: int, outcome: Outcome) -> None:
        if not self._postpone(lambda now: self.core.end(now, ticket, outcome)):
            self._tell_end(outcome, self._step_out(self.core.end, ticket, outcome))

    def _tell_end(self, outcome: Outcome, ended: Ended | None) -> None:
        if self.tells_of_calls and ended is not None:
            now, seq = self.core.last, self.next_number()
            self.tell(
                CallFinished, at=now, seq=seq, outcome=outcome, duration=ended.duration, slow=ended.slow
            )

    # --- forks ---------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:
        """Takes the lock, so that a child inherits no half-made step; False if it could not."""
        return self.lock.acquire(timeout=seconds)

    def unpause(self) -> None:
        """Gives the lock back."""
        self.lock.release()

    def start_afresh(self) -> None:
        """In the child of a fork: a lock nobody holds, and no calls, since none of their threads exists."""
        self.lock = threading.RLock()
        for lane in self.lanes:
            lane.lock = self.lock
        self.postponed.clear()
        self.report.scheduled = False
        self.core.forget_everyone()


class Lane(LockedGate):
    """A gate as the calls of one compartment pass it: the same gate, lock and listeners, its own workload.

    Args:
        gate: The parent's gate.
        part: The compartment's workload.
    """

    __slots__ = ("gate",)

    def __init__(self, gate: LockedGate, part: Workload) -> None:  # the gate itself looks after forks
        self.name = gate.name
        self.lock = gate.lock
        self.listeners = gate.listeners
        self._wanted = gate._wanted  # noqa: SLF001 - the same gate
        self.tells_of_calls = gate.tells_of_calls
        self.report = gate.report
        self.errors = gate.errors
        self.core = gate.core
        self.clock = gate.clock
        self.max_wait = gate.max_wait
        self.postponed = gate.postponed
        self.lanes = []
        self.above = gate.above
        self.part = part
        self.gate = gate

    def next_number(self) -> int:
        """See Telling."""
        return self.gate.next_number()

    # A slot that is reserved at the gate is reserved for whoever comes by any lane.

    def __eq__(self, other: object) -> bool:
        return self.gate is (other.gate if isinstance(other, Lane) else other)

    def __hash__(self) -> int:
        return hash(self.gate)


def all_gates() -> list[LockedGate]:
    """The gates of all guards there are in this process, in no order."""
    return [survivor for survivor in fork_aware() if isinstance(survivor, LockedGate)]


def _reserved_here() -> dict[object, int]:
    """The slots the current request has reserved and nothing has taken over yet, by gate."""
    scope = current()
    request = None if scope is None else scope.request
    return {} if request is None else request.reserved
