"""The circuit: closed, open, half-open and the three manual states. Knows evidence, not slots or callers.

A call is known by its *ticket*, a number that only grows. Each transition notes the last ticket
issued; a result whose ticket is not above that note comes from an earlier generation and decides
nothing any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._core.window import FAILED, NEVER, SLOW, CountWindow, TimeWindow, Window
from guardrails._core.workloads import Ratio, Workload, has_spread, is_everybodys, reaches, spreads

__all__ = ["Breaker", "State", "Transition"]

State = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]

_IN_ROUND = -1
"""The place of a slow mark that went into the half-open round."""

_FINEST_RATE = 10**6
"""Thresholds are read as the nearest fraction with a denominator up to this: 0.1 means 1/10, not the
binary float a hair above it, so that one failure in ten trips."""


class Transition(NamedTuple):
    """A transition, or, with ``old == new``, a threshold crossed in a state that only watches."""

    at: float
    old: State
    new: State
    cause: str
    retry_after: float | None


class Ended(NamedTuple):
    """How a call ended: after how many seconds, and whether that was slow."""

    duration: float
    slow: bool


class Tally:
    """The results of one half-open round."""

    __slots__ = ("calls", "failures", "slow")

    def __init__(self) -> None:
        self.calls = self.failures = self.slow = 0


_NO_ROUND = Tally()
"""What a circuit has that was never half-open: nothing is ever added to it."""


class Breaker:
    """Decides from what calls did whether the next one may start.

    Every method takes ``now``; none waits. Whoever calls ``begin`` or ``lease`` must end the ticket
    once, with ``end``.

    Attributes:
        state: The state as of the last move; time alone changes nothing until somebody knocks.
        issued: The last ticket given out.
        in_flight: Ticket and start of calls under way that are not overdue, oldest first.
        overdue: Ticket and (start, place) of calls that crossed the slow threshold while under way;
            the place says where their slow mark went: into the window, the round or, None, nowhere.
        quiet_until: Before this moment no call in flight can become overdue.
        unwritten: Successes of this moment's slice of the window that no move has written down yet.
        changes: Transitions since the caller last emptied the list.
        random: Where jitter comes from.
        slots: With a number, that many overdue calls at once may be a stall; see ``_plan_stall``.
        back_at: When a call came back well last.
        workloads: Of a circuit with compartments, what is known of each; see `guardrails._core.workloads`.
        direct: The workload of calls past all compartments; None where there are none.
        owners: Whose each call under way is, by ticket.
        asking: Whose move is being made.
    """

    __slots__ = (
        "_basis",
        "_by_hand",
        "_failure_rate",
        "_forgiven",
        "_home",
        "_least",
        "_openings",
        "_policy",
        "_seen",
        "_slow_rate",
        "_stall_at",
        "_streak_limit",
        "_warned",
        "abandoned",
        "asking",
        "back_at",
        "changes",
        "direct",
        "failed",
        "generation",
        "in_flight",
        "issued",
        "late",
        "leases",
        "open_until",
        "overdue",
        "owners",
        "quiet_until",
        "random",
        "round",
        "slots",
        "slow",
        "slow_after",
        "state",
        "streak",
        "succeeded",
        "unwritten",
        "window",
        "workloads",
    )

    def __init__(self, policy: BreakerPolicy | None, random: Callable[[], float]) -> None:
        """Starts closed, or, without a policy, disabled for good."""
        self._home: State = "closed" if policy is not None else "disabled"
        self._policy = policy = policy or BreakerPolicy()
        self.random = random
        self._least = policy.minimum_number_of_calls
        self.window = _window(policy)
        if policy.sliding_window_type == "count":
            self._least = min(self._least, int(policy.sliding_window_size))
        self._failure_rate = _ratio(policy.failure_rate_threshold)
        self._slow_rate = _ratio(policy.slow_call_rate_threshold)
        self._streak_limit = policy.consecutive_failures or math.inf
        self.slow_after = policy.slow_call_duration_threshold if self._home == "closed" else math.inf
        self.state: State = self._home
        self.issued = self.generation = 0
        self.in_flight: dict[int, float] = {}
        self.overdue: dict[int, tuple[float, int | None]] = {}
        self.leases: dict[int, float] = {}
        self.quiet_until = self.open_until = NEVER
        self.round = _NO_ROUND
        self._basis: Window | Tally = self.window
        self.changes: list[Transition] = []
        self.slots: int | None = None
        self.back_at = self._seen = self._forgiven = NEVER
        self._stall_at = math.inf
        self.workloads: list[Workload] = []
        self.direct: Workload | None = None
        self.owners: dict[int, Workload] = {}
        self.asking: Workload | None = None
        self._by_hand = False
        self.streak = 0
        self.unwritten = 0
        self._openings = 0
        self._warned = False
        self.succeeded = self.failed = self.abandoned = self.slow = self.late = 0

    # --- admission -----------------------------------------------------------------------------

    def allow_call(self, now: float) -> bool:
        """Brings the circuit up to ``now`` and says whether a call may start."""
        self.tick(now)
        if self.state == "open" and now >= self.open_until:
            self._go(now, "half_open", "wait_over")
        if self.state == "half_open":
            return self._has_room() or self.trusts(self.asking)
        return self.state not in {"open", "forced_open"} or self.trusts(self.asking)

    def trusts(self, asking: Workload | None) -> bool:
        """True if a circuit that opened for the trouble of other workloads lets this one's calls pass."""
        watched = self.state in {"open", "half_open"} and not self._by_hand
        return watched and asking is not None and asking.trusted

    def _has_room(self) -> bool:
        return len(self.leases) + self.round.calls < self._policy.permitted_calls_in_half_open_state

    def begin(self, now: float) -> int:
        """Starts a call and returns its ticket. In half-open it is a probe and takes a lease."""
        ticket = self.lease(now) or self._issue()
        return self._take_off(ticket, now)

    def begin_unleased(self, now: float, lease: int) -> int:
        """Starts a call on what was admitted before: the leased probe itself, or one that is none."""
        ticket = lease if lease in self.leases and lease not in self.in_flight else self._issue()
        return self._take_off(ticket, now)

    def _take_off(self, ticket: int, now: float) -> int:
        self.in_flight[ticket] = now
        if self.asking is not None:
            self.owners[ticket] = self.asking
        return ticket

    def lease(self, now: float) -> int:
        """Takes a probe's place in half-open and returns its ticket; 0 in every other state.

        The probe's clock starts with ``resume``, or with ``begin`` which does both.
        """
        if self.state != "half_open" or not self._has_room():
            return 0
        ticket = self._issue()
        self.leases[ticket] = now + self._policy.max_wait_duration_in_half_open_state
        if self.asking is not None:
            self.owners[ticket] = self.asking
        return ticket

    def idle_lease(self) -> int:
        """A leased probe that has not begun, or whose work so far was none; 0 if there is none."""
        return next((ticket for ticket in self.leases if ticket not in self.in_flight), 0)

    def resume(self, ticket: int, now: float) -> None:
        """Starts the clock of a leased probe; a ticket in flight starts again from ``now``."""
        if ticket not in self.overdue:
            self.in_flight.pop(ticket, None)
            self.in_flight[ticket] = now

    def retry_after(self, now: float) -> float | None:
        """Seconds until a call may be admitted; None when nobody can tell (held open by hand)."""
        if self.state == "open":
            return max(0.0, self.open_until - now)
        if self.state == "half_open":
            return self.slow_after  # by then each probe has been judged, one way or the other
        return None

    # --- evidence ------------------------------------------------------------------------------

    def end(self, ticket: int, outcome: Outcome, now: float) -> Ended | None:
        """Ends a call and learns from it.

        Returns:
            How it ended; None for a ticket that is not under way, which changes nothing.
        """
        self.tick(now)
        started = self.in_flight.pop(ticket, None)
        counted = self.overdue.pop(ticket, None)
        # The tick has moved every call that crossed the threshold, this one included.
        since = counted[0] if counted is not None else started
        if outcome is Outcome.NEUTRAL and started is not None and ticket in self.leases:
            self.succeeded += 1  # the place in the round is for the work that follows
            return Ended(now - started, slow=False)
        part = self.owners.pop(ticket, None)
        if since is None:
            self.leases.pop(ticket, None)  # a probe that never began gives its place back
            return None
        self._count(outcome)
        if ticket <= self.generation:
            self.late += 1
        else:
            self._note_end(part, ticket, outcome, counted, now)
        if part is not None:
            part.places.pop(ticket, None)
        return Ended(now - since, counted is not None)

    def _note_end(
        self,
        part: Workload | None,
        ticket: int,
        outcome: Outcome,
        counted: tuple[float, int | None] | None,
        now: float,
    ) -> None:
        if counted is not None:
            self._stall_at = math.inf
        if outcome is Outcome.SUCCESS:
            self.back_at = now
        learns = self.state in {"closed", "metrics_only"}
        if part is not None and outcome is Outcome.SUCCESS:
            part.succeed(now, slow=counted is not None)
        if part is not None and outcome is Outcome.FAILURE and counted is None:
            part.complain(now)
        if self.state == "half_open":
            in_round = counted is not None and counted[1] == _IN_ROUND
            self._end_probe(ticket, outcome, part, counted=in_round, now=now)
        elif learns:
            if part is not None:
                self._teach(part, ticket, outcome)
            self._learn(outcome, place=counted[1] if counted else None, now=now)

    def _teach(self, part: Workload, ticket: int, outcome: Outcome) -> None:
        failed = outcome is Outcome.FAILURE
        if ticket in part.places:
            if failed:
                part.window.amend(part.places[ticket], FAILED)
        elif failed or outcome is Outcome.SUCCESS:
            part.learn(FAILED * failed)

    def tick(self, now: float) -> None:
        """Counts what has become true by ``now`` alone: overdue calls and lost probes."""
        self._seen = now
        if self.unwritten:
            self._write_down()
        if self.state in {"closed", "metrics_only"}:
            if now >= self.window.until:
                self._advance(now)
            if self._warned and self._verdict(bad=True) is None:
                self._warned = False  # what was warned of is over; the next time is worth a word again
        if now >= self.quiet_until:
            self._count_overdue(now)
        if self.leases:
            self._expire_leases(now)

    def _advance(self, now: float) -> None:
        self.window.advance(now)
        for one in self.workloads:  # all in step: a place in one window is a place in each
            one.write_down()
            one.window.advance(now)

    def _write_down(self) -> None:
        count, self.unwritten = self.unwritten, 0
        self.succeeded += count
        if self.state == "closed":  # the other state in which successes are left unwritten learns nothing
            self.streak = 0
            self.window.add_unmarked(count)

    def steady_until(self) -> float:
        """Until when successes decide nothing, if nothing else happens; before all time if one may now.

        When the window forgets something, the successes that kept a rate low may be gone.
        """
        if self.state == "disabled":
            return self.quiet_until
        window = self.window
        spotless = not (window.failures or window.slow or self.overdue)
        if self.state == "closed" and (spotless or (window.calls >= self._least and not self._why_open())):
            return min(self.quiet_until, window.until)
        return NEVER

    def _learn(self, outcome: Outcome, *, place: int | None, now: float) -> None:
        failed = outcome is Outcome.FAILURE
        if place is not None:
            if failed:
                self.window.amend(place, FAILED)
        elif failed or outcome is Outcome.SUCCESS:
            self.window.add(FAILED * failed)
        self._follow_streak(outcome)
        self._judge_closed(now, bad=failed)

    def _end_probe(
        self, ticket: int, outcome: Outcome, part: Workload | None, *, counted: bool, now: float
    ) -> None:
        leased = self.leases.pop(ticket, None) is not None
        if not leased and not counted:
            return  # begun in half-open without a lease: inside a connection that was out before
        if outcome is Outcome.FAILURE and not counted and self._is_its_own(part):
            return
        if leased and outcome in {Outcome.SUCCESS, Outcome.FAILURE}:
            self.round.calls += 1
        if outcome is Outcome.FAILURE:
            self.round.failures += 1
        self._follow_streak(outcome)
        self._judge_round(now)

    def _follow_streak(self, outcome: Outcome) -> None:
        if outcome is Outcome.FAILURE:
            self.streak += 1
        elif outcome is Outcome.SUCCESS:
            self.streak = 0

    def _count(self, outcome: Outcome) -> None:
        if outcome is Outcome.FAILURE:
            self.failed += 1
        elif outcome is Outcome.ABANDONED:
            self.abandoned += 1
        else:
            self.succeeded += 1

    def _count_overdue(self, now: float) -> None:
        # In order of start, so the first call that is not overdue ends the search.
        before = len(self.overdue)
        while self.in_flight:
            ticket, started = next(iter(self.in_flight.items()))
            if now - started <= self.slow_after:
                self.quiet_until = started + self.slow_after
                break
            del self.in_flight[ticket]
            self.slow += 1
            self.overdue[ticket] = (started, self._mark_slow(ticket, started))
        else:
            self.quiet_until = now + self.slow_after
        news = len(self.overdue) > before
        if self.slots is not None:
            self._plan_stall(news=news)
            news |= self._stall_at <= now
            if self._stall_at > now:
                self.quiet_until = min(self.quiet_until, self._stall_at)
        if not news:
            return  # no verdict without new evidence: when one is due must not hang on who looks, and when
        if self.state == "half_open":
            self._judge_round(now)
        else:
            self._judge_closed(now, bad=True)

    def _mark_slow(self, ticket: int, started: float) -> int | None:
        """Makes an overdue call evidence; returns the place of its mark."""
        part = self.owners.get(ticket)
        if ticket <= self.generation:
            return None
        if part is not None:
            part.complain(started)
        if self.state in {"closed", "metrics_only"}:
            if part is not None:
                part.places[ticket] = part.learn(SLOW)
            return self.window.add(SLOW)
        if self.leases.pop(ticket, None) is not None and not self._is_its_own(part):
            self._lose_probe()
            return _IN_ROUND
        return None

    def _is_its_own(self, part: Workload | None) -> bool:
        """True if a probe's trouble is its compartment's, whose circuit is open while others do well."""
        return part is not None and part.sick and any(one.heard and one.trusted for one in self.workloads)

    def _plan_stall(self, *, news: bool) -> None:
        """Finds out when the overdue calls are a stall, if they hold every slot.

        Slow calls that happen to run at once look the same at first, so two thresholds must pass in which
        none comes back: one for the calls to be overdue, one for the first of them to end all the same.
        """
        if self._overdue_now() < (self.slots or 0):
            self._stall_at = math.inf
        elif news:
            starts = [started for ticket, (started, _) in self.overdue.items() if ticket > self.generation]
            since = max(self.back_at, min(starts))
            self._stall_at = max(max(starts) + self.slow_after, since + 2 * self.slow_after)

    def _expire_leases(self, now: float) -> None:
        lost = [ticket for ticket, until in self.leases.items() if now >= until]
        for ticket in lost:
            del self.leases[ticket]
            self.slow += 1
            started = self.in_flight.pop(ticket, now)
            if self._is_its_own(self.owners.get(ticket)):
                self.overdue[ticket] = (started, None)
                continue
            self.overdue[ticket] = (started, _IN_ROUND)
            self._lose_probe()
        if lost:
            self._judge_round(now)

    def _lose_probe(self) -> None:
        self.round.calls += 1
        self.round.slow += 1

    def consider(self, now: float) -> None:
        """Judges anew: the circuit of a compartment has opened."""
        self.tick(now)
        self._judge_closed(now, bad=True)

    # --- verdicts ------------------------------------------------------------------------------

    def _judge_closed(self, now: float, *, bad: bool) -> None:
        """Opens the circuit, or in metrics_only says once that it would have."""
        cause = self._verdict(bad=bad) if self.state in {"closed", "metrics_only"} else None
        if cause is None:
            self._warned = False
        elif self.state == "closed":
            self._open(now, cause)
        elif not self._warned:
            self._warned = True
            self.changes.append(Transition(now, self.state, self.state, cause, None))

    def _verdict(self, *, bad: bool) -> str | None:
        """Why the circuit must open, or None.

        Where there are compartments, the figures of all calls together may be those of one workload; see
        `guardrails._core.workloads`.

        Args:
            bad: Whether something bad has just become known.
        """
        cause = self._why_open()
        if self.direct is None or (cause is None and not bad):
            return cause
        heard = [one for one in self.workloads if one.heard]
        for one in heard:
            one.write_down()
        if has_spread(heard, self._seen, self.slow_after, self._least if cause is None else 0):
            return cause or ("failure_rate" if self.window.failures > self.window.slow else "slow_call_rate")
        rates = self._failure_rate, self._slow_rate
        if cause is None or not is_everybodys(heard, self._seen, self.slow_after, self._least, *rates):
            return None
        return cause

    def _why_open(self) -> str | None:
        window = self.window
        if self.streak >= self._streak_limit:
            return "consecutive_failures"
        enough = window.calls >= self._least
        if enough and reaches(window.failures, window.calls, self._failure_rate):
            return "failure_rate"
        if enough and reaches(window.slow, window.calls, self._slow_rate):
            return "slow_call_rate"
        # A pool's slots are all the evidence there can be: once overdue calls hold them all and none comes
        # back, old successes would keep the rate low until they age out, for the whole window; and a
        # pool smaller than the minimum would never reach it. A round of probes is enough for a verdict,
        # so that many slots are, too; one or two prove nothing by themselves.
        enough = enough or (self.slots or 0) >= self._policy.permitted_calls_in_half_open_state
        if enough and self._stall_at <= self._seen:
            return "stalled"
        return None

    def _overdue_now(self) -> int:
        return sum(ticket > self.generation for ticket in self.overdue)

    def _judge_round(self, now: float) -> None:
        # Reopens as soon as the round cannot be passed any more. Closes only on a whole round: a
        # closed circuit lets everybody in, so one more probe is the cheaper mistake.
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
        """Opens by hand, for one open period."""
        if self.state != "open":
            self._open(now, cause)

    def half_open(self, now: float) -> None:
        """Starts a round of probes by hand."""
        if self.state != "half_open":
            self._go(now, "half_open", "manual")

    def hold(self, state: State, now: float) -> None:
        """Goes to a state that only a hand leaves: forced_open, disabled or metrics_only."""
        if self.state != state:
            self._forget_figures()
            self._go(now, state, "manual")

    def reset(self, now: float, cause: str = "manual") -> None:
        """Back to closed with nothing remembered; calls in flight decide nothing any more."""
        self._forget()
        for one in self.workloads:
            one.forget_all()
        if self.state != self._home:
            self._go(now, self._home, cause)
        else:
            self.generation = self.issued

    def _open(self, now: float, cause: str) -> None:
        policy = self._policy
        self._openings += 1
        wait = policy.wait_duration_in_open_state
        if wait:  # 0 stays 0, however large the factor
            try:
                wait *= policy.open_backoff_multiplier ** (self._openings - 1)
            except OverflowError:
                wait = math.inf
        if policy.open_backoff_multiplier > 1:
            wait = min(wait, max(policy.max_wait_duration_in_open_state, policy.wait_duration_in_open_state))
        dice = self.random()
        if 0 <= dice <= 1:  # a wait that is no number would never be over
            wait *= 1 + policy.open_jitter * (2 * dice - 1)
        self.open_until = now + wait
        for one in self.workloads:
            one.suspect |= one.bad > 0 or spreads((one,), self._failure_rate, self._slow_rate)
        self._go(now, "open", cause, wait)

    def _close(self, now: float, cause: str) -> None:
        self._forget()
        self._go(now, "closed", cause)

    def _forget(self) -> None:
        self._forget_figures()
        self._openings = 0

    def _forget_figures(self) -> None:
        self.window.clear()
        self.streak = 0
        self._warned = False
        for one in self.workloads:
            one.forget()
            one.suspect = False

    def watch_workload(self, circuit: Breaker | None, now: float) -> Workload:
        """Starts to tell the calls of one workload from all others."""
        self.tick(now)
        one = Workload(circuit, _window(self._policy))
        one.window.advance(now)
        self.workloads.append(one)
        return one

    def _go(self, now: float, new: State, cause: str, retry_after: float | None = None) -> None:
        self.changes.append(Transition(now, self.state, new, cause, retry_after))
        self.state = new
        self.generation = self.issued
        self._stall_at = math.inf
        self._by_hand = cause == "manual"
        self.leases.clear()
        if new == "half_open":
            self._basis = self.round = Tally()
        elif new != "open":
            self._basis = self.window

    def _issue(self) -> int:
        self.issued += 1
        return self.issued

    def forgive(self, since: float, until: float) -> None:
        """Lets the clocks of calls under way stand still between two moments, in which nobody could look.

        What is overdue stays so, and no moment is taken back twice.
        """
        since, self._forgiven = max(since, self._forgiven), max(until, self._forgiven)
        if until <= since:
            return
        for ticket, started in self.in_flight.items():
            if started < until:
                self.in_flight[ticket] = started + until - max(since, started)
        for ticket, ends in self.leases.items():
            if ends > since:
                self.leases[ticket] = ends + until - since

    def forget_calls(self) -> None:
        """Drops every call under way, without evidence."""
        for calls in (self.in_flight, self.overdue, self.leases, self.owners):
            calls.clear()
        self._stall_at = math.inf
        for one in self.workloads:
            one.places.clear()

    # --- reading -------------------------------------------------------------------------------

    def evidence(self, now: float) -> tuple[int, int, int, bool]:
        """Calls, failures and slow calls the last verdict rests on, and whether they are enough for one."""
        if self.unwritten:
            self._write_down()
        if self.state != "open":  # an open circuit keeps what opened it in view
            self.window.advance(now)
        seen = self._basis
        least = self._policy.permitted_calls_in_half_open_state if seen is self.round else self._least
        return seen.calls, seen.failures, seen.slow, seen.calls >= (1 if self.state == "open" else least)

    def reached(self, failures: int, slow: int, calls: int) -> bool:
        """Whether one of the two rates is reached by so many calls."""
        return reaches(failures, calls, self._failure_rate) or reaches(slow, calls, self._slow_rate)

    def under_way(self) -> list[float]:
        """When the calls now under way began; of those in time, only the oldest."""
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
