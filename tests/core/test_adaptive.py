"""The adaptive limit: what it learns of hand-made windows, and of simulated databases through a gate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import Adaptive, BreakerPolicy, ConfigurationError
from guardrails._core.adaptive import ENOUGH, LONGEST_WINDOW, PROBE_EVERY, AdaptiveLimit
from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.gate import Gate, SlotsChanged
from guardrails._core.outcome import Outcome
from support.simulated_database import Database

S, F, X = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED


class Windows:
    """Feeds a limit with windows of a second each, in which ``throughput(running)`` calls succeed.

    Attributes:
        applied: The limit that was applied in each window.
    """

    def __init__(self, throughput, slots=20, minimum=1, **options):
        self.limit = AdaptiveLimit(minimum, slots, enforces=True, **options)
        self.throughput = throughput
        self.now, self.served = 100.0, 0
        self.applied = []
        self.limit.pass_time(self.now, 0)

    def run(self, count, demand=math.inf, *, applies=True):
        for _ in range(count):
            running = min(demand, self.limit.applied)
            self.applied.append(self.limit.applied)
            self.now += 1.0
            self.served += round(self.throughput(running))
            self.limit.pass_time(self.now, running)
            self.limit.decide(self.now, self.served, applies=applies)
        return self.limit.limit


def falls(running):
    """Most are served with six calls at once."""
    return 50 * min(running, 8) / (1 + (max(0, running - 4) / 4) ** 2)


def saturates(running):
    """Eight calls at once are served as fast as more."""
    return 50 * min(running, 8)


# --- the rule -----------------------------------------------------------------------------------


def test_the_limit_goes_down_to_the_number_that_serves_most_and_stays_there():
    windows = Windows(falls)
    assert windows.run(40) in (6, 7)
    before = len(windows.applied)
    windows.run(80)
    assert {*windows.applied[before:]} <= {5, 6, 7, 8}


def test_the_limit_stays_where_fewer_calls_at_once_serve_no_more():
    windows = Windows(saturates)
    assert windows.run(60) == 20
    assert {*windows.applied} == {20, 16}


def test_the_limit_goes_up_again_when_the_dependency_has_recovered():
    windows = Windows(falls)
    windows.run(40)
    windows.throughput = lambda running: 50 * running
    assert windows.run(60) == 20


def test_the_next_number_is_tried_for_one_window_in_eight():
    windows = Windows(saturates)
    windows.run(4 * PROBE_EVERY)
    assert [window for window, applied in enumerate(windows.applied) if applied != 20] == [1, 9, 17, 25]


def test_after_a_move_the_next_number_in_the_same_direction_is_tried_at_once():
    windows = Windows(lambda running: 4000 / running)
    windows.run(8)
    assert windows.applied[1:] == sorted(windows.applied[1:], reverse=True)
    assert len({*windows.applied[1:]}) == 7


def test_without_demand_nothing_is_tried_and_the_limit_stays():
    windows = Windows(falls)
    assert windows.run(40, demand=3) == 20
    assert {*windows.applied} == {20}


def test_a_smaller_number_is_measured_anew_before_it_becomes_the_limit():
    """Two quick reads at once have served 1000 a second; long reports run in parallel without any loss."""
    windows = Windows(lambda running: 500 * running)
    windows.run(60, demand=2)
    windows.throughput = lambda running: running
    before = len(windows.applied)
    assert windows.run(100) == 20
    assert windows.applied[before:].count(2) <= LONGEST_WINDOW
    assert windows.applied[-5:] == [20] * 5


def test_measurements_of_other_work_are_forgotten():
    """Twenty quick reads at once have served 6000 a second; of the work after them six calls serve most."""
    windows = Windows(lambda running: 300 * running)
    windows.run(60)
    windows.throughput = falls
    assert windows.run(40) in (6, 7)


def test_the_limit_keeps_to_the_minimum():
    windows = Windows(lambda running: 4000 / running, minimum=4)
    assert windows.run(60) == 4
    assert min(windows.applied) == 4


def test_a_limit_that_is_not_applied_tries_nothing():
    """It knows only the numbers that have come by themselves: here with three, then with twenty callers."""
    windows = Windows(falls)
    windows.run(5, demand=6, applies=False)
    assert windows.run(5, applies=False) == 6
    assert windows.limit.applied == 6


def test_few_calls_prove_nothing():
    """A window of 21 calls may have 15 by accident; it takes more than that to go down."""
    windows = Windows(lambda running: 21 if running == 20 else 24)
    assert windows.run(6) == 20


def test_a_window_ends_with_enough_calls_or_after_a_time():
    limit = AdaptiveLimit(1, 20, enforces=True)
    limit.pass_time(0.0, 0)
    limit.pass_time(1.0, 20)
    limit.decide(1.0, ENOUGH - 1, applies=True)
    assert limit.decides_at == 1.0  # the window goes on
    limit.decide(1.0, ENOUGH, applies=True)
    assert limit.decides_at == 2.0
    limit.pass_time(1.0 + LONGEST_WINDOW, 20)
    limit.decide(1.0 + LONGEST_WINDOW, ENOUGH, applies=True)
    assert limit.decides_at == 2.0 + LONGEST_WINDOW


def test_a_window_that_has_just_begun_cannot_end():
    limit = AdaptiveLimit(1, 20, enforces=True)
    limit.pass_time(5.0, 3)
    limit.decide(5.0, 100, applies=True, at_once=True)
    assert limit.limit == 20


def test_a_resize_keeps_a_limit_below_and_moves_one_that_was_the_largest():
    windows = Windows(falls)
    windows.limit.resize(30)
    assert windows.limit.limit == 30
    windows.run(60)
    found = windows.limit.limit
    assert found in (6, 7)
    windows.limit.resize(40)
    assert windows.limit.limit == found
    windows.limit.resize(3)
    assert windows.limit.limit == windows.limit.applied == 3
    windows.limit.resize(0)
    assert windows.limit.limit == 0
    windows.limit.resize(9)
    assert windows.limit.limit == found
    windows.limit.resize(found)
    windows.limit.resize(40)
    assert windows.limit.limit == found, "it was cut to the number that it has learnt"
    windows.limit.limit = 40  # decided
    windows.limit.resize(5)
    windows.limit.resize(50)
    assert windows.limit.limit == 50


@given(
    st.integers(1, 300),
    st.integers(1, 400),
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 300), st.integers(0, 5000), st.booleans())),
)
def test_the_limit_is_between_the_minimum_and_the_slots_whatever_comes(minimum, slots, windows):
    limit, now, served = AdaptiveLimit(minimum, max(minimum, slots), enforces=True), 0.0, 0
    for seconds, running, more, applies in windows:
        now, served = now + seconds, served + more
        limit.pass_time(now, running)
        limit.decide(now, served, applies=applies)
        for number in (limit.limit, limit.applied):
            assert minimum <= number <= max(minimum, slots)


def test_a_number_below_the_minimum_is_never_better():
    """In quiet times two calls at once have served more than the four of the minimum do now."""
    windows = Windows(lambda running: 4000 / running, minimum=4)
    windows.run(60)
    windows.run(5, demand=2)
    before = len(windows.applied)
    assert windows.run(16) == 4
    assert windows.applied[before:].count(4) >= 13  # else the next larger number would be tried each time


def test_what_was_measured_long_ago_is_forgotten():
    windows = Windows(falls)
    assert windows.run(40) in (6, 7)
    windows.now += 1e6
    windows.limit.pass_time(windows.now, 0)
    windows.limit.decide(windows.now, windows.served, applies=True)
    assert windows.limit._levels == {}
    assert windows.run(20) in (6, 7)


def test_a_window_cut_short_says_nothing():
    limit = AdaptiveLimit(1, 20, enforces=True)
    limit.pass_time(0.0, 20)
    limit.pass_time(0.1, 20)
    limit.decide(0.1, 1000, applies=True, at_once=True)
    assert limit._levels == {}
    assert limit.decides_at == pytest.approx(1.1)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum": 0}, "Adaptive: minimum must be a whole number from 1 to 1000000000, got 0"),
        ({"minimum": True}, "Adaptive: minimum must be a whole number from 1 to 1000000000, got True"),
        ({"maximum": 0}, "Adaptive: maximum must be a whole number from 1 to 1000000000, or None, got 0"),
        (
            {"minimum": 5, "maximum": 4},
            "Adaptive: maximum must be a whole number from 5 to 1000000000, or None, got 4",
        ),
        ({"mode": "off"}, "Adaptive: mode must be 'enforce' or 'shadow', got 'off'"),
        ({"maximun": 4}, "Adaptive has no option 'maximun'; did you mean 'maximum'?"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(options, message):
    with pytest.raises(ConfigurationError) as refusal:
        Adaptive(**options)
    assert str(refusal.value) == message


# --- a gate -------------------------------------------------------------------------------------


def gate_with(slots=20, minimum=1, *, enforces=True, max_waiting=0, **options):
    policy = BreakerPolicy(**({"open_jitter": 0, "wait_duration_in_open_state": 1} | options))
    limit = AdaptiveLimit(minimum, slots, enforces=enforces)
    return Gate(Breaker(policy, lambda: 0.5), Bulkhead(slots, max_waiting), limit)


def occupy(gate, now, seconds, running, served):
    """Keeps ``running`` calls running for a time, in which ``served`` others succeed; returns the time."""
    tickets = [gate.enter(now, None) for _ in range(running)]
    for number in range(served):
        moment = now + seconds * (number + 1) / served
        gate.leave(moment, tickets.pop(0), S)
        tickets.append(gate.enter(moment, None))
    for ticket in tickets:
        gate.leave(now + seconds, ticket, X)
    return now + seconds


def test_a_gate_applies_the_limit_and_tells_its_compartments():
    """With twenty calls at once 50 are served, with fewer 400."""
    gate, now = gate_with(), 0.0
    now = occupy(gate, now, 1.01, 20, 50)
    assert (gate.bulkhead.usable, gate.adaptive.limit) == (16, 20)  # tried
    now = occupy(gate, now, 1.01, 16, 400)
    assert gate.adaptive.limit == 16
    assert gate.bulkhead.usable == gate.shared_slots == 13
    told = [item for item in gate.outbox if isinstance(item, SlotsChanged)]
    assert told == [SlotsChanged(16), SlotsChanged(13)]
    assert gate.bulkhead.limit == 20


def test_a_gate_with_an_adaptive_limit_has_no_fast_path():
    gate = gate_with()
    gate.leave(1.0, gate.enter(0.0, None), S)
    gate.refresh(1.0)
    assert gate.fast_enter_until == gate.fast_leave_until == -math.inf
    assert gate.admits_until > 1.0


def test_a_waiter_gets_the_slot_that_becomes_usable():
    gate, waiter = gate_with(max_waiting=5), Waiter()
    occupy(gate, 0.0, 1.01, 20, 50)
    assert gate.bulkhead.usable == 16
    for _ in range(16):
        gate.enter(1.1, None)
    assert gate.enter(1.1, waiter) is None
    gate.play(20.0)  # a window without a success is over
    assert gate.bulkhead.usable > 16
    assert waiter.verdict == "granted"


@pytest.mark.parametrize("how", ["of the limit", "of the gate"])
def test_in_shadow_the_limit_is_computed_and_not_applied(how):
    gate = gate_with(enforces=how != "of the limit")
    if how == "of the gate":
        gate.set_mode(0.0, "shadow")
    now = 0.0
    for running, served in [(6, 300), (6, 300), (20, 50), (20, 50)]:
        held = [
            gate.let_in(now, [0]) if how == "of the gate" else gate.enter(now, None) for _ in range(running)
        ]
        for number in range(served):
            moment = now + 1.01 * (number + 1) / served
            gate.leave(moment, held.pop(0), S)
            held.append(gate.let_in(moment, [0]) if how == "of the gate" else gate.enter(moment, None))
        now += 1.01
        for ticket in held:
            gate.leave(now, ticket, X)
    assert gate.adaptive.limit in (6, 7)
    assert gate.bulkhead.usable == gate.shared_slots == 20
    if how == "of the gate":
        gate.set_mode(now, "enforce")
        assert gate.bulkhead.usable == gate.adaptive.limit


def test_nothing_is_learnt_while_the_circuit_is_open_or_calls_run_outside():
    gate = gate_with()
    gate.set_state(0.0, "open")
    for second in range(1, 40):
        gate.preview(second / 100)
    assert gate.adaptive.decides_at == pytest.approx(1.39)
    gate = gate_with()
    gate.set_mode(0.0, "off")
    gate.let_in(0.0, [0])
    gate.play(5.0)
    assert gate.adaptive.decides_at == 6.0


def test_what_opened_the_circuit_is_counted():
    """Twenty calls at once that fail serve nobody; six at once have served 300 a second."""
    gate = gate_with(minimum_number_of_calls=20, failure_rate_threshold=1, sliding_window_size=1)
    now = occupy(gate, 0.0, 1.01, 6, 300)
    now = occupy(gate, now, 1.01, 6, 300)
    tickets = [gate.enter(now, None) for _ in range(20)]
    for ticket in tickets:
        gate.leave(now + 2.0, ticket, F)
    assert gate.breaker.state == "open"
    assert gate.adaptive.limit in (6, 7)


def test_a_recovery_ramp_and_the_limit_hold_together():
    gate = gate_with(recovery_ramp=10.0, permitted_calls_in_half_open_state=3)
    gate.adaptive.limit = gate.adaptive.applied = 8
    gate.set_state(0.0, "open", "fleet")
    gate.set_state(1.0, "reset", "fleet")
    assert gate.bulkhead.usable == 3
    gate.play(2.0)
    assert gate.bulkhead.usable == 4
    gate.play(9.0)
    assert gate.bulkhead.usable == gate.usable_at(10.9) == 8


def test_a_pool_stalls_when_the_slots_that_are_usable_hang():
    gate = gate_with(minimum_number_of_calls=100)
    gate.watch_for_stalls(0.0, on=True)
    gate.adaptive.limit = gate.adaptive.applied = 4
    gate._fit_slots(20)
    for _ in range(4):
        gate.begin(0.0, gate.check_out(0.0, None))
    gate.refresh(1.1)
    gate.refresh(2.1)
    assert gate.breaker.state == "open"


def test_a_resize_sets_the_largest_limit():
    gate = gate_with()
    gate.resize(0.0, 30)
    assert gate.bulkhead.usable == gate.adaptive.limit == 30
    gate.resize(0.0, 10)
    assert gate.bulkhead.usable == gate.adaptive.limit == 10


MOVES = st.lists(
    st.tuples(
        st.sampled_from(
            ["enter", "enter", "leave", "leave", "fail", "wait", "wake", "resize", "turn", "mode"]
        ),
        st.integers(0, 9),
    ),
    max_size=120,
)


@given(MOVES)
def test_slots_are_conserved_and_nobody_waits_beside_a_usable_slot(moves):
    """Whatever the limit does meanwhile."""
    gate = gate_with(slots=6, max_waiting=3, minimum_number_of_calls=3, recovery_ramp=3.0)
    now, tickets, waiting = 0.0, [], []
    for move, choice in moves:
        before = gate.bulkhead.taken
        if move == "wait":
            now += choice
            gate.refresh(now)
        elif move == "enter":
            waiter = Waiter()
            verdict = gate.enter(now, waiter)
            waiting += [waiter] if verdict is None else []
            tickets += [verdict] if isinstance(verdict, int) else []
        elif move in {"leave", "fail"} and tickets:
            gate.leave(now, tickets.pop(choice % len(tickets)), S if move == "leave" else F)
        elif move == "wake" and waiting:
            verdict = gate.woken(now, waiting.pop(choice % len(waiting)))
            tickets += [verdict] if isinstance(verdict, int) else []
        elif move == "resize":
            gate.resize(now, choice + 1)
        elif move == "turn":
            gate.set_state(now, ["reset", "open", "half_open", "forced_open"][choice % 4])
        elif move == "mode":
            gate.set_mode(now, ["enforce", "shadow", "off"][choice % 3])
        bulkhead = gate.bulkhead
        granted = sum(waiter.verdict == "granted" for waiter in waiting)
        if gate.enforces:
            assert bulkhead.taken == len(tickets) + granted
            assert not (bulkhead.queue and bulkhead.taken < bulkhead.usable)
            assert bulkhead.taken <= max(before, bulkhead.usable) or move == "mode"
        assert 0 <= bulkhead.usable <= bulkhead.limit


# --- simulated databases ------------------------------------------------------------------------


def served(pace, seed, *, adaptive, users=60, seconds=40.0):
    """Calls that were served in the second half."""
    limit = AdaptiveLimit(1, 20, enforces=True) if adaptive else None
    gate = Gate(Breaker(None, lambda: 0.5), Bulkhead(20, 0), limit)
    database = Database(
        gate, users, lambda running, _: pace(running), thinks=0.05, timeout=30.0, seed=seed, random_work=True
    )
    database.run(seconds)
    return database.served_in(seconds / 2, seconds), gate


SOUND = {
    "eight processors": saturates,
    "one processor": lambda running: 200.0,
    "no limit": lambda running: 50 * running,
    "served faster and slower each": lambda running: 50 * running / (1 + 0.1 * running),
}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_database_that_slows_down_under_many_calls_serves_several_times_more(seed):
    static, _ = served(falls, seed, adaptive=False)
    found, gate = served(falls, seed, adaptive=True)
    assert found > 4 * static
    assert gate.adaptive.limit < 12


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
@pytest.mark.parametrize("pace", SOUND.values(), ids=SOUND.keys())
def test_a_database_that_does_not_serves_as_much_as_before(pace, seed):
    static, _ = served(pace, seed, adaptive=False)
    found, _ = served(pace, seed, adaptive=True)
    assert found >= 0.95 * static
