"""A guard as one would write it on paper: lists, fractions, and everything counted anew at each look."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

SLICES = 10


@dataclass
class Entry:
    """A call in a window or a round."""

    slice: int
    failed: bool
    slow: bool


@dataclass
class Flight:
    """A call under way."""

    start: int
    generation: int
    permit: int | None
    counted: Entry | None = None
    overdue: bool = False


@dataclass
class Out:
    """A checkout. Its statements since its last result are one call."""

    permit: int | None = None
    ticket: int = 0
    first: int | None = None
    running: int = 0


@dataclass
class Naive:
    """A model of `Gate`. Times are whole numbers, so that nothing rounds."""

    policy: object
    limit: int
    max_waiting: int
    now: int = 0
    seen: int = 0
    state: str = "closed"
    generation: int = 0
    ramp_since: int | None = None
    usable: int = 0
    streak: int = 0
    openings: int = 0
    open_until: int = 0
    warned: bool = False
    log: list[Entry] = field(default_factory=list)
    round: list[Entry] = field(default_factory=list)
    shown: str = "log"
    flights: dict[int, Flight] = field(default_factory=dict)
    outs: dict[int, Out] = field(default_factory=dict)
    last_ticket: int = 0
    admitted: int = 0
    taken: int = 0
    queue: list[object] = field(default_factory=list)
    queued_at: int = 0
    served: int = 0
    granted: list[object] = field(default_factory=list)
    dismissed: list[object] = field(default_factory=list)
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("success", "failure", "abandoned", "slow", "late"), 0)
    )

    # --- moves ------------------------------------------------------------------------------

    def enter(self, place):
        if not self.allow_call():
            return "circuit_open"
        if not self.queue and self.taken < self.usable:
            self.taken += 1
            return self.begin()
        if place is None or self.state == "half_open" or len(self.queue) >= self.max_queue_length():
            return "bulkhead_full"
        if not self.queue:
            self.queued_at, self.served = self.now, 0
        self.queue.append(place)
        return None

    def woken(self, place):
        allowed = self.allow_call()
        if place in self.queue:
            self.queue.remove(place)
            return "queue_timeout"
        if place in self.granted:
            self.granted.remove(place)
            if allowed:
                return self.begin()
            self.pass_on()
        else:
            self.dismissed.remove(place)
        return "circuit_open"

    def abandon(self, place):
        self.fit()
        if place in self.queue:
            self.queue.remove(place)
        elif place in self.granted:
            self.granted.remove(place)
            self.pass_on()
        else:
            self.dismissed.remove(place)

    def leave(self, ticket, outcome):
        self.tick()
        flight = self.flights.pop(ticket)
        self.totals[outcome] += 1
        if flight.generation != self.generation:
            self.totals["late"] += 1
        elif self.state == "half_open":
            self.end_probe(flight, outcome)
        elif self.state in ("closed", "metrics_only"):
            if flight.counted is not None:
                flight.counted.failed |= outcome == "failure"
            elif outcome != "abandoned":
                self.log.append(Entry(self.slice(), outcome == "failure", slow=False))
            self.follow(outcome)
            self.judge_closed()
        self.pass_on()

    def check_out(self):
        if not self.allow_call():
            return "circuit_open"
        if self.queue or self.taken >= self.usable:
            return "bulkhead_full"
        self.taken += 1
        self.admitted += 1
        out = self.outs[self.admitted] = Out()
        if self.state == "half_open":
            self.last_ticket += 1
            out.ticket, out.permit = self.last_ticket, self.permit_until()
        return self.admitted

    def begin_on(self, slot):
        self.tick()
        out = self.outs[slot]
        ticket = out.ticket
        if out.permit is None:
            self.last_ticket += 1
            ticket = self.last_ticket
        out.running = ticket
        self.flights[ticket] = Flight(self.now, self.generation, None)
        return ticket

    def end_on(self, slot, outcome):
        self.tick()
        out = self.outs[slot]
        ticket, out.running = out.running, 0
        flight, permitted = self.flights.pop(ticket), out.permit is not None and ticket == out.ticket
        self.totals["success" if outcome == "neutral" else outcome] += 1
        if outcome == "neutral" and not flight.overdue and permitted:
            return
        if outcome == "success" and not flight.overdue and flight.generation == self.generation:
            out.first = self.now if out.first is None else out.first
            until = out.first + self.policy.slow_call_duration_threshold
            if self.now < until:
                out.permit = min(out.permit, until) if permitted else out.permit
                return
            out.first = None
        elif outcome != "neutral" or flight.overdue:
            out.first = None
        out.permit = None if permitted else out.permit
        self.record(flight, outcome, permitted=permitted)

    def check_in(self, slot):
        self.fit()
        out = self.outs[slot]
        if out.ticket or out.first is not None:
            self.tick()
        del self.outs[slot]
        if out.first is not None:
            self.record(Flight(0, self.generation, None), "success", permitted=out.permit is not None)
        lost = self.flights.pop(out.ticket, None)
        if lost is not None:
            self.totals["abandoned"] += 1
            self.record(lost, "abandoned", permitted=False)
        self.pass_on()

    def record(self, flight, outcome, *, permitted):
        if flight.generation != self.generation:
            self.totals["late"] += 1
        elif self.state == "half_open":
            if flight.counted is not None:
                flight.counted.failed |= outcome == "failure"
            elif permitted and outcome in ("success", "failure"):
                self.round.append(Entry(0, outcome == "failure", slow=False))
            if permitted or flight.counted is not None:
                self.follow(outcome)
                self.judge_round()
        elif self.state in ("closed", "metrics_only"):
            if flight.counted is not None:
                flight.counted.failed |= outcome == "failure"
            elif outcome in ("success", "failure"):
                self.log.append(Entry(self.slice(), outcome == "failure", slow=False))
            self.follow(outcome)
            self.judge_closed()

    def resize(self, limit):
        self.limit = limit
        self.fit()

    def set_state(self, transition):
        self.tick()
        if transition == "reset":
            self.forget()
            if self.state == "closed":
                self.generation += 1
                self.ramp_since = None
                self.fit()
            else:
                self.go("closed", "manual")
            for out in self.outs.values():
                out.first = None
        elif transition == "open":
            if self.state != "open":
                self.open("manual")
        elif transition == "half_open":
            if self.state != "half_open":
                self.go("half_open", "manual")
        elif self.state != transition:
            self.log.clear()
            self.streak = 0
            self.warned = False
            self.go(transition, "manual")

    def tick(self):
        self.fit()
        if self.state in ("closed", "metrics_only"):
            self.seen = self.now
            if self.warned and self.why_open() is None:
                self.warned = False
        crossed = [
            flight
            for _, flight in sorted(self.flights.items())
            if not flight.overdue and self.now - flight.start > self.policy.slow_call_duration_threshold
        ]
        for flight in crossed:
            flight.overdue = True
            self.totals["slow"] += 1
            if flight.generation != self.generation:
                continue
            probe = self.probe_of(flight)
            if self.state in ("closed", "metrics_only"):
                flight.counted = Entry(self.slice(), failed=False, slow=True)
                self.log.append(flight.counted)
            elif probe is not None:
                probe.permit = None
                self.lose(flight)
        if crossed:
            self.judge()
        self.end_leases()

    def probe_of(self, flight):
        """The call or the checkout that has the permit of a statement, or None."""
        of_it = [out for out in self.outs.values() if self.flights.get(out.ticket) is flight]
        return next((each for each in [flight, *of_it] if each.permit is not None), None)

    def end_leases(self):
        lost = [f for f in self.flights.values() if f.permit is not None and self.now >= f.permit]
        over = [out for out in self.outs.values() if out.permit is not None and self.now >= out.permit]
        for out in over:
            if out.first is None:
                out.permit = None
                lost.append(self.flights.setdefault(out.ticket, Flight(self.now, self.generation, None)))
        for flight in lost:
            flight.overdue = True
            self.totals["slow"] += 1
            self.lose(flight)
        if lost:
            self.judge()
        for out in over:
            if out.first is not None and not out.running:
                out.first = out.permit = None
                self.record(Flight(0, self.generation, None), "success", permitted=True)

    # --- rules ------------------------------------------------------------------------------

    def allow_call(self):
        self.tick()
        if self.state == "open" and self.now >= self.open_until:
            self.go("half_open", "wait_over")
        if self.state == "half_open":
            out = sum(each.permit is not None for each in [*self.flights.values(), *self.outs.values()])
            return out + len(self.round) < self.policy.permitted_calls_in_half_open_state
        return self.state not in ("open", "forced_open")

    def begin(self):
        self.last_ticket += 1
        self.admitted += 1
        permit = self.permit_until() if self.state == "half_open" else None
        self.flights[self.last_ticket] = Flight(self.now, self.generation, permit)
        return self.last_ticket

    def permit_until(self):
        return self.now + self.policy.max_wait_duration_in_half_open_state

    def lose(self, flight):
        flight.permit = None
        flight.counted = Entry(0, failed=False, slow=True)
        self.round.append(flight.counted)

    def end_probe(self, flight, outcome):
        if flight.counted is not None:
            flight.counted.failed |= outcome == "failure"
        elif outcome != "abandoned":
            self.round.append(Entry(0, outcome == "failure", slow=False))
        self.follow(outcome)
        self.judge_round()

    def follow(self, outcome):
        if outcome == "failure":
            self.streak += 1
        elif outcome == "success":
            self.streak = 0

    def judge(self):
        if self.state == "half_open":
            self.judge_round()
        else:
            self.judge_closed()

    def judge_closed(self):
        cause = self.why_open() if self.state in ("closed", "metrics_only") else None
        if cause is None:
            self.warned = False
        elif self.state == "closed":
            self.open(cause)
        elif not self.warned:
            self.warned = True
            self.changes.append(("metrics_only", "metrics_only", cause))

    def why_open(self):
        policy, entries = self.policy, self.entries()
        if policy.consecutive_failures and self.streak >= policy.consecutive_failures:
            return "consecutive_failures"
        least = policy.minimum_number_of_calls
        if policy.sliding_window_type == "count":
            least = min(least, policy.sliding_window_size)
        if len(entries) < least:
            return None
        if Fraction(sum(e.failed for e in entries), len(entries)) >= rate(policy.failure_rate_threshold):
            return "failure_rate"
        if Fraction(sum(e.slow for e in entries), len(entries)) >= rate(policy.slow_call_rate_threshold):
            return "slow_call_rate"
        return None

    def judge_round(self):
        if self.state != "half_open":
            return
        policy, entries = self.policy, self.round
        probes = policy.permitted_calls_in_half_open_state
        failed, slow = sum(e.failed for e in entries), sum(e.slow for e in entries)
        streak = policy.consecutive_failures and self.streak >= policy.consecutive_failures
        if (
            Fraction(failed, probes) >= rate(policy.failure_rate_threshold)
            or Fraction(slow, probes) >= rate(policy.slow_call_rate_threshold)
            or (failed and streak)
        ):
            self.open("probes_failed")
        elif len(entries) >= probes:
            self.forget()
            self.go("closed", "probes_passed")
            self.ramp_since = self.now
            self.fit()

    def open(self, cause):
        policy = self.policy
        self.openings += 1
        wait = policy.wait_duration_in_open_state * policy.open_backoff_multiplier ** (self.openings - 1)
        if policy.open_backoff_multiplier > 1:
            most = max(policy.max_wait_duration_in_open_state, policy.wait_duration_in_open_state)
            wait = min(wait, most)
        self.open_until = self.now + wait
        self.go("open", cause)

    def go(self, new, cause):
        self.changes.append((self.state, new, cause))
        self.state = new
        self.generation += 1
        for flight in self.flights.values():
            flight.permit = None
        for out in self.outs.values():
            out.permit = out.first = None
        if new == "half_open":
            self.round = []
            self.shown = "round"
        elif new != "open":
            self.shown = "log"
        if new in ("open", "half_open", "forced_open"):
            self.dismissed += self.queue
            self.queue = []
        self.ramp_since = None
        self.fit()

    def forget(self):
        self.log = []
        self.streak = self.openings = 0
        self.warned = False

    def pass_on(self):
        if self.queue and self.taken <= self.usable:
            self.served += 1
            self.granted.append(self.queue.pop(0))
        else:
            self.taken -= 1

    def fit(self):
        """Counts the usable slots anew, and grants those that are free."""
        self.usable = self.limit
        first = self.policy.permitted_calls_in_half_open_state
        if self.ramp_since is not None and self.limit > first and self.policy.recovery_ramp:
            share = Fraction(self.now - self.ramp_since, self.policy.recovery_ramp)
            self.usable = min(self.limit, first + int(share * (self.limit - first)))
        while self.queue and self.taken < self.usable:
            self.taken += 1
            self.served += 1
            self.granted.append(self.queue.pop(0))

    def max_queue_length(self):
        if not self.queue or self.now == self.queued_at:
            return self.max_waiting
        # A second is long enough to call a queue a standing one, which serves no more than this in 5 ms.
        return min(self.max_waiting, 1 + Fraction(2 * 5 * self.served, 1000 * (self.now - self.queued_at)))

    # --- looking ----------------------------------------------------------------------------

    def slice(self):
        return self.now * SLICES // self.policy.sliding_window_size

    def entries(self):
        size = self.policy.sliding_window_size
        if self.policy.sliding_window_type == "count":
            return self.log[-size:]
        return [entry for entry in self.log if self.seen * SLICES // size - entry.slice < SLICES]

    def evidence(self):
        if self.state != "open":
            self.seen = self.now
        entries = self.entries() if self.shown == "log" else self.round
        return len(entries), sum(e.failed for e in entries), sum(e.slow for e in entries)


def rate(threshold):
    return Fraction(threshold).limit_denominator(10**6)
