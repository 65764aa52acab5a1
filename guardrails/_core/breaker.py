"""The circuit breaker's states and transitions. Depends on windows and policies; must not import slots.

Each call has a *ticket*, a number that only grows. A transition stores the last ticket issued as the
*generation*. A result whose ticket is not above it began before the transition and changes nothing.

A *permit* admits one probe of a half-open round. It expires, so that a lost probe blocks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._core.ramp import Ramp
from guardrails._core.window import FAILED, NEVER, SLOW, CountWindow, TimeWindow, Window
from guardrails._core.workloads import (
    Ratio,
    Workload,
    is_widespread_outage,
    is_widespread_rate,
    reach_a_rate,
    reaches,
)

__all__ = ["Breaker", "State", "Transition"]

State = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]

_IN_ROUND = -1
"""In place of a window's index: the slow mark was counted in the half-open round."""

_FINEST_RATE = 10**6
"""Largest denominator of a threshold. 0.1 is read as 1/10 and not as the binary float just above it, so that
one failure in ten opens the circuit."""


MAX_PENDING_FAILURES = 256
"""Failures that the fast path may note before a step must add them to the window: they cost little memory."""


class Transition(NamedTuple):
    """A transition. With ``old == new``: a threshold was crossed in ``metrics_only``."""

    at: float
    old: State
    new: State
    cause: str
    retry_after: float | None


class CallEnd(NamedTuple):
    """The duration of a finished call in seconds, and True if that was slow."""

    duration: float
    slow: bool


class ProbeRound:
    """The results of one half-open round."""

    __slots__ = ("calls", "failures", "slow")

    def __init__(self) -> None:
        self.calls = self.failures = self.slow = 0


_NO_ROUND = ProbeRound()
"""The round of a circuit that has not been half-open yet. It stays empty."""


class Breaker:
    """Decides from the outcomes of earlier calls whether the next one may start.

    No method waits. The caller of ``begin`` or ``acquire_permit`` must end the ticket once, with ``end``.

    Attributes:
        state: The state after the last method call. Time alone changes it only when a method is called.
        last_ticket: The last ticket issued.
        generation: The last ticket issued before the latest transition.
        in_flight: Start of each call in flight that is not overdue, by ticket, oldest first.
        overdue: (start, position) of each call in flight that has crossed the slow threshold, by ticket.
            The position is that of its slow mark: an index in the window, `_IN_ROUND`, or None without it.
        permits: Time at which the permit of each probe expires, by ticket.
        good_since: Time of the first good statement since the last result of a checkout, while no statement
            after it has failed or was slow. By slot; for a probe's checkout by minus its ticket.
        next_overdue_at: No call in flight becomes overdue before this time.
        succeeded: Calls and statements that have succeeded.
        pending_successes: Successes in the current slice of the window that have not been added to it yet.
        pending_failures: Failures in the current slice that have not been added to the window yet.
        failures_after: The number of these failures after each number of the successes.
        failure_margin: Failures in a row that cannot change the state, whatever succeeds in between.
        transitions: Transitions that the caller has not collected yet.
        random: Returns a number in [0, 1] for the jitter.
        ramp: The growth of the usable slots since the circuit has recovered; None without one.
        stall_slots: The number of overdue calls that may be a stall; None if stalls are not watched for.
        slot_cap: Upper bound of `stall_slots`: the usable slots of an adaptive limit; infinity without one.
        last_success_at: Time of the last success, or of the last good statement of a checkout.
        streak: Failures in a row.
        late: Results that came after a transition and changed nothing.
        workloads: The records of a circuit with compartments; see `guardrails._core.workloads`.
        uncompartmented: The workload of calls outside all compartments; None without compartments.
        workload_by_ticket: The workload of each call in flight, by ticket; of a checkout in `good_since` by
            minus its slot.
        caller_workload: The workload on whose behalf the current method is called.
    """

    __slots__ = (
        "_basis",
        "_crossing_reported",
        "_failure_rate",
        "_initial_state",
        "_is_manual",
        "_latest",
        "_minimum_calls",
        "_openings_in_a_row",
        "_paused_until",
        "_policy",
        "_slow_rate",
        "_stall_at",
        "_streak_limit",
        "abandoned",
        "caller_workload",
        "failed",
        "failure_margin",
        "failures_after",
        "generation",
        "good_since",
        "in_flight",
        "last_success_at",
        "last_ticket",
        "late",
        "next_overdue_at",
        "open_until",
        "overdue",
        "pending_failures",
        "pending_successes",
        "permits",
        "ramp",
        "random",
        "round",
        "slot_cap",
        "slow",
        "slow_after",
        "stall_slots",
        "state",
        "streak",
        "succeeded",
        "transitions",
        "uncompartmented",
        "window",
        "workload_by_ticket",
        "workloads",
    )

    def __init__(self, policy: BreakerPolicy | None, random: Callable[[], float]) -> None:
        """Starts closed. Without a policy it starts disabled and stays so."""
        self._initial_state: State = "closed" if policy is not None else "disabled"
        self._policy = policy = policy or BreakerPolicy()
        self.random = random
        self._minimum_calls = policy.minimum_number_of_calls
        self.window = _window(policy)
        if policy.sliding_window_type == "count":
            self._minimum_calls = min(self._minimum_calls, int(policy.sliding_window_size))
        self._failure_rate = _ratio(policy.failure_rate_threshold)
        self._slow_rate = _ratio(policy.slow_call_rate_threshold)
        self._streak_limit = policy.consecutive_failures or math.inf
        self.slow_after = policy.slow_call_duration_threshold if self._initial_state == "closed" else math.inf
        self.state: State = self._initial_state
        self.last_ticket = self.generation = 0
        self.in_flight: dict[int, float] = {}
        self.overdue: dict[int, tuple[float, int | None]] = {}
        self.permits: dict[int, float] = {}
        self.good_since: dict[int, float] = {}
        self.next_overdue_at = self.open_until = NEVER
        self.round = _NO_ROUND
        self._basis: Window | ProbeRound = self.window
        self.transitions: list[Transition] = []
        self.ramp: Ramp | None = None
        self.stall_slots: int | None = None
        self.slot_cap = math.inf
        self.last_success_at = self._latest = self._paused_until = NEVER
        self._stall_at = math.inf
        self.workloads: list[Workload] = []
        self.uncompartmented: Workload | None = None
        self.workload_by_ticket: dict[int, Workload] = {}
        self.caller_workload: Workload | None = None
        self._is_manual = False
        self.streak = 0
        self.pending_successes = self.pending_failures = self.failure_margin = 0
        self.failures_after: dict[int, int] = {}
        self._openings_in_a_row = 0
        self._crossing_reported = False
        self.succeeded = self.failed = self.abandoned = self.slow = self.late = 0

    # --- admission -----------------------------------------------------------------------------

    def allow_call(self, now: float) -> bool:
        """Brings the circuit up to ``now``; returns True if a call may start."""
        self.tick(now)
        if self.state == "open" and now >= self.open_until:
            self._transition(now, "half_open", "wait_over")
        if self.state == "half_open":
            return self._has_free_permit() or self.admits_healthy(self.caller_workload)
        return self.state not in {"open", "forced_open"} or self.admits_healthy(self.caller_workload)

    def admits_healthy(self, workload: Workload | None) -> bool:
        """True if a circuit that other workloads have opened admits the calls of this one."""
        opened_by_rates = self.state in {"open", "half_open"} and not self._is_manual
        return opened_by_rates and workload is not None and workload.is_healthy

    def _has_free_permit(self) -> bool:
        return len(self.permits) + self.round.calls < self._policy.permitted_calls_in_half_open_state

    def begin(self, now: float) -> int:
        """Starts a call and returns its ticket. In half-open the call is a probe and takes a permit."""
        ticket = self.acquire_permit(now) or self._next_ticket()
        return self._start(ticket, now)

    def begin_admitted(self, now: float, permit: int, held: list[int] | None = None) -> int:
        """Starts a call that was admitted earlier, as the probe if ``permit`` is valid and not used yet."""
        ticket = permit if permit in self.permits and permit not in self.in_flight else self._next_ticket()
        return self._start(ticket, now, held)

    def _start(self, ticket: int, now: float, held: list[int] | None = None) -> int:
        if self.caller_workload is not None:
            self.workload_by_ticket[ticket] = self.caller_workload
        self.in_flight[ticket] = now
        if held is not None:
            held[0] = ticket
        return ticket

    def acquire_permit(self, now: float) -> int:
        """Takes a permit for a probe and returns its ticket; 0 without a free permit or outside half-open.

        The probe's duration counts from ``resume``, or from ``begin``, which does both.
        """
        until = self.probe_until(now)
        if until is None:
            return 0
        ticket = self._next_ticket()
        self.permits[ticket] = until
        if self.caller_workload is not None:
            self.workload_by_ticket[ticket] = self.caller_workload
        return ticket

    def probe_until(self, now: float) -> float | None:
        """Time at which the permit of a probe admitted now would expire; None if it would be no probe."""
        if self.state != "half_open" or not self._has_free_permit():
            return None
        return now + self._policy.max_wait_duration_in_half_open_state

    def unused_permit(self) -> int:
        """The ticket of a probe that has a permit and has not begun; 0 without one."""
        unused = (t for t in self.permits if t not in self.in_flight and -t not in self.good_since)
        return next(unused, 0)

    def resume(self, ticket: int, now: float) -> None:
        """Starts the duration of a probe with a permit, or restarts that of a call in flight, at ``now``."""
        if ticket not in self.overdue:
            if ticket in self.in_flight:  # no call between the two lines: an interrupt would lose the ticket
                del self.in_flight[ticket]
            self.in_flight[ticket] = now

    def retry_after(self, now: float) -> float | None:
        """Seconds until a call may be admitted; None if that is unknown, as in ``forced_open``."""
        if self.state == "open":
            return max(0.0, self.open_until - now)
        if self.state == "half_open":
            return self.slow_after  # by then each probe has ended or is slow
        return None

    # --- evidence ------------------------------------------------------------------------------

    def end(self, ticket: int, outcome: Outcome, now: float, slot: int = 0) -> CallEnd | None:
        """Ends a call, or a statement on a checkout, and records its outcome.

        The statements of a checkout are one call, whose result is that of its last statement: a quick success
        is recorded when the checkout ends (`end_checkout`), a failure or a slow statement at once.

        Args:
            ticket: Its ticket.
            outcome: Its outcome.
            now: The time.
            slot: The slot of the statement's checkout; 0 for a call of its own.

        Returns:
            Its duration and slowness. None for a ticket that is not in flight.
        """
        self.tick(now)
        started = self.in_flight.pop(ticket, None)
        counted = self.overdue.pop(ticket, None)
        # The tick has moved each call that crossed the threshold, this one included, to `overdue`.
        since = counted[0] if counted is not None else started
        if since is not None and self._call_continues(ticket, outcome, now, slot, slow=counted is not None):
            self.succeeded += 1
            return CallEnd(now - since, slow=False)
        workload = self.workload_by_ticket.pop(ticket, None)
        if since is None:
            self.permits.pop(ticket, None)  # the probe never began: free its permit
            return None
        self._count_outcome(outcome)
        if ticket <= self.generation:
            self.late += 1
        else:
            self._record_end(workload, ticket, outcome, counted, now)
        if workload is not None:
            workload.slow_positions.pop(ticket, None)
        return CallEnd(now - since, counted is not None)

    def _call_continues(self, ticket: int, outcome: Outcome, now: float, slot: int, *, slow: bool) -> bool:
        """True if a statement does not end its call, because others may follow on the checkout.

        Once the slow-call threshold has passed, the next good statement ends the call. Otherwise a connection
        that is held for long would give no result.
        """
        permitted = ticket in self.permits
        if outcome is Outcome.NEUTRAL and not slow:
            return permitted
        if outcome is not Outcome.SUCCESS or slow or not slot or ticket <= self.generation:
            self.good_since.pop(slot, None)
            self.good_since.pop(-ticket, None)
            return False
        self.last_success_at = now
        call = -ticket if permitted else slot
        first = self.good_since.setdefault(call, now)
        if now - first >= self.slow_after:
            del self.good_since[call]
            return False
        if permitted:
            self.permits[ticket] = min(self.permits[ticket], first + self.slow_after)
        elif ticket in self.workload_by_ticket:
            self.workload_by_ticket[-slot] = self.workload_by_ticket.pop(ticket)
        return True

    def end_checkout(self, slot: int, permit: int, now: float) -> None:
        """Ends a checkout: records the success of its statements, or frees its unused permit.

        Args:
            slot: Its slot.
            permit: The ticket of its probe; 0 if it is none.
            now: The time.
        """
        workload = self.workload_by_ticket.pop(-slot, None)
        if not permit and slot not in self.good_since:
            return
        self.tick(now)
        call = -permit if permit in self.permits else slot
        if call in self.good_since:
            workload = self.workload_by_ticket.pop(permit, None) or workload
            self._record_end(workload, permit, Outcome.SUCCESS, None, now)
            self.good_since.pop(call, None)  # last: after an interrupt the permit still expires as a success
        if permit:
            self.end(permit, Outcome.ABANDONED, now)

    def _record_end(
        self,
        workload: Workload | None,
        ticket: int,
        outcome: Outcome,
        counted: tuple[float, int | None] | None,
        now: float,
    ) -> None:
        if counted is not None:
            self._stall_at = math.inf
        if outcome is Outcome.SUCCESS:
            self.last_success_at = now
        if workload is not None and outcome is Outcome.SUCCESS:
            workload.note_success(now, slow=counted is not None)
        if workload is not None and outcome is Outcome.FAILURE and counted is None:
            workload.note_bad_call(now)
        if self.state == "half_open":
            in_round = counted is not None and counted[1] == _IN_ROUND
            self._end_probe(ticket, outcome, workload, counted=in_round, now=now)
        elif self.state in {"closed", "metrics_only"}:
            if workload is not None:
                self._record_in_workload(workload, ticket, outcome)
            self._record_result(outcome, position=counted[1] if counted else None, now=now)

    def _record_in_workload(self, workload: Workload, ticket: int, outcome: Outcome) -> None:
        failed = outcome is Outcome.FAILURE
        if ticket in workload.slow_positions:
            if failed:
                workload.window.add_mark(workload.slow_positions[ticket], FAILED)
        elif failed or outcome is Outcome.SUCCESS:
            workload.add(FAILED * failed)

    def tick(self, now: float) -> None:
        """Records what the time alone has changed: old slices, overdue calls, expired permits."""
        self._latest = now
        if self.pending_successes or self.pending_failures:
            self._flush_results()
        if self.state in {"closed", "metrics_only"}:
            if now >= self.window.until:
                self._advance(now)
            if self._crossing_reported and self._verdict(new_evidence=True) is None:
                self._crossing_reported = False  # so that the next crossing is reported
        if now >= self.next_overdue_at:
            self._move_overdue(now)
        if self.permits:
            self._expire_permits(now)

    def _advance(self, now: float) -> None:
        self.window.advance(now)
        for each in self.workloads:  # one position must mean the same slice in each window
            each.flush_successes()
            each.window.advance(now)

    def _flush_results(self) -> None:
        fresh: dict[int, int] = {} if self.pending_failures else self.failures_after
        # A snapshot runs this while the fast path is open: so nothing is called up to the last assignment.
        count, counts = self.pending_successes, self.failures_after
        failures = self.pending_failures
        self.failures_after = fresh
        self.pending_successes = 0
        self.pending_failures = 0
        self.failure_margin -= failures
        self.failed += failures
        if self.state != "closed":  # "disabled", which has pending results, too, records no evidence
            return
        added = 0
        for so_far, failed in counts.items() if failures else ():
            self._add_successes(so_far - added)
            self.window.add_failures(failed)
            self.streak += failed
            added = so_far
        self._add_successes(count - added)

    def _add_successes(self, count: int) -> None:
        if count:
            self.streak = 0
            self.window.add_unmarked(count)

    def steady_until(self) -> float:
        """The time until which a success cannot change a circuit that is closed or disabled.

        `NEVER` if a success can change it now. The time ends when the window next forgets calls: successes
        that kept a rate low may be among them. Up to `failure_margin` failures in a row change nothing.
        """
        self.failure_margin = MAX_PENDING_FAILURES
        if self.state == "disabled":
            # The fast path would count a success for its workload, which learns nothing in this state.
            return self.next_overdue_at if self.uncompartmented is None else NEVER
        window = self.window
        calls, (share, whole) = max(window.calls, self._minimum_calls), self._failure_rate
        margin = min((share * calls - 1) // whole - window.failures, self._streak_limit - self.streak - 1)
        spotless = margin >= 0 and not (window.slow or self.overdue)
        self.failure_margin = (
            0 if self.uncompartmented is not None else int(max(0, min(margin, MAX_PENDING_FAILURES)))
        )
        if spotless or (window.calls >= self._minimum_calls and not self._exceeded_limit()):
            return min(self.next_overdue_at, window.until)
        return NEVER

    def _record_result(self, outcome: Outcome, *, position: int | None, now: float) -> None:
        failed = outcome is Outcome.FAILURE
        if position is not None:
            if failed:
                self.window.add_mark(position, FAILED)
        elif failed or outcome is Outcome.SUCCESS:
            self.window.add(FAILED * failed)
        self._update_streak(outcome)
        self._judge_closed(now, new_evidence=failed)

    def _end_probe(
        self, ticket: int, outcome: Outcome, workload: Workload | None, *, counted: bool, now: float
    ) -> None:
        permitted = self.permits.pop(ticket, None) is not None
        if not permitted and not counted:
            return  # not a probe: it runs on a connection that was checked out before half-open
        if outcome is Outcome.FAILURE and not counted and self._is_compartment_fault(workload):
            return
        if permitted and outcome in {Outcome.SUCCESS, Outcome.FAILURE}:
            self.round.calls += 1
        if outcome is Outcome.FAILURE:
            self.round.failures += 1
        self._update_streak(outcome)
        self._judge_round(now)

    def _update_streak(self, outcome: Outcome) -> None:
        if outcome is Outcome.FAILURE:
            self.streak += 1
        elif outcome is Outcome.SUCCESS:
            self.streak = 0

    def _count_outcome(self, outcome: Outcome) -> None:
        if outcome is Outcome.FAILURE:
            self.failed += 1
        elif outcome is Outcome.ABANDONED:
            self.abandoned += 1
        else:
            self.succeeded += 1

    def _move_overdue(self, now: float) -> None:
        # Calls are in the order of their start: the first that is not overdue ends the loop.
        before = len(self.overdue)
        while self.in_flight:
            ticket, started = next(iter(self.in_flight.items()))
            if now - started <= self.slow_after:
                self.next_overdue_at = started + self.slow_after
                break
            # Nothing is called in between: an interrupt would lose the call, and its slot.
            del self.in_flight[ticket]
            self.slow += 1
            self.overdue[ticket] = (started, None)
            self.overdue[ticket] = (started, self._record_overdue(ticket, started))
        else:
            self.next_overdue_at = now + self.slow_after
        new_evidence = len(self.overdue) > before
        if self.stall_slots is not None:
            self._schedule_stall(self.stall_slots, new_evidence=new_evidence)
            new_evidence |= self._stall_at <= now
            if self._stall_at > now:
                self.next_overdue_at = min(self.next_overdue_at, self._stall_at)
        if not new_evidence:
            return  # otherwise the time of a verdict would depend on when the circuit is read
        if self.state == "half_open":
            self._judge_round(now)
        else:
            self._judge_closed(now, new_evidence=True)

    def _record_overdue(self, ticket: int, started: float) -> int | None:
        """Records a call that has become overdue as slow; returns the position of its mark."""
        workload = self.workload_by_ticket.get(ticket)
        if ticket <= self.generation:
            return None
        if workload is not None:
            workload.note_bad_call(started)
        if self.state in {"closed", "metrics_only"}:
            if workload is not None:
                workload.slow_positions[ticket] = workload.add(SLOW)
            return self.window.add(SLOW)
        if self.permits.pop(ticket, None) is not None and not self._is_compartment_fault(workload):
            self._count_slow_probe()
            return _IN_ROUND
        return None

    def _is_compartment_fault(self, workload: Workload | None) -> bool:
        """True if a probe's failure is no evidence: its own circuit is open, another workload is healthy."""
        return (
            workload is not None
            and workload.circuit_is_open
            and any(each.has_results and each.is_healthy for each in self.workloads)
        )

    def _schedule_stall(self, pool_slots: int, *, new_evidence: bool) -> None:
        """Sets the time from which overdue calls that hold every slot are a stall.

        Slow calls that run at the same time look the same at first. So two slow-call thresholds must pass
        without a success: the first makes the calls overdue, the second is time for one of them to end.
        """
        slots = min(pool_slots, self.slot_cap)
        if self.ramp is not None:  # its slots are taken one after the other: few are overdue in time
            slots = min(slots, self.ramp.first)
        if self._overdue_now() < slots:
            self._stall_at = math.inf
        elif new_evidence:
            starts = [started for ticket, (started, _) in self.overdue.items() if ticket > self.generation]
            since = max(self.last_success_at, min(starts))
            self._stall_at = since + 2 * self.slow_after

    def _expire_permits(self, now: float) -> None:
        over = [ticket for ticket, until in self.permits.items() if now >= until]
        lost = [ticket for ticket in over if -ticket not in self.good_since]
        for ticket in lost:
            started = self.in_flight.get(ticket, now)
            excused = self._is_compartment_fault(self.workload_by_ticket.get(ticket))
            # Nothing is called in between, as above.
            del self.permits[ticket]
            self.slow += 1
            if ticket in self.in_flight:
                del self.in_flight[ticket]
            self.overdue[ticket] = (started, None if excused else _IN_ROUND)
            if not excused:
                self._count_slow_probe()
        if lost:
            self._judge_round(now)
        for ticket in over:
            # The checkout had good statements only. If one is under way, that one decides.
            if -ticket in self.good_since and ticket not in self.in_flight:
                workload = self.workload_by_ticket.pop(ticket, None)
                self._record_end(workload, ticket, Outcome.SUCCESS, None, now)
                self.good_since.pop(-ticket, None)

    def _count_slow_probe(self) -> None:
        self.round.calls += 1
        self.round.slow += 1

    def reevaluate(self, now: float) -> None:
        """Evaluates the rules again, after the circuit of a compartment has opened."""
        self.tick(now)
        self._judge_closed(now, new_evidence=True)

    # --- verdicts ------------------------------------------------------------------------------

    def _judge_closed(self, now: float, *, new_evidence: bool) -> None:
        """Opens the circuit if a rule demands it. In ``metrics_only`` reports the crossing once."""
        cause = self._verdict(new_evidence=new_evidence) if self.state in {"closed", "metrics_only"} else None
        if cause is None:
            self._crossing_reported = False
        elif self.state == "closed":
            self._open(now, cause)
        elif not self._crossing_reported:
            self._crossing_reported = True
            self.transitions.append(Transition(now, self.state, self.state, cause, None))

    def _verdict(self, *, new_evidence: bool) -> str | None:
        """The cause for which the circuit must open, or None.

        With compartments, one workload may have caused the figures of all calls together; see
        `guardrails._core.workloads`.

        Args:
            new_evidence: True right after a failure, a slow call or the opening of a compartment's circuit.
        """
        cause, least = self._exceeded_limit(), self._minimum_calls
        if self.uncompartmented is None or (cause is None and not new_evidence):
            return cause
        active = [each for each in self.workloads if each.has_results]
        for each in active:
            each.flush_successes()
        now, slow_after = self._latest, self.slow_after
        if is_widespread_outage(active, now, slow_after, least if cause is None else 0):
            return cause or ("failure_rate" if self.window.failures > self.window.slow else "slow_call_rate")
        rates = self._failure_rate, self._slow_rate
        if cause is None or not is_widespread_rate(active, now, slow_after, least, *rates):
            return None
        return cause

    def _exceeded_limit(self) -> str | None:
        window = self.window
        if self.streak >= self._streak_limit:
            return "consecutive_failures"
        enough = window.calls >= self._minimum_calls
        if enough and reaches(window.failures, window.calls, self._failure_rate):
            return "failure_rate"
        if enough and reaches(window.slow, window.calls, self._slow_rate):
            return "slow_call_rate"
        # A pool's slots are all the evidence that a stall can give. Old successes would keep the rate low
        # until they leave the window, and a pool smaller than the minimum would never reach it. As many slots
        # as a round has probes are enough for a verdict; one or two are not.
        enough = enough or (self.stall_slots or 0) >= self._policy.permitted_calls_in_half_open_state
        if enough and self._stall_at <= self._latest:
            return "stalled"
        return None

    def _overdue_now(self) -> int:
        return sum(ticket > self.generation for ticket in self.overdue)

    def _judge_round(self, now: float) -> None:
        # Reopens as soon as the round can only fail. Closes only after a complete round: a closed circuit
        # admits every call, so one more probe costs less than a wrong verdict.
        tally, probes = self.round, self._policy.permitted_calls_in_half_open_state
        if (
            reaches(tally.failures, probes, self._failure_rate)
            or reaches(tally.slow, probes, self._slow_rate)
            or (tally.failures and self.streak >= self._streak_limit)
        ):
            self._open(now, "probes_failed")
        elif tally.calls >= probes:
            self._close(now, "probes_passed")

    # --- transitions ---------------------------------------------------------------------------

    def open(self, now: float, cause: str = "manual") -> None:
        """Opens the circuit for one open period."""
        if self.state != "open":
            self._open(now, cause)

    def half_open(self, now: float) -> None:
        """Starts a round of probes."""
        if self.state != "half_open":
            self._transition(now, "half_open", "manual")

    def hold(self, state: State, now: float) -> None:
        """Enters ``forced_open``, ``disabled`` or ``metrics_only``, which only a manual transition leaves."""
        if self.state != state:
            self._clear_figures()
            self._transition(now, state, "manual")

    def reset(self, now: float, cause: str = "manual") -> None:
        """Returns to the initial state and forgets all evidence; calls in flight become late."""
        self._reset_counts()
        for each in self.workloads:
            each.reset()
        if self.state == self._initial_state:
            self.generation, self.ramp = self.last_ticket, None
            self.good_since.clear()
        elif cause == "fleet":
            self._recover(now, cause)
        else:
            self._transition(now, self._initial_state, cause)

    def _open(self, now: float, cause: str) -> None:
        policy = self._policy
        self._openings_in_a_row += 1
        wait = policy.wait_duration_in_open_state
        if wait:  # 0 times a factor that overflows must stay 0
            try:
                wait *= policy.open_backoff_multiplier ** (self._openings_in_a_row - 1)
            except OverflowError:
                wait = math.inf
        if policy.open_backoff_multiplier > 1:
            wait = min(wait, max(policy.max_wait_duration_in_open_state, policy.wait_duration_in_open_state))
        sample = self.random()
        if 0 <= sample <= 1:  # with NaN the wait would never end
            wait *= 1 + policy.open_jitter * (2 * sample - 1)
        self.open_until = now + wait
        for each in self.workloads:
            each.suspect |= each.bad_calls > 0 or reach_a_rate((each,), self._failure_rate, self._slow_rate)
        self._transition(now, "open", cause, wait)

    def _close(self, now: float, cause: str) -> None:
        self._reset_counts()
        self._recover(now, cause)

    def _recover(self, now: float, cause: str) -> None:
        """Closes the circuit because the dependency works again."""
        # The calls of a healthy workload may be more than a round has.
        at_once = sum(ticket > self.generation for ticket in self.in_flight)
        self._transition(now, "closed", cause)
        policy = self._policy
        if policy.recovery_ramp:
            first = max(policy.permitted_calls_in_half_open_state, at_once)
            self.ramp = Ramp(now, policy.recovery_ramp, first)

    def _reset_counts(self) -> None:
        self._clear_figures()
        self._openings_in_a_row = 0

    def _clear_figures(self) -> None:
        self.window.clear()
        self.streak = 0
        self._crossing_reported = False
        for each in self.workloads:
            each.clear_window()
            each.suspect = False

    def watch_workload(self, circuit: Breaker | None, now: float) -> Workload:
        """Adds a record for one workload's calls."""
        self.tick(now)
        workload = Workload(circuit, _window(self._policy))
        workload.window.advance(now)
        self.workloads.append(workload)
        return workload

    def _transition(self, now: float, new: State, cause: str, retry_after: float | None = None) -> None:
        self.transitions.append(Transition(now, self.state, new, cause, retry_after))
        self.state = new
        self.generation = self.last_ticket
        self._stall_at = math.inf
        self._is_manual = cause == "manual"
        self.ramp = None
        self.permits.clear()
        self.good_since.clear()
        if new == "half_open":
            self._basis = self.round = ProbeRound()
        elif new != "open":
            self._basis = self.window

    def _next_ticket(self) -> int:
        self.last_ticket += 1
        return self.last_ticket

    def exclude_pause(self, since: float, until: float) -> None:
        """Excludes a pause of the whole process from the durations of calls in flight and of permits.

        A call that is overdue stays overdue. Overlapping pauses are excluded once.
        """
        since, self._paused_until = max(since, self._paused_until), max(until, self._paused_until)
        if until <= since:
            return
        for ticket, started in self.in_flight.items():
            if started < until:
                self.in_flight[ticket] = started + until - max(since, started)
        for ticket, ends in self.permits.items():
            if ends > since:
                self.permits[ticket] = ends + until - since

    def forget_calls(self) -> None:
        """Drops every call in flight, without evidence."""
        for calls in (self.in_flight, self.overdue, self.permits, self.good_since, self.workload_by_ticket):
            calls.clear()
        self._stall_at = math.inf
        for each in self.workloads:
            each.slow_positions.clear()

    # --- reading -------------------------------------------------------------------------------

    def evidence(self, now: float) -> tuple[int, int, int, bool]:
        """Calls, failures and slow calls behind the last verdict, and True if they suffice for one."""
        if self.pending_successes or self.pending_failures:
            self._flush_results()
        if self.state != "open":  # an open circuit keeps the figures that opened it
            self.window.advance(now)
        basis, least = self._basis, self._minimum_calls
        if self.state == "open":
            least = 1
        elif basis is self.round:
            least = self._policy.permitted_calls_in_half_open_state
        return basis.calls, basis.failures, basis.slow, basis.calls >= least

    def reaches_a_rate(self, failures: int, slow: int, calls: int) -> bool:
        """True if these counts reach the failure rate or the slow-call rate."""
        return reaches(failures, calls, self._failure_rate) or reaches(slow, calls, self._slow_rate)

    def start_times(self) -> list[float]:
        """Start times of the overdue calls, and of the oldest call that is not overdue."""
        starts = [started for started, _ in self.overdue.values()]
        starts.extend(list(self.in_flight.values())[:1])
        return starts


def _window(policy: BreakerPolicy) -> Window:
    if policy.sliding_window_type == "count":
        return CountWindow(int(policy.sliding_window_size))
    return TimeWindow(policy.sliding_window_size)


@lru_cache(maxsize=64)
def _ratio(threshold: float) -> Ratio:
    nearest = Fraction(threshold).limit_denominator(_FINEST_RATE)
    return nearest.as_integer_ratio() if nearest else (1, _FINEST_RATE)
