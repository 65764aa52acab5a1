"""The circuit of a guard with compartments: what it records of each workload, and whom it believes."""

from __future__ import annotations

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker
from guardrails._core.outcome import Outcome
from guardrails._core.window import FAILED, SLOW

S, F, X = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED


def make(**options):
    """Opens at half of four calls, each slow from 1 s on; a round has two probes."""
    settings = {
        "sliding_window_type": "count",
        "sliding_window_size": 100,
        "minimum_number_of_calls": 4,
        "failure_rate_threshold": 0.5,
        "slow_call_rate_threshold": 0.5,
        "slow_call_duration_threshold": 1,
        "wait_duration_in_open_state": 5,
        "open_jitter": 0,
        "permitted_calls_in_half_open_state": 2,
    }
    return Breaker(BreakerPolicy(**(settings | options)), lambda: 0.5)


def divided(count=3, **options):
    """A circuit, and as many workloads: the calls outside all compartments, then compartments."""
    breaker = make(**options)
    breaker.uncompartmented = breaker.watch_workload(None, 0)
    return breaker, [breaker.uncompartmented, *(breaker.watch_workload(make(), 0) for _ in range(count - 1))]


def begin(breaker, workload, now=0.0):
    breaker.caller_workload = workload
    return breaker.begin(now)


def call(breaker, workload, outcome, now=0.0, lasting=0.0):
    return breaker.end(begin(breaker, workload, now), outcome, now + lasting)


def marks(workload):
    return workload.window.calls, workload.window.failures, workload.window.slow


# --- records --------------------------------------------------------------------------------------


def test_a_slow_success_does_not_end_a_workloads_bad_calls():
    breaker, (first, *_) = divided()
    call(breaker, first, F)
    call(breaker, first, S, 1.0, lasting=2.0)
    assert (first.bad_calls, first.last_success_at) == (2, 3.0)  # a failure, and the slow call itself
    call(breaker, first, S, 4.0, lasting=0.5)
    assert (first.bad_calls, first.last_success_at) == (0, 4.5)


@pytest.mark.parametrize("state", ["closed", "metrics_only"])
def test_an_overdue_call_is_slow_in_the_window_of_its_workload(state):
    """And failed in the same place if it fails in the end."""
    breaker, (_, second, third) = divided(minimum_number_of_calls=100)
    if state != "closed":
        breaker.hold(state, 0)
    ticket, other = begin(breaker, second), begin(breaker, third)
    breaker.tick(1.5)
    assert (marks(second), marks(third), marks(breaker)) == ((1, 0, 1), (1, 0, 1), (2, 0, 2))
    breaker.end(ticket, F, 2.0)
    breaker.end(other, S, 2.0)
    assert (marks(second), marks(third), marks(breaker)) == ((1, 1, 1), (1, 0, 1), (2, 1, 2))
    assert second.slow_positions == third.slow_positions == {}, "no call that has ended is remembered"


# --- verdicts -------------------------------------------------------------------------------------


def outage(breaker, workloads, *, bad=2, others=()):
    """All workloads are unresponsive since 10.0; returns the verdict of 20.0."""
    breaker.tick(20.0)
    for workload in workloads:
        workload.bad_calls, workload.bad_calls_since = bad, 10.0
    for workload in others:
        workload.last_success_at = 9.0
    return breaker._verdict(new_evidence=True)


def record(breaker, workload, *marks):
    for mark in marks:
        breaker.window.add(mark)
        workload.add(mark)


def test_an_outage_below_all_rates_needs_as_many_bad_calls_as_a_verdict():
    breaker, (first, second, third) = divided(minimum_number_of_calls=6)
    assert outage(breaker, (first, second), bad=2, others=[third]) is None
    assert outage(breaker, (first, second), bad=3, others=[third]) == "slow_call_rate"


def test_an_outage_with_a_rate_needs_no_further_bad_calls():
    """The others' old successes keep their own rate low, and there has been none since."""
    breaker, (first, second, third) = divided()
    record(breaker, first, *(FAILED,) * 6)
    record(breaker, third, *(0,) * 5)
    assert outage(breaker, (first, second), bad=1, others=[third]) == "failure_rate"


def test_a_rate_of_one_workload_is_no_verdict():
    breaker, (first, second, third) = divided()
    record(breaker, first, *(FAILED,) * 6)
    record(breaker, second, 0, 0)
    record(breaker, third, 0, 0)
    assert outage(breaker, [first], others=(second, third)) is None


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        ((FAILED, FAILED, SLOW), "failure_rate"),
        ((FAILED, SLOW), "slow_call_rate"),
        ((FAILED, SLOW, SLOW), "slow_call_rate"),
        ((), "slow_call_rate"),
    ],
)
def test_an_outage_below_all_rates_is_named_after_what_most_of_its_calls_did(seen, cause):
    """Overdue calls have no other sign than that they are slow."""
    breaker, (first, second, third) = divided(minimum_number_of_calls=4)
    record(breaker, third, *(0,) * 9)
    record(breaker, first, *seen)
    assert outage(breaker, (first, second), others=[third]) == cause


def test_overdue_calls_alone_are_an_outage():
    """Nothing has failed, and the rate of all calls is low; but of two workloads no call comes back."""
    breaker, (first, second, third) = divided(minimum_number_of_calls=2)
    for _ in range(10):
        call(breaker, third, S)
    begin(breaker, first, 1.0)
    begin(breaker, second, 1.0)
    breaker.tick(2.0)
    assert breaker.state == "closed"
    breaker.tick(2.5)
    assert [change.cause for change in breaker.transitions] == ["slow_call_rate"]


def test_the_end_of_a_call_that_says_nothing_opens_no_circuit():
    """Else the moment of a verdict would depend on when an abandoned call ends."""
    breaker, (first, second, third) = divided(minimum_number_of_calls=2)
    for workload in (first, second, third):
        for _ in range(3):
            call(breaker, workload, S, 0.0)
    call(breaker, first, F, 0.5)
    call(breaker, second, F, 0.5)
    call(breaker, third, X, 1.4)
    assert breaker.state == "closed"
    call(breaker, first, F, 1.4)
    assert breaker.state == "open"


@pytest.mark.parametrize(
    ("before", "bad", "seen", "suspect"),
    [
        (False, 0, (), False),
        (True, 0, (), True),
        (False, 1, (), True),
        (False, 0, (FAILED, 0), True),
        (False, 0, (SLOW, 0), True),
        (False, 0, (FAILED, 0, 0), False),
        (True, 1, (FAILED,), True),
    ],
)
def test_a_workload_is_suspect_that_was_bad_when_the_circuit_opened(before, bad, seen, suspect):
    """By its last calls or by its rate; and it remains so until the circuit has closed."""
    breaker, (first, second, _) = divided()
    record(breaker, second, *seen)
    second.suspect, second.bad_calls = before, bad
    breaker.open(0, "failure_rate")
    assert (first.suspect, second.suspect) == (False, suspect)
    assert breaker.admits_healthy(second) is not suspect
    breaker.half_open(1)
    for _ in range(2):
        call(breaker, first, S, 1)
    assert breaker.state == "closed"
    assert (second.suspect, marks(second)) == (False, (0, 0, 0))
    breaker.open(2, "failure_rate")
    assert second.suspect is (bad > 0)


# --- probes ---------------------------------------------------------------------------------------


def probing(*, own_open, healthy):
    """A half-open circuit, and a workload that has failed; another has had results or none."""
    breaker, (first, second, third) = divided()
    if healthy:
        call(breaker, first, S)
        call(breaker, third, S)
    call(breaker, second, F)
    if own_open:
        second.circuit.open(0)
    breaker.half_open(0)
    return breaker, first, second


BELIEVED = [(False, True, True), (True, False, True), (False, False, True), (True, True, False)]


@pytest.mark.parametrize(("own_open", "healthy", "counts"), BELIEVED)
def test_a_failed_probe_counts_unless_its_own_circuit_is_open_and_another_workload_is_healthy(
    own_open, healthy, counts
):
    breaker, _, second = probing(own_open=own_open, healthy=healthy)
    call(breaker, second, F, 0.5)
    assert breaker.state == ("open" if counts else "half_open")
    assert breaker.permits == {}
    if not counts:
        assert (breaker.round.calls, breaker.round.failures) == (0, 0)


@pytest.mark.parametrize(("own_open", "healthy", "counts"), BELIEVED)
def test_an_overdue_probe_counts_unless_its_own_circuit_is_open_and_another_workload_is_healthy(
    own_open, healthy, counts
):
    breaker, _, second = probing(own_open=own_open, healthy=healthy)
    ticket = begin(breaker, second, 0.5)
    breaker.tick(2.0)
    assert breaker.state == ("open" if counts else "half_open")
    if not counts:
        assert (breaker.round.calls, breaker.round.slow) == (0, 0)
        breaker.end(ticket, F, 3.0)
        assert (breaker.state, breaker.round.failures) == ("half_open", 0)


def test_a_probe_that_succeeds_counts_for_a_workload_with_an_open_circuit():
    breaker, _, second = probing(own_open=True, healthy=True)
    call(breaker, second, S, 0.5)
    assert (breaker.round.calls, breaker.state) == (1, "half_open")
    call(breaker, second, S, 0.6)
    assert breaker.state == "closed"


def test_a_probe_that_was_counted_as_slow_counts_as_failed_whatever_has_opened_since():
    """Its permit was its workload's evidence; the compartment's circuit opened after that."""
    breaker, first, second = probing(own_open=False, healthy=True)
    breaker._slow_rate = (1, 1)  # so that one slow probe does not end the round
    ticket = begin(breaker, second, 0.5)
    breaker.tick(2.0)
    assert (breaker.round.calls, breaker.round.slow) == (1, 1)
    second.circuit.open(2.0)
    assert first.is_healthy
    breaker.end(ticket, F, 3.0)
    assert breaker.round.failures == 1
    assert breaker.state == "open"


# --- admission ------------------------------------------------------------------------------------


@pytest.mark.parametrize("permits", [0, 2])
def test_a_healthy_workload_is_admitted_by_a_circuit_that_others_have_opened(permits):
    """Also while every probe is under way; a failing one, and a caller without a workload, are not."""
    breaker, (first, second, _) = divided()
    call(breaker, first, S)
    call(breaker, second, F)
    breaker.open(0, "failure_rate")
    breaker.caller_workload = None
    now = 5 if permits else 1
    assert breaker.allow_call(now) is (permits > 0), "the wait is over"
    for _ in range(permits):
        breaker.acquire_permit(now)
    for workload, admitted in ((first, True), (second, False), (None, False)):
        breaker.caller_workload = workload
        assert breaker.allow_call(now) is admitted


@pytest.mark.parametrize("state", ["forced_open", "open"])
def test_a_circuit_that_was_opened_by_hand_admits_nobody(state):
    breaker, (first, *_) = divided()
    call(breaker, first, S)
    breaker.open(0) if state == "open" else breaker.hold(state, 0)
    breaker.caller_workload = first
    assert first.is_healthy
    assert not breaker.allow_call(1)


def test_in_metrics_only_an_outage_is_reported_once():
    """Its figures are read again and again, and reach no rate; the crossing lasts."""
    breaker, (first, second, third) = divided(minimum_number_of_calls=3)
    breaker.hold("metrics_only", 0)
    breaker.transitions.clear()
    for _ in range(20):
        call(breaker, third, S)
    for now in (1.0, 1.1, 1.2):
        call(breaker, first, F, now)
        call(breaker, second, F, now)
    assert [change.cause for change in breaker.transitions] == ["failure_rate"]
    breaker.tick(1.5)
    call(breaker, first, F, 1.6)
    assert len(breaker.transitions) == 1
    call(breaker, third, S, 1.7)
    call(breaker, first, F, 1.8)
    assert len(breaker.transitions) == 1, "the third workload answers, so that this is no outage"


def test_in_metrics_only_an_outage_is_reported_that_failures_alone_did_not_show():
    """Two workloads fail, and become unresponsive a slow-call threshold after their last successes."""
    breaker, (first, second, third) = divided(minimum_number_of_calls=3)
    breaker.hold("metrics_only", 0)
    breaker.transitions.clear()
    for _ in range(20):
        call(breaker, third, S)
    for outcome, now in ((S, 0.9), (F, 1.0), (F, 1.1)):
        call(breaker, first, outcome, now)
        call(breaker, second, outcome, now)
    assert breaker.transitions == []
    call(breaker, first, F, 2.5)
    assert [change.cause for change in breaker.transitions] == ["failure_rate"]


def test_an_outage_that_lasts_is_reported_in_metrics_only_too():
    """The figures are forgotten, the failures in a row of each workload are not."""
    breaker, (first, second, _) = divided(minimum_number_of_calls=3)
    for now in (0.0, 0.1):
        call(breaker, first, F, now)
        call(breaker, second, F, now)
        breaker.transitions.clear()
    assert breaker.state == "open"
    breaker.hold("metrics_only", 1)
    breaker.transitions.clear()
    call(breaker, first, F, 2)
    assert [change.cause for change in breaker.transitions] == ["failure_rate"]
