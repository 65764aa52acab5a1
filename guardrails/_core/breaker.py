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

from guardrails._core.window import FAILED, NEVER, SLOW, CountWindow, TimeWindow, Window
from guardrails._outcome import Outcome
from guardrails._policy import BreakerPolicy

__all__ = ["Breaker", "Change", "State"]

State = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]

_IN_ROUND = -1
"""The place of a slow mark that went into the half-open round."""

_FINEST_RATE = 10**6
"""Thresholds are read as the nearest fraction with a denominator up to this: 0.1 means 1/10, not the
binary float a hair above it, so that one failure in ten trips."""


class Change(NamedTuple):
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
        slots: With a number, that many overdue calls at once are a stall; see ``_why_open``.
    """

    __slots__ = (
        "_basis",
        "_failure_rate",
        "_home",
        "_least",
        "_openings",
        "_policy",
        "_slow_rate",
        "_streak_limit",
        "_warned",
        "abandoned",
        "changes",
        "era",
        "failed",
        "in_flight",
        "issued",
        "late",
        "leases",
        "open_until",
        "overdue",
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
    )

    def __init__(self, policy: BreakerPolicy | None, random: Callable[[], float]) -> None:
        """Starts closed, or, without a policy, disabled for good."""
        self._home: State = "closed" if policy is not None else "disabled"
        self._policy = policy = policy or BreakerPolicy()
        self.random = random
        self._least = policy.minimum_number_of_calls
        self.window: Window
        if policy.sliding_window_type == "count":
            size = int(policy.sliding_window_size)
            self.window = CountWindow(size)
            self._least = min(self._least, size)
        else:
            self.window = TimeWindow(policy.sliding_window_size)
        self._failure_rate = _ratio(policy.failure_rate_threshold)
        self._slow_rate = _ratio(policy.slow_call_rate_threshold)
        self._streak_limit = policy.consecutive_failures or math.inf
        self.slow_after = policy.slow_call_duration_threshold if self._home == "closed" else math.inf
        self.state: State = self._home
        self.issued = self.era = 0
        self.in_flight: dict[int, float] = {}
        self.overdue: dict[int, tuple[float, int | None]] = {}
        self.leases: dict[int, float] = {}
        self.quiet_until = self.open_until = NEVER
        self.round = _NO_ROUND
        self._basis: Window | Tally = self.window
        self.changes: list[Change] = []
        self.slots: int | None = None
        self.streak = 0
        self.unwritten = 0
        self._openings = 0
        self._warned = False
        self.succeeded = self.failed = self.abandoned = self.slow = self.late = 0

    # --- admission -----------------------------------------------------------------------------

    def knock(self, now: float) -> bool:
        """Brings the circuit up to ``now`` and says whether a call may start."""
        self.tick(now)
        if self.state == "open" and now >= self.open_until:
            self._go(now, "half_open", "wait_over")
        if self.state == "half_open":
            return len(self.leases) + self.round.calls < self._policy.permitted_calls_in_half_open_state
        return self.state not in {"open", "forced_open"}

    def begin(self, now: float) -> int:
        """Starts a call and returns its ticket. In half-open it is a probe and takes a lease."""
        ticket = self.lease(now) or self._issue()
        self.in_flight[ticket] = now
        return ticket

    def begin_unleased(self, now: float, lease: int) -> int:
        """Starts a call on what was admitted before: the leased probe itself, or one that is none."""
        ticket = lease if lease in self.leases and lease not in self.in_flight else self._issue()
        self.in_flight[ticket] = now
        return ticket

    def lease(self, now: float) -> int:
        """Takes a probe's place in half-open and returns its ticket; 0 in every other state.

        The probe's clock starts with ``resume``, or with ``begin`` which does both.
        """
        if self.state != "half_open":
            return 0
        ticket = self._issue()
        self.leases[ticket] = now + self._policy.max_wait_duration_in_half_open_state
        return ticket

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
        if since is None:
            self.leases.pop(ticket, None)  # a probe that never began gives its place back
            return None
        self._count(outcome)
        if ticket <= self.era:
            self.late += 1
        elif self.state == "half_open":
            in_round = counted is not None and counted[1] == _IN_ROUND
            self._end_probe(ticket, outcome, counted=in_round, now=now)
        elif self.state in {"closed", "metrics_only"}:
            self._learn(outcome, place=counted[1] if counted else None, now=now)
        return Ended(now - since, counted is not None)

    def tick(self, now: float) -> None:
        """Counts what has become true by ``now`` alone: overdue calls and lost probes."""
        if self.unwritten:
            self._write_down()
        if self.state in {"closed", "metrics_only"}:
            self.window.advance(now)
            if self._warned and self._why_open() is None:
                self._warned = False  # what was warned of is over; the next time is worth a word again
        if now >= self.quiet_until:
            self._count_overdue(now)
        if self.leases:
            self._expire_leases(now)

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
        elif outcome is not Outcome.ABANDONED:
            self.window.add(FAILED * failed)
        self._follow_streak(outcome)
        self._judge_closed(now)

    def _end_probe(self, ticket: int, outcome: Outcome, *, counted: bool, now: float) -> None:
        leased = self.leases.pop(ticket, None) is not None
        if not leased and not counted:
            return  # begun in half-open without a lease: inside a connection that was out before
        if leased and outcome is not Outcome.ABANDONED:
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
        if outcome is Outcome.SUCCESS:
            self.succeeded += 1
        elif outcome is Outcome.FAILURE:
            self.failed += 1
        else:
            self.abandoned += 1

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
            place = None
            if ticket <= self.era:
                pass
            elif self.state in {"closed", "metrics_only"}:
                place = self.window.add(SLOW)
            elif self.leases.pop(ticket, None) is not None:
                self._lose_probe()
                place = _IN_ROUND
            self.overdue[ticket] = (started, place)
        else:
            self.quiet_until = now + self.slow_after
        if len(self.overdue) == before:
            return  # no verdict without new evidence: when one is due must not hang on who looks, and when
        if self.state == "half_open":
            self._judge_round(now)
        else:
            self._judge_closed(now)

    def _expire_leases(self, now: float) -> None:
        lost = [ticket for ticket, until in self.leases.items() if now >= until]
        for ticket in lost:
            del self.leases[ticket]
            self.slow += 1
            started = self.in_flight.pop(ticket, now)
            self.overdue[ticket] = (started, _IN_ROUND)
            self._lose_probe()
        if lost:
            self._judge_round(now)

    def _lose_probe(self) -> None:
        self.round.calls += 1
        self.round.slow += 1

    # --- verdicts ------------------------------------------------------------------------------

    def _judge_closed(self, now: float) -> None:
        """Opens the circuit, or in metrics_only says once that it would have."""
        cause = self._why_open() if self.state in {"closed", "metrics_only"} else None
        if cause is None:
            self._warned = False
        elif self.state == "closed":
            self._open(now, cause)
        elif not self._warned:
            self._warned = True
            self.changes.append(Change(now, self.state, self.state, cause, None))

    def _why_open(self) -> str | None:
        window = self.window
        if self.streak >= self._streak_limit:
            return "consecutive_failures"
        enough = window.calls >= self._least
        if enough and _reaches(window.failures, window.calls, self._failure_rate):
            return "failure_rate"
        if enough and _reaches(window.slow, window.calls, self._slow_rate):
            return "slow_call_rate"
        # A pool's slots are all the evidence there can be: once each of them is held by an overdue
        # call, old successes would keep the rate low until they age out, for the whole window; and a
        # pool smaller than the minimum would never reach it. A round of probes is enough for a verdict,
        # so that many slots are, too; one or two prove nothing by themselves.
        enough = enough or (self.slots or 0) >= self._policy.permitted_calls_in_half_open_state
        if enough and self.slots is not None and self._overdue_now() >= self.slots:
            return "stalled"
        return None

    def _overdue_now(self) -> int:
        return sum(ticket > self.era for ticket in self.overdue)

    def _judge_round(self, now: float) -> None:
        # Reopens as soon as the round cannot be passed any more. Closes only on a whole round: a
        # closed circuit lets everybody in, so one more probe is the cheaper mistake.
        tally, probes = self.round, self._policy.permitted_calls_in_half_open_state
        if (
            _reaches(tally.failures, probes, self._failure_rate)
            or _reaches(tally.slow, probes, self._slow_rate)
            or (tally.failures and self.streak >= self._streak_limit)
        ):
            self._open(now, "probes_failed")
        elif tally.calls >= probes:
            self._close(now, "probes_passed")

    # --- transitions ---------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Opens by hand, for one open period."""
        if self.state != "open":
            self._open(now, "manual")

    def half_open(self, now: float) -> None:
        """Starts a round of probes by hand."""
        if self.state != "half_open":
            self._go(now, "half_open", "manual")

    def hold(self, state: State, now: float) -> None:
        """Goes to a state that only a hand leaves: forced_open, disabled or metrics_only."""
        if self.state != state:
            self.window.clear()
            self.streak = 0
            self._warned = False
            self._go(now, state, "manual")

    def reset(self, now: float) -> None:
        """Back to closed with nothing remembered; calls in flight decide nothing any more."""
        self._forget()
        if self.state != self._home:
            self._go(now, self._home, "manual")
        else:
            self.era = self.issued

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
        self._go(now, "open", cause, wait)

    def _close(self, now: float, cause: str) -> None:
        self._forget()
        self._go(now, "closed", cause)

    def _forget(self) -> None:
        self.window.clear()
        self.streak = 0
        self._openings = 0
        self._warned = False

    def _go(self, now: float, new: State, cause: str, retry_after: float | None = None) -> None:
        self.changes.append(Change(now, self.state, new, cause, retry_after))
        self.state = new
        self.era = self.issued
        self.leases.clear()
        if new == "half_open":
            self._basis = self.round = Tally()
        elif new != "open":
            self._basis = self.window

    def _issue(self) -> int:
        self.issued += 1
        return self.issued

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

    def under_way(self) -> list[float]:
        """When the calls now under way began; of those in time, only the oldest."""
        starts = [started for started, _ in self.overdue.values()]
        starts.extend(list(self.in_flight.values())[:1])
        return starts


@lru_cache(maxsize=64)
def _ratio(threshold: float) -> tuple[int, int]:
    nearest = Fraction(threshold).limit_denominator(_FINEST_RATE)
    return nearest.as_integer_ratio() if nearest else (1, _FINEST_RATE)


def _reaches(part: int, whole: int, threshold: tuple[int, int]) -> bool:
    """``part / whole >= threshold`` in whole numbers, where no rounding can flip a verdict."""
    numerator, denominator = threshold
    return part * denominator >= numerator * whole > 0
