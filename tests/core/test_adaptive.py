"""The adaptive limit: what it learns of hand-made windows, and of simulated databases through a gate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import Adaptive, BreakerPolicy, ConfigurationError
from guardrails._core.adaptive import (
    _FORGOTTEN,
    _LEAST_LOAD,
    ENOUGH,
    LONGEST_WINDOW,
    OTHER_WORK,
    PROBE_EVERY,
    SATURATED,
    TIE,
    WINDOW,
    AdaptiveLimit,
    _Level,
)
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
    """Most are served with six concurrent calls."""
    return 50 * min(running, 8) / (1 + (max(0, running - 4) / 4) ** 2)


def saturates(running):
    """Eight concurrent calls are served as fast as more."""
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
    """In quiet times two concurrent calls have served more than the four of the minimum do now."""
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


# --- the bounds of the rule ---------------------------------------------------------------------


def level(throughput, seconds=100.0):
    """A measurement of so many calls a second; by default of so many calls that its error is small."""
    measured = _Level()
    measured.seconds, measured.served = seconds, throughput * seconds
    return measured


def limit_with(levels, present, slots=20, minimum=1):
    """A limit of ``present`` that has measured these throughputs, by the number of concurrent calls."""
    limit = AdaptiveLimit(minimum, slots, enforces=True)
    limit.pass_time(0.0, 0)
    limit.limit = limit.applied = present
    limit._levels = {limit._index(running): measured for running, measured in levels.items()}
    return limit


def window(limit, seconds, served, *, running=20, busy=None, at_once=False):
    """Ends a window in which so many calls ran, in ``busy`` of its seconds all that may run at once."""
    busy = seconds if busy is None else busy
    limit.pass_time(limit._since + busy, running)
    now = limit._since + seconds
    limit.pass_time(now, limit.applied - 1)
    limit.decide(now, limit._served + served, applies=True, at_once=at_once)


@pytest.mark.parametrize(
    ("slots", "numbers"),
    [
        (1, [1]),
        (2, [1, 2]),
        (20, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 20]),
        (30, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 20, 24, 30]),
    ],
)
def test_the_numbers_that_are_tried_differ_by_a_fifth(slots, numbers):
    """Down to one, each once."""
    assert AdaptiveLimit(1, slots, enforces=True)._sizes == numbers


@pytest.mark.parametrize(
    ("seconds", "busy", "tried"),
    [(2.0, 2.0 * SATURATED, True), (2.0, 0.9 * SATURATED * 2, False), (4.0, 1.0, False)],
)
def test_another_number_is_tried_after_a_window_that_was_saturated_for_half_of_its_time(seconds, busy, tried):
    limit = limit_with({}, 20)
    window(limit, seconds, 100, busy=busy)
    assert limit.applied == (16 if tried else 20)


@pytest.mark.parametrize(("running", "measured"), [(_LEAST_LOAD, True), (0.9 * _LEAST_LOAD, False)])
def test_a_window_with_half_a_call_at_once_on_average_is_measured(running, measured):
    limit = limit_with({}, 20)
    limit.pass_time(1.0, running)
    limit.decide(1.0, 100, applies=True)
    assert bool(limit._levels) is measured


@pytest.mark.parametrize(("seconds", "measured"), [(WINDOW / 2, True), (0.4 * WINDOW, False)])
def test_a_window_cut_short_says_something_from_half_of_its_length_on(seconds, measured):
    limit = limit_with({}, 20)
    window(limit, seconds, 100, at_once=True)
    assert bool(limit._levels) is measured


@pytest.mark.parametrize(
    ("before", "seconds", "served", "kept"),
    [
        (30, 2.0, 60, True),  # as many a second
        (30, 2.0, 29, False),
        (30, 2.0, 30, True),  # half of them: `OTHER_WORK` times fewer, and not more than that
        (30, 2.0, 120, True),
        (30, 2.0, 121, False),
        (9, 1.0, 1, True),  # too few to prove anything
        (ENOUGH, 1.0, 9, False),
        (ENOUGH - 1, 1.0, 9, True),
    ],
)
def test_measurements_are_forgotten_when_twice_as_many_or_half_as_many_are_served(
    before, seconds, served, kept
):
    assert OTHER_WORK == 2
    limit = limit_with({20: level(before), 6: level(50)}, 20)
    limit._measure(limit._index(20), seconds, served)
    assert (limit._index(6) in limit._levels) is kept
    assert limit._index(20) in limit._levels


def test_a_measurement_is_forgotten_below_a_hundredth_of_a_second():
    limit = limit_with({20: level(50, 2 * _FORGOTTEN), 6: level(50, 1.9 * _FORGOTTEN)}, 20)
    limit._fade(0.5)
    assert [*limit._levels] == [limit._index(20)]


def test_a_number_below_the_minimum_does_not_hide_the_others():
    limit = limit_with({2: level(900), 20: level(100), 6: level(200)}, 20, minimum=4)
    assert limit._better(limit._index(20)) == limit._index(6)


@pytest.mark.parametrize(
    ("running", "throughput", "seconds", "better"),
    [
        (16, 104, 1.0, True),  # a larger number need only seem to serve more
        (16, 100 * (1 + TIE), 100.0, False),
        (11, 104, 1.0, False),  # a smaller one must surely serve more
        (11, 120, 1.0, True),
        (11, 105, 100.0, True),
    ],
)
def test_a_larger_number_need_seem_better_and_a_smaller_one_must_be(running, throughput, seconds, better):
    limit = limit_with({13: level(100), running: level(throughput, seconds)}, 13)
    assert limit._better(limit._index(13)) == limit._index(running if better else 13)


def test_the_limit_goes_down_to_one_where_one_call_at_a_time_serves_most():
    windows = Windows(lambda running: 4000 / running, slots=5)
    assert windows.run(60) == 1
    assert 1 in windows.applied


def test_after_a_move_up_the_next_larger_number_is_tried_at_once():
    windows = Windows(falls)
    windows.run(40)
    windows.throughput = lambda running: 50 * running
    windows.run(60)
    first = windows.applied.index(11, 40)
    assert windows.applied[first : first + 4] == [11, 13, 16, 20]


def test_the_next_smaller_and_the_next_larger_number_are_tried_in_turn():
    windows = Windows(saturates)
    windows.limit.limit = windows.limit.applied = 13
    windows.run(3 * PROBE_EVERY)
    assert {window: applied for window, applied in enumerate(windows.applied) if applied != 13} == {
        1: 11,
        1 + PROBE_EVERY: 16,
        1 + 2 * PROBE_EVERY: 11,
    }


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
        (
            {"minimum": 0, "maximum": 0},
            (
                "Adaptive: minimum must be a whole number from 1 to 1000000000, got 0; "
                "maximum must be a whole number from 1 to 1000000000, or None, got 0"
            ),
        ),
        (
            {"minimum": "5", "maximum": 1},
            "Adaptive: minimum must be a whole number from 1 to 1000000000, got '5'",
        ),
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
    """With twenty concurrent calls 50 are served, with fewer 400."""
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
    gate.advance_model(20.0)  # a window without a success is over
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


@pytest.mark.parametrize("state", ["open", "half_open", "forced_open"])
def test_nothing_is_learnt_while_the_circuit_is_open(state):
    gate = gate_with(wait_duration_in_open_state=60)
    gate.set_state(0.0, state)
    gate.advance_model(5.0)
    assert gate.breaker.state == state
    assert gate.adaptive.decides_at == 5.0 + WINDOW  # each move begins a new window


def test_nothing_is_learnt_while_the_guard_is_off():
    gate = gate_with()
    gate.set_mode(0.0, "off")
    gate.advance_model(5.0)
    assert gate.adaptive.decides_at == 5.0 + WINDOW


def test_nothing_is_learnt_while_calls_run_outside():
    """They were let in while the guard was off, and are not counted when they succeed."""
    gate = gate_with()
    gate.set_mode(0.0, "off")
    gate.let_in(0.0, [0])
    gate.set_mode(0.0, "enforce")
    assert gate.unslotted == 1
    gate.advance_model(5.0)
    assert gate.adaptive.decides_at == 5.0 + WINDOW


def test_a_window_ends_at_its_time():
    gate = gate_with()
    now = occupy(gate, 0.0, 0.5, 20, 2 * ENOUGH)
    assert now < gate.adaptive.decides_at == WINDOW
    gate.advance_model(WINDOW)
    assert gate.adaptive.decides_at == 2 * WINDOW


@pytest.mark.parametrize("enforces", [True, False])
def test_compartments_are_told_only_of_a_limit_that_is_applied_and_has_changed(enforces):
    gate = gate_with(enforces=enforces)
    now = occupy(gate, 0.0, 1.01, 6, 300)
    now = occupy(gate, now, 1.01, 6, 300)
    assert gate.adaptive.decides_at > 3.0, "two windows have ended, and the limit is what it was"
    assert gate.outbox == []
    if not enforces:
        now = occupy(gate, now, 1.01, 20, 50)
        gate.advance_model(now + 1.0)
        assert gate.adaptive.applied in (6, 7)
        assert gate.outbox == []


def test_what_opened_the_circuit_is_counted():
    """Six concurrent calls had 300 successes a second. Twenty, which all fail, have none."""
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
    gate.advance_model(2.0)
    assert gate.bulkhead.usable == 4
    gate.advance_model(9.0)
    assert gate.bulkhead.usable == gate.usable_at(10.9) == 8


@pytest.mark.parametrize("usable", [1, 4])
def test_a_pool_stalls_when_the_slots_that_are_usable_hang(usable):
    gate = gate_with(minimum_number_of_calls=100)
    gate.watch_for_stalls(0.0, on=True)
    gate.adaptive.limit = gate.adaptive.applied = usable
    gate._fit_slots(20)
    for _ in range(usable):
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
