"""The circuit and the slots of one dependency behind one gate. Depends on breaker and bulkhead.

Must not import a clock, a lock, a log or an event loop. Each move takes ``now`` first and changes the state.
It leaves in ``outbox`` what its caller must do after releasing the lock: waiters to wake and transitions to
report.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from guardrails._core.adaptive import AdaptiveLimit
from guardrails._core.breaker import Breaker, CallEnd, Transition
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.criticality import CRITICAL
from guardrails._core.outcome import Outcome
from guardrails._core.priority_shares import PriorityShares
from guardrails._core.shadow import UNCOUNTED, Outside
from guardrails._core.shadow_queue import Late
from guardrails._core.window import NEVER
from guardrails._core.workloads import Workload
from guardrails._util.interpreter import threads_take_turns

if TYPE_CHECKING:
    from guardrails.errors import Reason

__all__ = ["OPENING", "Gate", "Refusal", "SlotsChanged"]

_T = TypeVar("_T")


LOCK_FREE = threads_take_turns()
"""True if threads may use the fast paths; see `guardrails._guard.fast_path`."""

OPENING = -1
"""Stands for the slot of work that opens a connection: its checkout is not known yet."""

_LATEST = 1e15
"""Seconds. Later readings of a clock are ignored: no working clock reaches them. So every sum is finite."""


class Refusal(NamedTuple):
    """The reason why a call may not start, and the seconds until one may; None if that is unknown."""

    reason: Reason
    retry_after: float | None


class SlotsChanged(NamedTuple):
    """An adaptive limit now lets in so many concurrent calls."""

    slots: int


class Gate(Outside):
    """One dependency's gate.

    The order is fixed: first the circuit, then a slot or the queue, and the circuit again for a caller that
    was woken in the queue. A plain call has a slot and is evidence, under one ticket (``enter``, ``leave``).
    In front of a connection pool the two are separate: a checkout has the slot (``check_out``, ``check_in``),
    and each statement on it is evidence (``begin``, ``end``).

    Attributes:
        adaptive: The limit that follows the throughput; None without one.
        last: The latest time seen. A clock that goes back counts as standing still.
        grows_at: The time at which the number of usable slots changes next; infinity without a ramp.
        admits_until: Before this time only the bulkhead refuses calls: the circuit admits all, no call
            becomes overdue, no slot becomes usable, and all calls have the default criticality. `NEVER` if
            that is not so. Each move sets this time and the next three, for the fast paths.
        fast_enter_until: Before this time a call needs only a free slot: moreover, the queue is empty.
        fast_leave_until: Before this time a call's success cannot change the circuit either.
        fast_refuse_until: Before this time the open circuit refuses every call.
        admitted: Slots given out.
        noncritical_admitted: Those of them that went to calls of another class than CRITICAL.
        releasing: The ticket, minus the slot's number of a checkout, the number of a call outside, or 0 for
            another slot, that is being released; else None. If an interrupt cuts the release short, the next
            move completes it.
        checkouts: (start, permit) of each checked-out connection, by the number of its slot. The permit is
            the ticket of the probe that the checkout stands for; 0 without one. For one that is
            held on purpose the start is infinite.
        adopted: Slots that were taken before the guard was attached.
        fast_refusals: Refusals of the open circuit on the fast path. ``rejected`` includes them.
        fast_full_refusals: Refusals of the full bulkhead on the fast path. ``rejected`` includes them.
        outbox: Waiters to wake, transitions to report, and in shadow the refusals that there would have been.
        fast: False closes the fast paths for good: there is no interpreter lock, or the clock's readings are
            objects whose comparison runs Python code.
        nested: True during a move that a signal handler makes in the middle of another move. The other one
            continues afterwards, so the fast paths stay closed.
    """

    __slots__ = (
        "_refusals",
        "adaptive",
        "admits_until",
        "admitted",
        "adopted",
        "breaker",
        "bulkhead",
        "checkouts",
        "fast",
        "fast_enter_until",
        "fast_full_refusals",
        "fast_leave_until",
        "fast_refusals",
        "fast_refuse_until",
        "grows_at",
        "nested",
        "noncritical_admitted",
        "outbox",
    )

    def __init__(self, breaker: Breaker, bulkhead: Bulkhead, adaptive: AdaptiveLimit | None = None) -> None:
        self.adaptive = adaptive
        self.breaker = breaker
        self.bulkhead = bulkhead
        self.last = NEVER
        self.grows_at = math.inf
        self.admitted = self.adopted = self.noncritical_admitted = 0
        self.releasing: int | None = None
        self.checkouts: dict[int, tuple[float, int]] = {}
        self._refusals: dict[str, int] = {}
        self.fast_refusals = self.fast_full_refusals = 0
        self.outbox: list[Waiter | Transition | Refusal | Late | SlotsChanged] = []
        self.fast, self.nested = LOCK_FREE, False
        self._start_outside()
        self.close_fast_paths()
        self._end_move(None)

    @property
    def rejected(self) -> dict[str, int]:
        """Refusals by reason."""
        counts: dict[str, int] = {**self._refusals}
        if self.fast_refusals:
            counts["circuit_open"] = counts.get("circuit_open", 0) + self.fast_refusals
        if self.fast_full_refusals:
            counts["bulkhead_full"] = counts.get("bulkhead_full", 0) + self.fast_full_refusals
        return counts

    @property
    def admits_all(self) -> bool:
        """True if the circuit admitted all calls at the latest time seen."""
        return self.last < self.admits_until

    @property
    def shared_slots(self) -> int:
        """The slots that compartments share: all, or those of an adaptive limit that is applied."""
        limit, applied = self.bulkhead.limit, self._applied
        return limit if applied is None else min(limit, applied.applied)

    @property
    def _applied(self) -> AdaptiveLimit | None:
        """The adaptive limit if it is applied."""
        adaptive = self.adaptive
        return adaptive if adaptive is not None and adaptive.enforces and self.enforces else None

    def close_fast_paths(self) -> None:
        """Closes the fast paths until a move ends, as a signal handler may interrupt this one."""
        self.admits_until = self.fast_enter_until = self.fast_leave_until = self.fast_refuse_until = NEVER

    # --- a plain call: a slot and evidence -----------------------------------------------------

    def enter(
        self, now: float, waiter: Waiter | None, rank: int = CRITICAL, held: list[int] | None = None
    ) -> int | Refusal | None:
        """Admits a call.

        Args:
            now: The time.
            waiter: Joins the queue if no slot is free; None does not wait.
            rank: The call's criticality; see `guardrails._core.criticality`.
            held: Its first item is set to the ticket when the slot is taken, so that the caller knows the
                ticket even if an interrupt prevents this method from returning it.

        Returns:
            The call's ticket, a refusal, or None if ``waiter`` is now in the queue.
        """
        now = self._begin_move(now)
        verdict = self._find_slot(now, waiter, rank)
        return self._end_move(self._take(now, rank, None, held) if verdict is True else verdict)

    def woken(
        self, now: float, waiter: Waiter, late: Reason = "queue_timeout", held: list[int] | None = None
    ) -> int | Refusal:
        """Admits or refuses a call whose wait has ended: it was woken, or its time is up.

        Args:
            now: The time.
            waiter: The caller's place in the queue.
            late: The reason of the refusal if it has got no slot.
            held: See ``enter``.
        """
        now = self._begin_move(now)
        asked = self.enforces and waiter.verdict != "let_in"
        verdict = self._decide_woken(now, waiter, late) if asked else self._let_in_woken(waiter, held)
        return self._end_move(self._take(now, waiter.rank, waiter, held) if verdict is True else verdict)

    def leave(self, now: float, ticket: int, outcome: Outcome) -> CallEnd | None:
        """Ends an admitted call: records its outcome, then releases its slot.

        Returns:
            Its duration and slowness. None for a ticket that has ended before: no slot is released again.
        """
        now = self._begin_move(now)
        if ticket in self.outside:
            self.leave_outside(now, ticket, outcome)
            return self._end_move(None)
        return self._end_move(self._end_call(now, ticket, outcome))

    def _end_call(self, now: float, ticket: int, outcome: Outcome) -> CallEnd | None:
        breaker = self.breaker
        if ticket in breaker.in_flight or ticket in breaker.overdue:
            self.releasing = ticket
        ended = breaker.end(ticket, outcome, now)
        self._collect_transitions()
        if self.releasing == ticket:
            self._release_slot(ticket)
        if ended is not None and not self.enforces:
            self.longest = max(self.longest, ended.duration)
        return ended

    # --- a pool: slots for checkouts, evidence from statements ---------------------------------

    def check_out(
        self, now: float, waiter: Waiter | None, rank: int = CRITICAL, held: list[int] | None = None
    ) -> int | Refusal | None:
        """Admits a checkout, as ``enter`` does a call; returns the number of its slot instead of a ticket."""
        now = self._begin_move(now)
        verdict = self._find_slot(now, waiter, rank)
        taken = self._take(now, rank, None, held, checkout=True) if verdict is True else verdict
        return self._end_move(taken)

    def woken_checkout(
        self, now: float, waiter: Waiter, late: Reason = "queue_timeout", held: list[int] | None = None
    ) -> int | Refusal:
        """Admits or refuses a checkout whose wait has ended, as ``woken`` does a call."""
        now = self._begin_move(now)
        asked = self.enforces and waiter.verdict != "let_in"
        verdict = self._decide_woken(now, waiter, late) if asked else self._let_in_woken(waiter, held)
        taken = self._take(now, waiter.rank, waiter, held, checkout=True) if verdict is True else verdict
        return self._end_move(taken)

    def hold_on_purpose(self, now: float, slot: int) -> None:
        """Leaves a checkout out of the age of the oldest one, until it ends: it may last for hours."""
        self._begin_move(now)
        if slot in self.checkouts:
            self.checkouts[slot] = (math.inf, self.checkouts[slot][1])
        self._end_move(None)

    def check_in(self, now: float, slot: int) -> None:
        """Releases a checkout's slot, once; 0 releases one of the adopted slots.

        If its statements were good, that is recorded as one success. A probe's checkout that ran no statement
        returns its permit.
        """
        now = self._begin_move(now)
        outside = -abs(slot)
        if outside in self.outside:
            self.leave_outside(now, outside, Outcome.ABANDONED)
        elif slot == 0 and self.adopted:
            self.releasing = 0
            self.adopted -= 1
            self._release_slot()
        elif slot:
            self._end_checkout(now, slot)
        self._end_move(None)

    def _end_checkout(self, now: float, slot: int) -> None:
        if slot in self.checkouts:
            self.releasing = -slot
            _, permit = self.checkouts[slot]
            del self.checkouts[slot]
            self.breaker.end_checkout(slot, permit, now)
            self._collect_transitions()
        if self.releasing == -slot:
            self._release_slot(-slot)

    def _release(self, number: int, outcome: Outcome, now: float, *, checkout: bool) -> None:
        if checkout:
            self._end_checkout(now, number)
        else:
            self._end_call(now, number, outcome)

    def adopt(self, now: float, count: int) -> None:
        """Counts slots that were taken before the guard was attached."""
        self._begin_move(now)
        self.bulkhead.taken += count
        if self.bulkhead.ranks is not None:
            self.bulkhead.ranks.held[CRITICAL] += count
        self.adopted += count
        self._end_move(None)

    def begin(self, now: float, slot: int, held: list[int] | None = None) -> int:
        """Starts a statement on a checked-out connection. The first one on a probe's connection is the probe.

        With `OPENING` for a slot it starts the opening of a connection, which in half-open is for a probe.
        """
        now = self._begin_move(now)
        self.breaker.tick(now)
        if not self.enforces:
            slot = self._slot_in_model(slot)
            if slot == UNCOUNTED:
                if held is not None:
                    held[0] = UNCOUNTED
                return int(self._end_move(UNCOUNTED))
        _, permit = self.checkouts.get(slot, (now, 0))
        if slot == OPENING:
            permit = self.breaker.unused_permit()
        self._collect_transitions()
        return self._end_move(self.breaker.begin_admitted(now, permit, held))

    def end(self, now: float, ticket: int, outcome: Outcome, slot: int = 0) -> CallEnd | None:
        """Ends a statement that ``begin`` has started on the checkout of ``slot``, once."""
        now = self._begin_move(now)
        if not self.enforces:
            slot = self._slot_in_model(slot)
        ended = self.breaker.end(ticket, outcome, now, slot if slot in self.checkouts else 0)
        self._collect_transitions()
        if ended is not None and not self.enforces:
            self.longest = max(self.longest, ended.duration)
        return self._end_move(ended)

    # --- a slot taken for a request, ahead of the work in it -----------------------------------

    def take_over(
        self, now: float, slots: dict[Gate, tuple[_T, int]], held: list[int] | None = None, *, checkout: bool
    ) -> int | Refusal | None:
        """Uses a reserved slot for a call or checkout, after checking the circuit again.

        Args:
            now: The time.
            slots: The slots that a request has reserved with ``check_out`` and not used yet, by gate. The
                slot of this gate is removed.
            held: Its first item is set to the result, unless that is a refusal; see ``enter``.
            checkout: True for a pool's checkout, False for a plain call.

        Returns:
            As ``check_out`` or ``enter``; None for a slot that is no longer reserved.
        """
        now = self._begin_move(now)
        slot = slots[self][1] if self in slots else 0
        if slot not in self.checkouts:
            return self._end_move(self._take_over_outside(slot, slots, held))
        breaker, ranks = self.breaker, self.bulkhead.ranks
        breaker.tick(now)
        permit = self._valid_permit(now, slot)
        # A probe that has its permit is admitted already.
        allowed = permit > 0 or breaker.allow_call(now)
        self._collect_transitions()
        if not allowed:
            del slots[self]
            self.releasing = -slot
            del self.checkouts[slot]
            self._release_slot(-slot)
            return self._end_move(self._circuit_open(now))
        if not permit:
            permit = breaker.acquire_permit(now)
        since, number, ticket = (now, permit), slot, permit or breaker.last_ticket + 1
        # As in ``_take``, nothing is called from here to the last change.
        del slots[self]
        del self.checkouts[slot]
        if checkout:
            self.checkouts[slot] = since  # behind those that began before it
        else:
            number = ticket
            breaker.last_ticket += not permit
            breaker.in_flight[ticket] = now
            if breaker.caller_workload is not None:
                breaker.workload_by_ticket[ticket] = breaker.caller_workload
            if ranks is not None and -slot in ranks.rank_by_number:
                ranks.rank_by_number[ticket] = ranks.rank_by_number[-slot]
                del ranks.rank_by_number[-slot]
        if held is not None:
            held[0] = number
        return self._end_move(number)

    def _valid_permit(self, now: float, slot: int) -> int:
        """Returns the permit of a reserved slot. If it has none, or the permit has expired, returns 0."""
        _, permit = self.checkouts[slot]
        if not permit or permit in self.breaker.permits:
            return permit
        self.breaker.end(permit, Outcome.ABANDONED, now)
        return 0

    # --- without a slot ------------------------------------------------------------------------

    def abandon(self, now: float, waiter: Waiter) -> None:
        """Gives up for a waiter that will not be resumed: takes it out of the queue or releases its slot."""
        self._begin_move(now)
        if not self.bulkhead.withdraw(waiter):
            self._release_granted(waiter)
        self._end_move(None)

    def refuse(self, now: float, reason: Reason) -> Refusal:
        """Counts a refusal that was decided elsewhere."""
        self._begin_move(now)
        return self._end_move(self._refuse(reason, None))

    def preview(self, now: float) -> Refusal | None:
        """Returns the refusal that the circuit would give to a call now; None if it would admit it."""
        now = self._begin_move(now)
        allowed = self.breaker.allow_call(now)
        self._collect_transitions()
        return self._end_move(None if allowed else self._circuit_open(now))

    def restart(self, now: float, ticket: int) -> None:
        """Restarts the duration of a call that was admitted here and then waited at another gate."""
        self.breaker.resume(ticket, self._begin_move(now))
        self._end_move(None)

    def watch_for_stalls(self, now: float, *, on: bool) -> None:
        """Switches the detection of stalls: for a pool, overdue statements in every slot are a stall."""
        self._begin_move(now)
        self.breaker.stall_slots = self.bulkhead.limit if on else None
        self._end_move(None)

    def add_workload(self, now: float, part: Breaker) -> Workload:
        """Adds a record for the calls of a compartment whose own circuit is ``part``."""
        breaker, now = self.breaker, self._begin_move(now)
        if breaker.uncompartmented is None:
            breaker.uncompartmented = breaker.watch_workload(None, now)
        return self._end_move(breaker.watch_workload(part, now))

    def reevaluate(self, now: float) -> None:
        """Evaluates the rules again, after the circuit of a compartment has opened."""
        self.breaker.reevaluate(self._begin_move(now))
        self._collect_transitions()
        self._end_move(None)

    def drop_calls_and_waiters(self) -> None:
        """Drops every call and every waiter: in the child of a fork none of their threads exists."""
        self.close_fast_paths()
        self.breaker.forget_calls()
        self.bulkhead.drop_all()
        self.adopted = self.unslotted = self.slots_of_ended = 0
        self.releasing = None
        self.checkouts.clear()
        self.outside.clear()
        self.events.clear()
        self.outbox.clear()
        self._end_move(None)

    def age_of_oldest(self, now: float) -> float | None:
        """The age of the oldest call or checkout in seconds; None without one.

        Raises:
            RuntimeError: Without the lock, if another thread begins or ends a call meanwhile.
        """
        # Each of these is in the order of start times, but for checkouts that are held on purpose.
        begun = (since for since, _ in self.checkouts.values() if since < math.inf)
        starts = list(islice(begun, 1))
        starts += islice(self.breaker.in_flight.values(), 1)
        starts += [since for since, _ in islice(self.breaker.overdue.values(), 1)]
        return now - min(starts) if starts else None

    def refresh(self, now: float) -> float:
        """Brings the state up to ``now``; returns the time that was used."""
        now = self._begin_move(now)
        self.breaker.tick(now)
        self._collect_transitions()
        return self._end_move(now)

    def resize(self, now: float, limit: int) -> None:
        """Changes the number of slots; never waits."""
        self._begin_move(now)
        if self.adaptive is not None:
            self.adaptive.resize(limit)
        self._fit_slots(limit)
        if self.breaker.stall_slots is not None:
            self.breaker.stall_slots = max(1, limit)
        self._end_move(None)

    def keep_open(self, now: float, seconds: float | None) -> None:
        """Changes the end of an open period: at least so many seconds from now; None ends it now."""
        now = self._begin_move(now)
        breaker = self.breaker
        if breaker.state == "open":
            breaker.open_until = now if seconds is None else max(breaker.open_until, now + seconds)
        self._end_move(None)

    def set_state(self, now: float, transition: str, cause: str = "manual") -> None:
        """Makes a manual transition.

        Args:
            now: The time.
            transition: ``"reset"``, ``"open"``, ``"half_open"``, or a state to hold.
            cause: For the first two, ``"divided"`` where compartments take over the circuit, and ``"fleet"``
                where a fleet does.
        """
        now = self._begin_move(now)
        breaker = self.breaker
        breaker.tick(now)
        if transition == "reset":
            breaker.reset(now, cause)
        elif transition == "open":
            breaker.open(now, cause)
        elif transition == "half_open":
            breaker.half_open(now)
        else:
            breaker.hold(transition, now)  # type: ignore[arg-type]
        self._collect_transitions()
        self._fit_slots(self.bulkhead.limit)  # a reset of a closed circuit is no transition, and ends a ramp
        self._end_move(None)

    # --- rules ---------------------------------------------------------------------------------

    def _begin_move(self, now: float) -> float:
        self.close_fast_paths()
        if type(now) is not float and type(now) is not int:
            self.fast = False
        if self.releasing is not None and not self.nested:
            self._complete_release(self.releasing)
        forward = self.last < now < _LATEST  # ignores a step back and NaN
        if self.events and not self.nested:
            self.catch_up(now if forward else self.last)
        if forward:
            self.last = now
        elif self.last == NEVER:  # the clock has not given a valid reading yet
            self.last = 0.0
        if self.last >= self.grows_at:
            self._fit_slots(self.bulkhead.limit)
        if self.adaptive is not None and not self.nested:
            self._adapt(self.adaptive, self.breaker.state)
        return self.last

    def _adapt(self, adaptive: AdaptiveLimit, state: str, *, at_once: bool = False) -> None:
        """Measures the time since the last move, and applies the limit that follows.

        Calls that run outside are not counted when they succeed, so nothing is learnt meanwhile.
        """
        served, applied = self.breaker.succeeded, adaptive.applied
        adaptive.pass_time(self.last, self.under_way)
        if self.unslotted or self.mode == "off" or state in {"open", "half_open", "forced_open"}:
            adaptive.restart(self.last, served)
        elif at_once or self.last >= adaptive.decides_at:
            adaptive.decide(self.last, served, applies=self._applied is not None, at_once=at_once)
            self._fit_slots(self.bulkhead.limit)
            if self._applied is not None and adaptive.applied != applied:
                # Also for a number that is tried: the only active compartment may be all there is.
                self.outbox.append(SlotsChanged(adaptive.applied))

    def _fit_slots(self, limit: int) -> None:
        """Sets the slots that are usable at the latest time seen, and grants those that are free."""
        breaker, applied = self.breaker, self._applied
        breaker.slot_cap = math.inf if applied is None else max(1, applied.applied)
        grows_at = math.inf if breaker.ramp is None else breaker.ramp.usable(self.last, limit)[1]
        self.outbox.extend(self.bulkhead.resize(limit, self._usable(self.last, limit)))
        if grows_at == math.inf:
            breaker.ramp = None
        self.grows_at = grows_at

    def usable_at(self, now: float) -> int:
        """The slots that are usable at a time."""
        return self._usable(now, self.bulkhead.limit)

    def _usable(self, now: float, limit: int) -> int:
        ramp, applied = self.breaker.ramp, self._applied
        usable = limit if ramp is None else ramp.usable(now, limit)[0]
        return usable if applied is None else min(usable, applied.applied)

    def _complete_release(self, number: int) -> None:
        """Completes a release that an interrupt has cut short."""
        breaker = self.breaker
        running = number in breaker.in_flight or number in breaker.overdue or -number in self.checkouts
        if running or self.outside.get(number, number) is None:
            self.releasing = None  # it had not begun: the interrupted caller repeats it
        else:
            breaker.good_since.pop(-number, None)
            breaker.workload_by_ticket.pop(number, None)
            self._release_slot(number)

    def _find_slot(self, now: float, waiter: Waiter | None, rank: int) -> bool | Refusal | None:
        allowed = self.breaker.allow_call(now)
        self._collect_transitions()
        if not allowed:
            return self._circuit_open(now)
        if rank != CRITICAL and self.bulkhead.ranks is None:
            self.bulkhead.ranks = PriorityShares(self.bulkhead.taken, self.bulkhead.queued_since, now)
            if self.admitted > self.noncritical_admitted or self.bulkhead.queue:
                self.bulkhead.ranks.note_request(CRITICAL, now)  # its time was not noted; perhaps just now
        if self.bulkhead.ranks is not None:
            return self._find_ranked(self.bulkhead.ranks, now, waiter, rank)
        if self.bulkhead.has_room():
            return True
        if waiter is None or not self._may_wait(waiter) or not self.bulkhead.try_queue(waiter, now):
            return self._refuse("bulkhead_full", None)
        return None

    def _may_wait(self, waiter: Waiter) -> bool:
        # No waiting in half-open: a probe must start now. A healthy workload's call is not a probe.
        waiter.workload = self.breaker.caller_workload
        return self.breaker.state != "half_open" or self.breaker.admits_healthy(waiter.workload)

    def _find_ranked(
        self, ranks: PriorityShares, now: float, waiter: Waiter | None, rank: int
    ) -> bool | Refusal | None:
        if self.bulkhead.has_room_for(ranks, rank, now):
            return True
        if waiter is not None and self._may_wait(waiter):
            waiter.rank = rank
            queued, shed = self.bulkhead.try_queue_ranked(ranks, waiter, now)
            if shed is not None:
                self.outbox.append(shed)
            if queued:
                return None
        return self._refuse("shed" if ranks.outranked(rank) else "bulkhead_full", None)

    def _take(
        self, now: float, rank: int, waiter: Waiter | None, held: list[int] | None, *, checkout: bool = False
    ) -> int:
        """Takes the free slot, or the one that was granted to ``waiter``.

        Nothing is called between the first and the last change, so an interrupt cannot leave a taken slot
        that is not in ``held``.
        """
        breaker, bulkhead = self.breaker, self.bulkhead
        ranks, workload, until = bulkhead.ranks, breaker.caller_workload, breaker.probe_until(now)
        number = self.admitted = self.admitted + 1
        ticket = 0
        if until is not None or not checkout:
            ticket = breaker.last_ticket = breaker.last_ticket + 1
            if until is not None:
                breaker.permits[ticket] = until
            if workload is not None:
                breaker.workload_by_ticket[ticket] = workload
        if checkout:
            self.checkouts[number] = (now, ticket)
        else:
            breaker.in_flight[ticket] = now
            number = ticket
        if waiter is not None and waiter.verdict == "granted":
            waiter.verdict = "settled"
        else:
            bulkhead.taken += 1
            if ranks is not None:
                ranks.held[rank] += 1
        if rank != CRITICAL and ranks is not None:  # its ranks are kept while it waits and while it runs
            self.noncritical_admitted += 1
            ranks.rank_by_number[-number if checkout else number] = rank  # a ticket, or minus a slot
        if held is not None:
            held[0] = number
        return number

    def _decide_woken(self, now: float, waiter: Waiter, late: Reason) -> bool | Refusal:
        if waiter.epoch != self.bulkhead.epoch:  # its place or slot was dropped: treat it as a new call
            waiter.verdict = "settled"
            # Never None without a waiter.
            return self._find_slot(now, None, waiter.rank)  # type: ignore[return-value]
        allowed = self.breaker.allow_call(now)
        self._collect_transitions()
        ranks = self.bulkhead.ranks
        outranked = ranks is not None and ranks.outranked(waiter.rank)
        if self.bulkhead.withdraw(waiter):
            reason: Reason = "shed" if outranked and late == "queue_timeout" else late
            self.bulkhead.timeouts += reason != "shed"
            return self._refuse(reason, None)
        if waiter.verdict == "shed":
            return self._refuse("shed", None)
        if waiter.verdict == "granted" and allowed:
            return True
        self._release_granted(waiter)
        return self._circuit_open(now)

    def _circuit_open(self, now: float) -> Refusal:
        return self._refuse("circuit_open", self.breaker.retry_after(now))

    def _refuse(self, reason: Reason, retry_after: float | None) -> Refusal:
        refusal = Refusal(reason, retry_after)
        counts = self._refusals if self.enforces else self.would_reject
        counts[reason] = counts.get(reason, 0) + 1
        if not self.enforces:
            self.outbox.append(refusal)
        return refusal

    def _release_granted(self, waiter: Waiter) -> None:
        """Releases the slot that was granted to a waiter, once."""
        ranks = self.bulkhead.ranks
        if waiter.verdict == "granted" and waiter.epoch == self.bulkhead.epoch:
            waiter.verdict, self.releasing = "settled", 0
            if ranks is not None:
                ranks.rank_by_number[0] = waiter.rank
            self._release_slot()

    def _release_slot(self, number: int = 0) -> None:
        """Releases the slot of `releasing`. Nothing is called between the first and the last change."""
        ranks = self.bulkhead.ranks
        if ranks is not None:
            rank = CRITICAL
            if number in ranks.rank_by_number:
                rank = ranks.rank_by_number[number]
                del ranks.rank_by_number[number]
            self.bulkhead.taken -= 1
            ranks.held[rank] -= 1
            self.releasing = None
            self.outbox.extend(self.bulkhead.grant_ranked(ranks))
            return
        next_waiter = self.bulkhead.leave()
        self.releasing = None
        if next_waiter is not None:
            self.outbox.append(next_waiter)

    def _collect_transitions(self) -> None:
        changes = self.breaker.transitions
        if changes:
            if self.adaptive is not None:  # what has opened the circuit is known before a new window begins
                self._adapt(self.adaptive, changes[0].old, at_once=True)
            self.outbox.extend(changes)
            changes.clear()
            if self.breaker.state in {"open", "half_open", "forced_open"}:
                self.outbox.extend(self.bulkhead.dismiss(self.breaker.admits_healthy))
            self._fit_slots(self.bulkhead.limit)

    def _end_move(self, result: _T) -> _T:
        breaker, bulkhead = self.breaker, self.bulkhead
        if self.outbox and self.outside:
            self.follow_waiters()
        if bulkhead.ranks is not None and not bulkhead.queue and bulkhead.ranks.not_needed(self.last):
            bulkhead.ranks = None
        if self.nested or not self.fast or self.outside or self.mode == "off":
            return result
        if breaker.state == "open" and breaker.uncompartmented is None:
            if not self.enforces:
                return result
            self.fast_refuse_until = self._ahead(min(breaker.open_until, breaker.next_overdue_at))
        elif breaker.state in {"closed", "disabled"} and bulkhead.ranks is None:
            self.admits_until = self._ahead(min(breaker.next_overdue_at, self.grows_at))
            if not bulkhead.queue and self.adaptive is None:  # which must see each call begin and end
                self.fast_leave_until = self._ahead(breaker.steady_until())
                self.fast_enter_until = self.admits_until
        return result

    def _ahead(self, moment: float) -> float:
        # A clock that goes back must not reopen a moment that has passed.
        return moment if moment > self.last else NEVER
