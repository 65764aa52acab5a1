"""The record of one workload's calls, and the rules that tell its failures from the dependency's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from guardrails._core.window import FAILED, NEVER, SLOW, CountWindow
from guardrails._core.workloads import (
    Workload,
    is_widespread_outage,
    is_widespread_rate,
    reach_a_rate,
    reaches,
)

HALF = (1, 2)
SLOW_AFTER = 5.0
LEAST = 4
CLOSED, OPEN, HALF_OPEN, FORCED_OPEN = (
    SimpleNamespace(state=name) for name in ("closed", "open", "half_open", "forced_open")
)


def record(*marks, circuit=None, success=NEVER, bad=0, since=NEVER, suspect=False):
    """A workload whose window holds a call for each mark, and whose latest calls ended as given."""
    workload = Workload(circuit, CountWindow(100))
    for mark in marks:
        workload.add(mark)
    workload.last_success_at, workload.bad_calls, workload.bad_calls_since = success, bad, since
    workload.suspect = suspect
    return workload


def figures(workload):
    window = workload.window
    return window.calls, window.failures, window.slow


def test_a_new_record_has_no_results_and_is_healthy():
    workload = Workload(None, CountWindow(1))
    assert not workload.has_results
    assert workload.is_healthy
    assert (workload.last_success_at, workload.bad_calls_since) == (NEVER, NEVER)
    assert (workload.bad_calls, workload.pending_successes, workload.slow_positions) == (0, 0, {})


# --- the record -----------------------------------------------------------------------------------


def test_a_success_ends_the_bad_calls_unless_it_is_slow():
    workload = record(bad=2, since=1.0)
    workload.note_success(3.0, slow=True)
    assert (workload.last_success_at, workload.bad_calls) == (3.0, 2)
    workload.note_success(4.0, slow=False)
    assert (workload.last_success_at, workload.bad_calls) == (4.0, 0)


def test_bad_calls_are_counted_and_date_from_the_first_since_a_success():
    workload = record()
    for since in (2.0, 3.0, 1.0):
        workload.note_bad_call(since)
    assert (workload.bad_calls, workload.bad_calls_since) == (3, 2.0)
    workload.note_success(4.0, slow=False)
    workload.note_bad_call(5.0)
    assert (workload.bad_calls, workload.bad_calls_since) == (1, 5.0)


def test_counted_successes_enter_the_window_once_and_before_a_later_call():
    workload = record()
    workload.pending_successes = 3
    assert workload.add(FAILED) == 3
    assert figures(workload) == (4, 1, 0)
    workload.flush_successes()
    assert figures(workload) == (4, 1, 0)
    assert workload.pending_successes == 0


def test_a_cleared_window_forgets_the_figures_and_keeps_how_the_latest_calls_ended():
    workload = record(FAILED, SLOW, success=1.0, bad=2, since=3.0, suspect=True)
    workload.pending_successes, workload.slow_positions[7] = 3, 1
    workload.clear_window()
    assert figures(workload) == (0, 0, 0)
    assert (workload.pending_successes, workload.slow_positions) == (0, {})
    assert (workload.last_success_at, workload.bad_calls, workload.suspect) == (1.0, 2, True)


def test_a_reset_record_is_like_a_new_one():
    workload = record(FAILED, success=1.0, bad=2, since=3.0, suspect=True)
    workload.pending_successes = 3
    workload.reset()
    assert figures(workload) == (0, 0, 0)
    assert (workload.pending_successes, workload.bad_calls, workload.suspect) == (0, 0, False)
    assert not workload.has_results
    assert workload.is_healthy


@pytest.mark.parametrize(
    ("workload", "has_results"),
    [
        (record(), False),
        (record(bad=1), True),
        (record(success=0.0), True),
        (record(success=0.0, bad=2), True),
    ],
)
def test_one_success_or_one_bad_call_is_a_result(workload, has_results):
    assert workload.has_results is has_results


# --- what one record says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("circuit", "is_open"),
    [(None, False), (CLOSED, False), (OPEN, True), (HALF_OPEN, True), (FORCED_OPEN, False)],
)
def test_a_circuit_counts_as_open_until_its_probes_have_passed(circuit, is_open):
    """One that is held open by hand says nothing about the dependency."""
    workload = record(circuit=circuit)
    assert workload.circuit_is_open is is_open
    assert workload.is_healthy is not is_open
    assert workload.is_failing(0.0, SLOW_AFTER, LEAST, HALF, HALF) is is_open


def test_a_bad_call_or_a_suspicion_makes_a_workload_unhealthy():
    assert not record(bad=1).is_healthy
    assert not record(suspect=True).is_healthy
    assert record(FAILED, FAILED, success=1.0).is_healthy


@pytest.mark.parametrize(
    ("bad", "success", "unresponsive"),
    [
        (0, NEVER, False),
        (1, NEVER, True),
        (1, 10.0 - SLOW_AFTER, True),
        (1, 10.1 - SLOW_AFTER, False),
        (0, 0.0, False),
    ],
)
def test_a_workload_is_unresponsive_after_a_bad_call_and_a_threshold_without_a_success(
    bad, success, unresponsive
):
    workload = record(bad=bad, success=success)
    assert workload.is_unresponsive(10.0, SLOW_AFTER) is unresponsive
    assert workload.is_failing(10.0, SLOW_AFTER, LEAST, HALF, HALF) is unresponsive


@pytest.mark.parametrize(
    ("marks", "failing"),
    [
        ((FAILED, FAILED, 0, 0), True),
        ((SLOW, SLOW, 0, 0), True),
        ((FAILED, SLOW, 0, 0), False),
        ((FAILED, 0, 0, 0), False),
        ((FAILED, FAILED, FAILED), False),
    ],
)
def test_a_workload_fails_that_reaches_a_rate_with_enough_calls_of_its_own(marks, failing):
    workload = record(*marks, success=10.0)
    assert workload.is_failing(10.0, SLOW_AFTER, LEAST, HALF, HALF) is failing


def test_the_two_thresholds_are_each_compared_with_their_own_count():
    failed, slow = record(FAILED, 0, 0, 0, success=10.0), record(SLOW, 0, 0, 0, success=10.0)
    for failure_rate, slow_rate, failing in [((1, 4), HALF, failed), (HALF, (1, 4), slow)]:
        assert [
            each.is_failing(10.0, SLOW_AFTER, LEAST, failure_rate, slow_rate) for each in (failed, slow)
        ] == [each is failing for each in (failed, slow)]


# --- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "whole", "threshold", "reached"),
    [(1, 2, HALF, True), (1, 3, HALF, False), (0, 0, HALF, False), (0, 5, HALF, False), (1, 1, (1, 1), True)],
)
def test_a_rate_is_reached_at_its_threshold_and_never_without_calls(part, whole, threshold, reached):
    assert reaches(part, whole, threshold) is reached


@pytest.mark.parametrize(
    ("first", "second", "reached"),
    [
        ((FAILED, 0), (FAILED, 0), True),
        ((FAILED, FAILED, 0), (0,), True),
        ((0,), (FAILED, FAILED, 0), True),
        ((FAILED, FAILED), (0, 0, 0), False),
        ((0, 0, 0), (FAILED, FAILED), False),
        ((SLOW, 0), (SLOW, 0), True),
        ((SLOW, SLOW, 0), (0,), True),
        ((0,), (SLOW, SLOW, 0), True),
        ((SLOW, SLOW), (0, 0, 0), False),
        ((0, 0, 0), (SLOW, SLOW), False),
        ((FAILED, 0), (SLOW, 0), False),
        ((FAILED | SLOW, 0), (FAILED, 0), True),
    ],
)
def test_the_calls_failures_and_slow_calls_of_all_workloads_are_added(first, second, reached):
    assert reach_a_rate((record(*first), record(*second)), HALF, HALF) is reached


def test_each_rate_of_several_workloads_has_its_own_threshold():
    failed, slow = record(FAILED, 0, 0), record(SLOW, 0, 0)
    assert reach_a_rate((failed,), (1, 3), HALF)
    assert not reach_a_rate((failed,), HALF, (1, 3))
    assert reach_a_rate((slow,), HALF, (1, 3))
    assert not reach_a_rate((slow,), (1, 3), HALF)
    assert not reach_a_rate((), (1, 3), HALF)


def widespread_rate(*active, failure=HALF, slow=HALF):
    return is_widespread_rate([*active], 10.0, SLOW_AFTER, LEAST, failure, slow)


def test_the_rate_of_the_only_workload_is_widespread():
    assert widespread_rate(record(0, 0, FAILED, success=10.0))


def test_a_rate_is_widespread_where_every_workload_fails():
    bad = (FAILED, FAILED, 0, 0)
    assert widespread_rate(record(*bad, success=10.0), record(*bad, success=10.0))
    assert widespread_rate(record(circuit=OPEN), record(bad=1))


def test_a_rate_that_one_failing_workload_causes_is_not_widespread():
    failing = record(*(FAILED,) * 20, success=10.0)
    assert not widespread_rate(failing, record(0, 0, 0, success=10.0))
    assert widespread_rate(failing, record(FAILED, success=10.0))


def test_the_worst_of_several_others_is_left_out():
    """It has too few calls to say by itself that it fails, and yet it may fail for a reason of its own."""
    worst, good, fair = (
        record(*(FAILED,) * 3, success=10.0),
        record(0, 0, success=10.0),
        record(0, success=10.0),
    )
    assert reach_a_rate((worst, good, fair), HALF, HALF)
    assert not widespread_rate(worst, good, fair)
    assert not widespread_rate(good, fair, worst)
    assert widespread_rate(record(FAILED, FAILED, success=10.0), worst, fair)


def test_two_others_are_enough_to_leave_the_worst_out():
    worst, good = record(*(FAILED,) * 3, success=10.0), record(0, 0, success=10.0)
    assert reach_a_rate((worst, good), HALF, HALF)
    assert not widespread_rate(worst, good)


def test_the_worst_has_the_most_failures_and_slow_calls_together():
    """Neither count decides alone, and their difference does not either."""
    worst = record(FAILED, SLOW, FAILED, success=10.0)
    slow, failed = record(SLOW, SLOW, success=10.0), record(FAILED, 0, 0, success=10.0)
    # Without the worst, 2 of 5 are slow; without the slow ones, 3 of 6 failed.
    assert reach_a_rate((worst, failed), HALF, HALF)
    assert not widespread_rate(worst, slow, failed)
    assert not widespread_rate(failed, slow, worst)


def test_a_rate_is_judged_with_the_thresholds_in_their_order():
    failed = record(FAILED, 0, 0, success=10.0), record(FAILED, 0, 0, success=10.0)
    assert widespread_rate(*failed, failure=(1, 3), slow=HALF)
    assert not widespread_rate(*failed, failure=HALF, slow=(1, 3))


# --- outages --------------------------------------------------------------------------------------


def outage(*active, least=LEAST):
    return is_widespread_outage(active, 20.0, SLOW_AFTER, least)


def dead(bad=2, since=10.0, **options):
    return record(bad=bad, since=since, **options)


def test_two_unresponsive_workloads_are_an_outage_once_they_have_enough_bad_calls_together():
    assert outage(dead(2), dead(2))
    assert not outage(dead(2), dead(1))
    assert outage(dead(1, circuit=OPEN), dead(1))


def test_one_unresponsive_workload_is_an_outage_if_it_is_the_only_one_and_its_circuit_is_open():
    assert outage(dead(1, circuit=OPEN))
    assert not outage(dead(9))
    assert not outage(dead(9, circuit=OPEN), record(success=9.0))
    assert not outage(dead(9), record(success=9.0))
    assert not outage()


def test_a_success_of_another_workload_since_all_were_bad_is_no_outage():
    """Since the last of them began to be bad: an earlier success says nothing of what is so now."""
    early, late = dead(2, since=10.0), dead(2, since=12.0)
    for pair in ((early, late), (late, early)):
        assert outage(*pair, record(success=11.9))
        assert not outage(*pair, record(success=12.0))
        assert not outage(*pair, record(success=11.0), record(success=13.0))


def test_the_open_circuit_of_a_workload_that_answers_does_not_shorten_the_count():
    """Only an unresponsive one's does."""
    answers = record(success=9.0, bad=0, circuit=OPEN)
    assert not outage(dead(1), dead(1), answers)
    assert outage(dead(2), dead(2), answers)


def test_an_outage_is_over_when_a_workload_has_succeeded_within_the_threshold():
    assert not outage(dead(2), dead(2, success=20.1 - SLOW_AFTER))
    assert outage(dead(2), dead(2, success=20.0 - SLOW_AFTER))
