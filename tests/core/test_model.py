"""The gate against a naive model, step by step; and the fast paths against the long ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker, Transition
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.gate import Gate, Refusal
from guardrails._core.outcome import Outcome
from support.naive import Naive
from support.shell import FastPaths, Shell

EXAMPLES = settings.default.max_examples
OUTCOMES = {"success": Outcome.SUCCESS, "failure": Outcome.FAILURE, "abandoned": Outcome.ABANDONED}
OF_STATEMENTS = {**OUTCOMES, "neutral": Outcome.NEUTRAL}
TURNS = ("reset", "open", "half_open", "forced_open", "disabled", "metrics_only")
RATES = st.sampled_from([0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0])

POLICIES = st.builds(
    BreakerPolicy,
    failure_rate_threshold=RATES,
    slow_call_rate_threshold=RATES,
    slow_call_duration_threshold=st.integers(1, 5),
    sliding_window_type=st.sampled_from(["count", "time"]),
    sliding_window_size=st.integers(1, 12),
    minimum_number_of_calls=st.integers(1, 6),
    wait_duration_in_open_state=st.integers(0, 4),
    open_backoff_multiplier=st.sampled_from([1, 2, 3]),
    max_wait_duration_in_open_state=st.integers(1, 9),
    open_jitter=st.just(0),
    permitted_calls_in_half_open_state=st.integers(1, 4),
    max_wait_duration_in_half_open_state=st.integers(1, 8),
    recovery_ramp=st.sampled_from([0, 0, 1, 3, 7]),
    consecutive_failures=st.none() | st.integers(1, 4),
)


def make_gate(policy, limit, max_waiting):
    return Gate(Breaker(policy, lambda: 0.5), Bulkhead(limit, max_waiting))


class GateEqualsModel(RuleBasedStateMachine):
    """Every move is made on both; after each, everything that can be seen is equal."""

    @initialize(policy=POLICIES, limit=st.integers(1, 6), max_waiting=st.integers(0, 3))
    def start(self, policy, limit, max_waiting):
        self.gate = make_gate(policy, limit, max_waiting)
        self.shell = Shell(self.gate)
        self.model = Naive(policy, limit, max_waiting, usable=limit)
        self.waiting = []
        self.changes = []

    @property
    def now(self):
        return self.model.now

    def same(self, verdict, expected):
        assert (verdict.reason if isinstance(verdict, Refusal) else verdict) == expected

    @rule(seconds=st.sampled_from([0, 1, 1, 1, 2, 3, 5, 8, 1000]))
    def wait(self, seconds):
        self.model.now += seconds

    @rule(outcomes=st.lists(st.sampled_from([*OUTCOMES, "success", "failure"]), min_size=1, max_size=8))
    def call(self, outcomes):
        """Calls one after the other, as most of them are."""
        for outcome in outcomes:
            verdict = self.shell.enter(self.now, None)
            self.same(verdict, self.model.enter(None))
            if isinstance(verdict, int):
                self.end(verdict, outcome)

    @rule(patient=st.booleans())
    def enter(self, patient):
        waiter = Waiter() if patient else None
        verdict = self.shell.enter(self.now, waiter)
        self.same(verdict, self.model.enter(waiter))
        if verdict is None:
            self.waiting.append(waiter)

    @precondition(lambda self: self.calls())
    @rule(data=st.data(), outcome=st.sampled_from(list(OUTCOMES)))
    def leave(self, data, outcome):
        self.end(data.draw(st.sampled_from(self.calls())), outcome)

    def calls(self):
        """The tickets of calls, without those of checkouts."""
        of_checkouts = {ticket for out in self.model.outs.values() for ticket in (out.ticket, out.running)}
        return sorted(self.model.flights.keys() - of_checkouts)

    @rule()
    def check_out(self):
        verdict = FastPaths(self.gate, max_wait=0).check_out(self.now) or self.gate.check_out(self.now, None)
        self.same(verdict, self.model.check_out())

    @precondition(lambda self: self.model.outs)
    @rule(
        data=st.data(),
        outcomes=st.lists(st.sampled_from([*OF_STATEMENTS, "success", "success"]), max_size=4),
    )
    def work(self, data, outcomes):
        """Makes quick statements on a checkout, and may leave one under way or return the connection."""
        slot = data.draw(st.sampled_from(sorted(self.model.outs)))
        last = data.draw(st.sampled_from(["begin", "check_in", "check_in", "nothing"]))
        if self.model.outs[slot].running:
            self.end_statement(slot, data.draw(st.sampled_from(["success", *OF_STATEMENTS])))
        for outcome in outcomes:
            self.begin_statement(slot)
            self.end_statement(slot, outcome)
        if last == "begin":
            self.begin_statement(slot)
        elif last == "check_in":
            if not FastPaths(self.gate).checks_in(self.now, slot):
                self.gate.check_in(self.now, slot)
            self.model.check_in(slot)

    def begin_statement(self, slot):
        ticket = FastPaths(self.gate).begins(self.now) or self.gate.begin(self.now, slot)
        assert ticket == self.model.begin_on(slot)

    def end_statement(self, slot, outcome):
        ticket, found = self.model.outs[slot].running, OF_STATEMENTS[outcome]
        if not FastPaths(self.gate).ends(self.now, ticket, found, 0, slot):
            assert self.gate.end(self.now, ticket, found, slot)
        self.model.end_on(slot, outcome)

    def end(self, ticket, outcome):
        assert self.shell.leave(self.now, ticket, OUTCOMES[outcome])
        self.model.leave(ticket, outcome)
        assert self.gate.leave(self.now, ticket, Outcome.FAILURE) is None
        self.model.tick()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), comes_back=st.booleans())
    def stop_waiting(self, data, comes_back):
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        if comes_back:
            self.same(self.gate.woken(self.now, waiter), self.model.woken(waiter))
        else:
            self.gate.abandon(self.now, waiter)
            self.model.abandon(waiter)

    @rule()
    def look(self):
        refusal = self.gate.preview(self.now)
        assert (refusal is None) == self.model.allow_call()

    @rule(limit=st.integers(1, 5))
    def resize(self, limit):
        self.gate.resize(self.now, limit)
        self.model.resize(limit)

    @rule(transition=st.sampled_from([None] * 20 + list(TURNS)))
    def set_state(self, transition):
        if transition is None:
            return  # a hand on the circuit is rare, and would leave little else to see
        self.refresh()  # a circuit that opens and is closed by hand in one step sends no waiter away
        self.gate.set_state(self.now, transition)
        self.model.set_state(transition)

    @rule()
    def refresh(self):
        self.gate.refresh(self.now)
        self.model.tick()

    @invariant()
    def all_is_equal(self):
        if not hasattr(self, "gate"):
            return
        gate, model = self.gate, self.model
        breaker, bulkhead = gate.breaker, gate.bulkhead
        self.changes += [item[1:4] for item in gate.outbox if isinstance(item, Transition)]
        gate.outbox.clear()
        assert self.changes == model.changes
        assert breaker.state == model.state
        assert breaker.evidence(self.now)[:3] == model.evidence()
        assert (bulkhead.taken, list(bulkhead.queue)) == (model.taken, model.queue)
        assert bulkhead.usable == model.usable
        assert [waiter.verdict for waiter in self.waiting] == [
            "granted" if waiter in model.granted else "dismissed" if waiter in model.dismissed else None
            for waiter in self.waiting
        ]
        counted = (breaker.succeeded, breaker.failed, breaker.abandoned, breaker.slow, breaker.late)
        assert counted == tuple(model.totals.values())
        assert sorted([*breaker.in_flight, *breaker.overdue]) == sorted(model.flights)
        if model.state == "open":
            assert breaker.open_until == model.open_until

    @invariant()
    def slots_are_conserved(self):
        if hasattr(self, "gate"):
            taken = self.gate.bulkhead.taken
            assert taken == len(self.calls()) + len(self.model.outs) + len(self.model.granted)
            assert self.gate.breaker.good_since.keys() <= {
                number for slot, out in self.model.outs.items() for number in (slot, -out.ticket)
            }
            assert not (self.gate.bulkhead.queue and taken < self.gate.bulkhead.usable)


TestGateEqualsModel = pytest.mark.timeout(900)(GateEqualsModel.TestCase)  # a failure takes long to shrink
TestGateEqualsModel.settings = settings(max_examples=EXAMPLES * 5 // 2, stateful_step_count=60, deadline=None)


MOVES = st.tuples(
    st.sampled_from(
        [
            "wait",
            *["enter", "leave", "check_out", "check_in", "begin", "end"] * 3,
            "queue",
            "queue",
            "wake",
            "look",
            "begin",
            "end",
            "end",
            "fail",
            "turn",
        ]
    ),
    st.integers(0, 5),
)
WAITS = (0, 0, 1, 1, 2, -1)


class Driver:
    """Makes moves on a gate, on the fast path where it can, or always on the slow path."""

    def __init__(self, policy, *, quick, stalls, parts):
        self.gate = make_gate(policy, 4, 2)
        if parts:
            self.gate.add_workload(0, Breaker(policy, lambda: 0.5))
            self.gate.breaker.caller_workload = self.gate.breaker.uncompartmented
        self.shell = Shell(self.gate)
        self.quick = quick
        self.now = 0
        self.calls, self.slots, self.tickets, self.places = [], [], [], []
        self.gate.watch_for_stalls(0, on=stalls)

    def make(self, move, choice):
        if move == "wait":
            self.now += WAITS[choice]
        elif move == "turn":
            self.gate.set_state(self.now, TURNS[choice])
        elif move == "queue":
            waiter = Waiter()
            verdict = self.gate.enter(self.now, waiter)
            self.places += [waiter] if verdict is None else []
            self.keep(self.calls, verdict)
        elif move == "look":
            return (self.quick and FastPaths(self.gate).preview(self.now)) or self.gate.preview(self.now)
        elif move == "wake":
            if self.places:
                self.keep(self.calls, self.gate.woken(self.now, self.places.pop(0)))
        elif move in ("enter", "check_out", "begin"):
            self.start(move, choice)
        else:
            kept = {"leave": self.calls, "check_in": self.slots}.get(move, self.tickets)
            if kept:
                self.stop(move, kept.pop(choice % len(kept)))
        return None

    def start(self, move, choice):
        gate, now = self.gate, self.now
        if move == "enter":
            self.keep(self.calls, (self.shell if self.quick else gate).enter(now, None))
        elif move == "check_out":
            self.keep(
                self.slots, (self.quick and FastPaths(gate).check_out(now)) or gate.check_out(now, None)
            )
        else:
            slot = self.slots[choice % len(self.slots)] if self.slots else 0
            ticket = (self.quick and FastPaths(gate).begins(now)) or gate.begin(now, slot)
            self.tickets.append((ticket, slot))

    def stop(self, move, number):
        gate, now = self.gate, self.now
        if move == "leave":
            outcome = Outcome.FAILURE if number % 4 == 0 else Outcome.SUCCESS
            (self.shell if self.quick else gate).leave(now, number, outcome)
        elif move == "check_in":
            if not (self.quick and FastPaths(gate).checks_in(now, number)):
                gate.check_in(now, number)
        else:
            ticket, slot = number
            outcome = Outcome.NEUTRAL if ticket % 3 == 0 else Outcome.SUCCESS
            outcome = Outcome.FAILURE if move == "fail" else outcome
            if not (self.quick and FastPaths(gate).ends(now, ticket, outcome, 0, slot)):
                gate.end(now, ticket, outcome, slot)

    def keep(self, where, verdict):
        if isinstance(verdict, int):
            where.append(verdict)

    def seen(self):
        gate = self.gate
        breaker = gate.breaker
        return {
            "last": max(gate.last, self.now),
            "state": breaker.state,
            "evidence": breaker.evidence(max(gate.last, self.now)),
            "round": (breaker.round.calls, breaker.round.failures, breaker.round.slow),
            "in_flight": breaker.in_flight,
            "overdue": {ticket: since for ticket, (since, _) in breaker.overdue.items()},
            "permits": breaker.permits,
            "good_since": breaker.good_since,
            "streak": breaker.streak,
            "totals": (breaker.succeeded, breaker.failed, breaker.slow, breaker.late, breaker.abandoned),
            "slots": (
                gate.bulkhead.taken,
                gate.bulkhead.usable,
                gate.bulkhead.limit,
                gate.admitted,
                gate.checkouts,
            ),
            "queue": [waiter.verdict for waiter in self.places],
            "told": [item if isinstance(item, Transition) else "a place" for item in gate.outbox],
            "rejected": gate.rejected,
        } | (self.seen_of_workloads() if breaker.slow_after < float("inf") else {})

    def seen_of_workloads(self):
        """A bulkhead's way does without: where there is no policy, nothing is learnt."""
        breaker = self.gate.breaker
        return {
            "workloads": [self.figures(one) for one in breaker.workloads],
            "owners": sorted(breaker.workload_by_ticket),
        }

    def figures(self, one):
        one.flush_successes()
        one.window.advance(max(self.gate.last, self.now))  # as the circuit does before it judges
        return (
            one.bad_calls,
            one.last_success_at,
            one.suspect,
            one.window.calls,
            one.window.failures,
            one.window.slow,
        )


@pytest.mark.timeout(900)
@settings(max_examples=EXAMPLES * 5)
@given(st.none() | POLICIES, st.booleans(), st.booleans(), st.lists(MOVES, max_size=80))
def test_the_fast_paths_do_what_the_slow_paths_do(policy, stalls, parts, moves):
    """Two gates get the same moves; one may take the fast paths, and both have the same state."""
    quick, long = (Driver(policy, quick=way, stalls=stalls, parts=parts) for way in (True, False))
    for move, choice in moves:
        assert quick.make(move, choice) == long.make(move, choice)
        if choice % 3 == 0:  # to look writes down what is not written yet
            assert quick.seen() == long.seen(), (move, choice)
    assert quick.seen() == long.seen()
