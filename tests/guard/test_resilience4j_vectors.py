"""The vectors R1-R18 of resilience4j's own suite, through the public API.

Where a documented decision of ours differs, the test says so: rates are None below the minimum (theirs
-1), a half-open round is lost as soon as it cannot be passed, an open wait of 0 is allowed.
"""

from __future__ import annotations

import math

import pytest

from guardrails import BreakerPolicy, ConfigurationError
from guardrails.events import CallFinished, StateChanged
from support.calls import Boom, abandon, be_refused, boom, counting, fail, play, succeed, trip, tripping


@pytest.fixture
def watched(make_guard):
    """Builds a guard that records and never opens, to look at its window."""

    def make(**options):
        guard = make_guard(breaker=BreakerPolicy(**options))
        guard.metrics_only()
        return guard

    return make


def figures(guard):
    now = guard.snapshot()
    return now.calls, now.calls - now.failures, now.failures


def test_r1_rates_need_the_minimum_and_follow_a_count_window(run, watched):
    """R1: no rate with 4 of 10 calls; then 6 of the last 10 failed; then 3 of the last 10."""
    guard = watched(sliding_window_type="count", sliding_window_size=10, minimum_number_of_calls=10)
    play(run, guard, "SSFF")
    assert (guard.snapshot().calls, guard.snapshot().failure_rate) == (4, None)
    play(run, guard, "FFFF SSSS")
    assert (guard.snapshot().calls, guard.snapshot().failures) == (10, 6)
    assert guard.snapshot().failure_rate == 0.6
    play(run, guard, "SSS")
    assert guard.snapshot().failure_rate == 0.3


def test_r2_a_count_window_forgets_its_oldest_call(run, watched):
    """R2: in a window of 4 one failure fades and is gone with the fifth call."""
    guard = watched(sliding_window_type="count", sliding_window_size=4, minimum_number_of_calls=1)
    seen = []
    for letter in "FSSSS":
        play(run, guard, letter)
        seen.append((guard.snapshot().calls, guard.snapshot().failure_rate))
    assert seen == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4), (4, 0.0)]


def test_r3_slow_and_failed_are_independent_marks(run, make_guard, clock):
    """R3: of 5 calls one failed and two were slow, a call that was both counts once; 20.3 s in all."""
    told = []
    guard = make_guard(
        breaker=counting(5, minimum_number_of_calls=5, slow_call_duration_threshold=4),
        listeners=[told.append],
    )
    run(guard, clock.advance, 10)
    fail_after(run, guard, clock, 10)
    for _ in range(3):
        run(guard, clock.advance, 0.1)
    now = guard.snapshot()
    assert (now.calls, now.failures, now.slow_calls, now.slow_call_rate) == (5, 1, 2, 0.4)
    durations = [event.duration for event in told if isinstance(event, CallFinished)]
    assert sum(durations) == pytest.approx(20.3)


def test_r4_slow_marks_leave_with_their_calls(run, watched, clock):
    """R4: count window of 2 with a slow failure, a slow success and two quick successes."""
    guard = watched(
        sliding_window_type="count",
        sliding_window_size=2,
        minimum_number_of_calls=1,
        slow_call_duration_threshold=4,
    )
    seen = []
    for step in (
        lambda: fail_after(run, guard, clock, 5),
        lambda: run(guard, clock.advance, 5),
        lambda: succeed(run, guard),
        lambda: succeed(run, guard),
    ):
        step()
        now = guard.snapshot()
        seen.append((now.slow_calls, now.failures, now.failure_rate))
    assert seen == [(1, 1, 1.0), (2, 1, 0.5), (1, 0, 0.0), (0, 0, 0.0)]


def test_r5_a_time_window_slides_in_whole_slices(run, watched, clock):
    """R5: 5 s, aligned to zero; (calls, successes, failures) after each call."""
    guard = watched(sliding_window_size=5, minimum_number_of_calls=1)
    seen = []
    for at, letter in zip((0, 0.1, 0.2, 1.2, 2.2, 3.2, 4.2, 5.2, 6.2, 11.2), "FSSSSFSSSS", strict=True):
        clock.set(at)
        play(run, guard, letter)
        seen.append(figures(guard))
    assert seen == [
        *[(1, 0, 1), (2, 1, 1), (3, 2, 1), (4, 3, 1), (5, 4, 1)],
        *[(6, 4, 2), (7, 5, 2), (5, 4, 1), (5, 4, 1), (1, 1, 0)],
    ]


def test_r6_reading_an_idle_time_window_sees_it_empty(run, watched, clock):
    """R6: a reader sees no calls that are too old, also without a call in between."""
    clock.set(-0.2)
    guard = watched(sliding_window_size=5, minimum_number_of_calls=1, slow_call_duration_threshold=0.9)
    finish_slow = run.start(guard)
    clock.set(0)
    fail(run, guard)
    clock.set(0.1)
    succeed(run, guard)
    clock.set(0.8)
    finish_slow(error=ValueError())
    seen = [(*figures(guard), guard.snapshot().slow_calls)]
    for at in (4.8, 5.8):
        clock.set(at)
        seen.append((*figures(guard), guard.snapshot().slow_calls))
    for at in (5.9, 10.9):
        clock.set(at)
        succeed(run, guard)
        seen.append((*figures(guard), guard.snapshot().slow_calls))
    assert seen == [(3, 1, 2, 1), (3, 1, 2, 1), (0, 0, 0, 0), (1, 1, 0, 0), (1, 1, 0, 0)]


def test_r7_trips_at_exactly_the_threshold(run, make_guard, clock):
    """R7: 40 % stays closed, 50 % at a threshold of 50 % opens."""
    guard = make_guard(breaker=BreakerPolicy(sliding_window_size=20, minimum_number_of_calls=5))
    for letter in "SSSFF":
        play(run, guard, letter)
        clock.advance(1)
    assert guard.state == "closed"
    fail(run, guard)
    assert guard.state == "open"
    assert guard.snapshot().failure_rate == 0.5


def test_r8_the_call_that_completes_the_minimum_may_be_a_success(run, make_guard):
    """R8: three failures and two successes open on the fifth call."""
    guard = make_guard(breaker=counting(10, minimum_number_of_calls=5))
    play(run, guard, "FFFS")
    assert guard.state == "closed"
    succeed(run, guard)
    assert guard.state == "open"
    assert guard.snapshot().failure_rate == 0.6


def test_r9_slow_calls_trip_and_slow_means_strictly_longer(run, make_guard, clock):
    """R9: three of five calls took longer than 4 s; exactly 4 s is not slow."""
    guard = make_guard(breaker=counting(5, minimum_number_of_calls=5, slow_call_duration_threshold=4))
    fail_after(run, guard, clock, 5)
    run(guard, clock.advance, 5)
    fail(run, guard)
    succeed(run, guard)
    run(guard, clock.advance, 5)
    now = guard.snapshot()
    assert (now.state, now.slow_calls, now.slow_call_rate) == ("open", 3, 0.6)
    for duration, slow in ((4, 0), (math.nextafter(4, 5), 1)):
        clock.set(0)
        fresh = make_guard(breaker=counting(5, slow_call_duration_threshold=4))
        run(fresh, clock.advance, duration)
        assert fresh.snapshot().slow_calls == slow


def test_r10_a_round_has_so_many_probes_and_a_released_one_is_given_again(run, make_guard, clock):
    """R10: 4 of 6 are let in; one that ends without evidence makes room; the next round has 4 again."""
    guard = make_guard(breaker=tripping())
    trip(run, guard, clock, wait=5)
    probes = [run.start(guard) for _ in range(4)]
    be_refused(run, guard)
    be_refused(run, guard)
    probes.pop()(error=KeyboardInterrupt())
    probes.append(run.start(guard))
    be_refused(run, guard)
    for finish in probes:
        finish(error=ValueError())
    assert guard.state == "open"
    clock.advance(5)
    again = [run.start(guard) for _ in range(4)]
    be_refused(run, guard)
    for finish in again:
        finish()
    assert guard.state == "closed"


def test_r11_a_round_of_four_is_lost_at_half(run, make_guard, clock):
    """R11: F F S F reopens (ours with the second F already); F S S S closes; slow probes reopen too."""
    guard = make_guard(breaker=tripping(slow_call_duration_threshold=4))
    trip(run, guard, clock, wait=5)
    play(run, guard, "FF")
    assert (guard.state, guard.snapshot().failures) == ("open", 2)
    clock.advance(5)
    play(run, guard, "FSSS")
    assert (guard.state, guard.snapshot().calls) == ("closed", 0)
    trip(run, guard, clock, wait=5)
    run(guard, clock.advance, 5)
    assert guard.state == "half_open"
    run(guard, clock.advance, 5)
    now = guard.snapshot()
    assert (now.state, now.slow_calls, now.failures) == ("open", 2, 0)


def test_r12_an_abandoned_probe_decides_nothing(run, make_guard, clock):
    """R12: S S S X stays half-open with 3 results, and F closes (25 %); X X X X count nothing."""
    guard = make_guard(breaker=tripping())
    trip(run, guard, clock, wait=5)
    play(run, guard, "SSSX")
    assert (guard.state, guard.snapshot().calls) == ("half_open", 3)
    fail(run, guard)
    assert guard.state == "closed"
    trip(run, guard, clock, wait=5)
    abandon(run, guard, times=4)
    assert (guard.state, guard.snapshot().calls) == ("half_open", 0)
    succeed(run, guard, times=3)
    assert (guard.state, guard.snapshot().calls) == ("half_open", 3)
    succeed(run, guard)
    assert guard.state == "closed"


def test_r13_an_open_circuit_refuses_until_its_wait_is_over(run, make_guard, clock):
    """R13: refused at 0 s and 3 s, let in at 6 s with an empty round."""
    guard = make_guard(breaker=tripping())
    trip(run, guard)
    assert be_refused(run, guard).retry_after == 5
    clock.advance(3)
    assert be_refused(run, guard).retry_after == 2
    assert guard.snapshot().rejected == {"circuit_open": 2}
    clock.advance(3)
    finish = run.start(guard)
    assert (guard.state, guard.snapshot().calls) == ("half_open", 0)
    finish()


def test_r13_a_probe_is_let_in_at_exactly_the_end_of_the_wait(run, make_guard, clock):
    """Our tie rule: ``now >= until``."""
    guard = make_guard(breaker=tripping())
    trip(run, guard, clock, wait=math.nextafter(5, 0))
    be_refused(run, guard)
    clock.set(5)
    succeed(run, guard)


def test_r14_each_reopening_in_a_row_waits_longer(run, make_guard, clock):
    """R14: 5 s, then 7.5 s; closing starts from 5 s again."""
    guard = make_guard(breaker=tripping(open_backoff_multiplier=1.5, permitted_calls_in_half_open_state=1))
    trip(run, guard, clock, wait=5)
    fail(run, guard)
    clock.advance(6)
    be_refused(run, guard)
    clock.advance(5)
    succeed(run, guard)
    assert guard.state == "closed"
    trip(run, guard)
    assert guard.snapshot().retry_after == 5


def test_r15_forced_open_is_left_only_by_hand(run, make_guard, clock):
    """R15: it does not open with time, so ``retry_after`` is None."""
    guard = make_guard(breaker=tripping())
    guard.force_open()
    clock.advance(10**6)
    assert be_refused(run, guard).retry_after is None
    assert guard.state == "forced_open"
    guard.reset()
    succeed(run, guard)


def test_r15_disabled_admits_and_learns_nothing(run, make_guard):
    """R15: whatever fails, the circuit stays as it is and its window empty."""
    guard = make_guard(breaker=tripping())
    guard.disable()
    fail(run, guard, times=20)
    assert (guard.state, guard.snapshot().calls, guard.snapshot().failed) == ("disabled", 0, 20)


def test_r15_metrics_only_records_and_says_once_that_it_would_have_opened(run, make_guard):
    """R15: one event when the threshold is crossed, another only after it was left in between."""
    told = []
    guard = make_guard(breaker=counting(2, minimum_number_of_calls=2), listeners=[told.append])
    guard.metrics_only()
    told.clear()
    fail(run, guard, times=20)
    assert (guard.state, guard.snapshot().failures) == ("metrics_only", 2)
    crossings = [event for event in told if isinstance(event, StateChanged)]
    assert [(event.old, event.new, event.cause) for event in crossings] == [
        ("metrics_only", "metrics_only", "failure_rate")
    ]
    play(run, guard, "SSFF")
    assert sum(isinstance(event, StateChanged) for event in told) == 2


def test_r16_the_same_state_twice_is_no_event(make_guard):
    """R16: a manual state that holds already changes nothing."""
    told = []
    guard = make_guard(listeners=[told.append])
    for change in (guard.force_open, guard.disable, guard.metrics_only, guard.reset):
        change()
        change()
    assert [event.new for event in told] == ["forced_open", "disabled", "metrics_only", "closed"]


def test_r17_a_lost_probe_cannot_hold_the_circuit_half_open(run, make_guard, clock):
    """R17: a probe that never ends is judged slow when its permit is over, and the circuit reopens."""
    policy = tripping(
        permitted_calls_in_half_open_state=1,
        max_wait_duration_in_half_open_state=1,
        slow_call_duration_threshold=60,
    )
    guard = make_guard(breaker=policy)
    trip(run, guard, clock, wait=5)
    finish = run.start(guard)
    be_refused(run, guard)
    clock.advance(1)
    be_refused(run, guard)
    assert guard.state == "open"
    finish()
    assert (guard.state, guard.snapshot().late_results) == ("open", 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("failure_rate_threshold", 0),
        ("failure_rate_threshold", 1.01),
        ("slow_call_rate_threshold", 0),
        ("slow_call_rate_threshold", 1.01),
        ("sliding_window_size", 0),
        ("minimum_number_of_calls", 0),
        ("permitted_calls_in_half_open_state", 0),
        ("slow_call_duration_threshold", 0),
        ("max_wait_duration_in_half_open_state", -1),
        ("wait_duration_in_open_state", -1),
    ],
)
def test_r18_refused_settings_are_named(field, value):
    """R18: each is refused by name."""
    with pytest.raises(ConfigurationError, match=f"{field} must be"):
        BreakerPolicy(**{field: value})


def test_r18_small_rates_and_windows_below_their_minimum_are_allowed(run, make_guard):
    """R18: thresholds of 0.001 and 0.5 hold; a count window of 5 with a minimum of 6 judges at 5."""
    BreakerPolicy(failure_rate_threshold=0.001, slow_call_rate_threshold=0.5)
    BreakerPolicy(wait_duration_in_open_state=0)
    guard = make_guard(breaker=counting(5, minimum_number_of_calls=6))
    fail(run, guard, times=4)
    assert guard.state == "closed"
    fail(run, guard)
    assert guard.state == "open"
    patient = make_guard(breaker=BreakerPolicy(sliding_window_size=10, minimum_number_of_calls=100))
    fail(run, patient, times=99)
    assert patient.state == "closed"
    fail(run, patient)
    assert patient.state == "open"


def fail_after(run, guard, clock, seconds):
    def slowly():
        clock.advance(seconds)
        boom()

    with pytest.raises(Boom):
        run(guard, slowly)
