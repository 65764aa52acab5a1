"""The circuit breaker, with times as arguments: no clock and no calls."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker, _ratio
from guardrails._core.outcome import Outcome
from guardrails._core.ramp import Ramp
from guardrails._core.window import CountWindow
from guardrails._core.workloads import reaches as _reaches

S, F, X = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED
HALF = lambda: 0.5
"""A random source that gives no jitter."""


def make(jitter=HALF, **options):
    settings = {
        "sliding_window_type": "count",
        "sliding_window_size": 10,
        "minimum_number_of_calls": 1,
        "wait_duration_in_open_state": 5,
        "open_jitter": 0,
        "permitted_calls_in_half_open_state": 2,
        "slow_call_duration_threshold": 1,
    }
    return Breaker(BreakerPolicy(**(settings | options)), jitter)


def call(breaker, outcome, now=0.0, lasting=0.0):
    assert breaker.allow_call(now)
    return breaker.end(breaker.begin(now), outcome, now + lasting)


def half_open(**options):
    breaker = make(**options)
    call(breaker, F)
    assert breaker.state == "open"
    assert breaker.allow_call(5)
    assert breaker.state == "half_open"
    return breaker


def moves(breaker):
    return [(change.old, change.new, change.cause) for change in breaker.transitions]


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "failures", "calls", "opens"),
    [
        (0.1, 1, 10, True),  # the float 0.1 lies above 1/10
        (0.3, 3, 10, True),
        (0.7, 7, 10, True),
        (1 / 3, 1, 3, True),
        (0.3333, 1, 3, True),
        (0.3334, 1, 3, False),
        (0.5, 4, 10, False),
        (1, 9, 10, False),
        (1, 10, 10, True),
        (1e-9, 0, 10, False),  # a threshold too fine to tell from 0 still needs one failure
        (1e-9, 1, 10, True),
    ],
)
def test_a_rate_at_the_threshold_opens(threshold, failures, calls, opens):
    """``>=``, in whole numbers."""
    breaker = make(failure_rate_threshold=threshold, minimum_number_of_calls=calls)
    for number in range(calls):
        call(breaker, F if number < failures else S)
    assert breaker.state == ("open" if opens else "closed")


@given(st.integers(1, 1000), st.integers(1, 1000), st.data())
def test_no_rounding_flips_a_verdict(denominator, whole, data):
    """For every fraction a human would write, the verdict is that of exact arithmetic."""
    numerator = data.draw(st.integers(1, denominator))
    part = data.draw(st.integers(0, whole))
    exact = Fraction(part, whole) >= Fraction(numerator, denominator)
    assert _reaches(part, whole, _ratio(numerator / denominator)) == exact


def test_one_failure_opens_with_a_minimum_of_one():
    """SM3."""
    breaker = make()
    call(breaker, F)
    assert moves(breaker) == [("closed", "open", "failure_rate")]


@pytest.mark.parametrize(("least", "opens"), [(1, True), (2, False), (10, False)])
def test_a_first_failure_after_silence_opens_only_by_a_minimum_of_one(least, opens):
    """W10: a rate of one call is no rate, unless that was asked for."""
    breaker = make(sliding_window_type="time", minimum_number_of_calls=least)
    breaker.tick(1000)
    call(breaker, F, now=1000)
    assert breaker.state == ("open" if opens else "closed")


def test_the_circuit_stays_closed_below_the_minimum_of_calls():
    """W10: one call a second in a window of five seconds; the figures are shown as too few for a rate."""
    options = {"sliding_window_type": "time", "sliding_window_size": 5, "minimum_number_of_calls": 10}
    breaker, strict = make(**options), make(**options, consecutive_failures=3)
    for second in range(100):
        call(breaker, F, now=second)
        assert breaker.state == "closed"
    *figures, enough = breaker.evidence(99)
    assert (figures, enough) == ([5, 5, 0], False)
    for second in range(3):
        call(strict, F, now=second)
    assert strict.state == "open", "what helps where calls are few"


def test_an_hours_pause_ages_the_evidence_and_opens_nothing():
    """W9: after a suspend only the calls in flight count as slow; here they are too few."""
    breaker = make(sliding_window_type="time", minimum_number_of_calls=10)
    for _ in range(9):
        call(breaker, F)
    under_way = [breaker.begin(0) for _ in range(4)]
    call(breaker, F, now=3600)
    assert (breaker.state, breaker.evidence(3600)[:3]) == ("closed", (5, 1, 4))
    for ticket in under_way:
        breaker.end(ticket, S, 3600)
    assert (breaker.state, breaker.evidence(3600)[:3]) == ("closed", (5, 1, 4))


def test_a_pause_while_open_is_part_of_the_wait():
    """W9: the first call after it is a probe."""
    breaker = make()
    call(breaker, F)
    assert breaker.allow_call(3600)
    assert breaker.state == "half_open"


def test_consecutive_failures_open_below_the_minimum():
    """pybreaker's rule, besides the rates. A success restarts the count; an abandoned call does not."""
    breaker = make(minimum_number_of_calls=100, sliding_window_size=100, consecutive_failures=3)
    for outcome in (F, F, S, F, X, F):
        call(breaker, outcome)
    assert breaker.state == "closed"
    call(breaker, F)
    assert moves(breaker) == [("closed", "open", "consecutive_failures")]


def test_a_streak_opens_half_open_only_with_a_failure_of_the_round():
    """The streak that opened the circuit does not fail the round of probes."""
    breaker = half_open(
        consecutive_failures=1, failure_rate_threshold=1, permitted_calls_in_half_open_state=4
    )
    call(breaker, S, now=5)
    assert breaker.state == "half_open"
    call(breaker, F, now=5)
    assert breaker.state == "open"


# --- slow calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "lasting", "figures"),
    [
        (S, 1.0, (1, 0, 0)),
        (S, math.nextafter(1.0, 2), (1, 0, 1)),
        (F, 2.0, (1, 1, 1)),
        (X, 1.0, (0, 0, 0)),
        (X, 2.0, (1, 0, 1)),
    ],
)
def test_slow_is_a_mark_on_any_outcome(outcome, lasting, figures):
    """Strictly longer than the threshold; an abandoned call counts only if it was slow (SM16)."""
    breaker = make(minimum_number_of_calls=2)
    ended = call(breaker, outcome, lasting=lasting)
    window = breaker.window
    assert (window.calls, window.failures, window.slow) == figures
    assert (ended.duration, ended.slow) == (lasting, bool(figures[2]))


def test_a_call_in_flight_counts_as_slow_once():
    """It is in the window before it ends; its end adds only the failure."""
    breaker = make(minimum_number_of_calls=10)
    ticket = breaker.begin(0)
    breaker.tick(1)
    assert breaker.window.calls == 0
    breaker.tick(1.01)
    assert (breaker.window.calls, breaker.window.slow, breaker.slow) == (1, 1, 1)
    breaker.tick(50)
    assert breaker.end(ticket, F, 60).slow
    window = breaker.window
    assert (window.calls, window.failures, window.slow, breaker.slow) == (1, 1, 1, 1)


def test_a_hung_dependency_opens_the_circuit():
    """No call returns: just past the threshold the circuit is open."""
    breaker = make(minimum_number_of_calls=10, sliding_window_type="time")
    for number in range(10):
        breaker.allow_call(number / 100)
        breaker.begin(number / 100)
    assert breaker.allow_call(1.09)
    assert not breaker.allow_call(1.0901)
    assert moves(breaker) == [("closed", "open", "slow_call_rate")]


def test_a_failure_adds_no_mark_to_a_call_that_has_left_the_window():
    """It is counted in the totals and changes no rate."""
    breaker = make(sliding_window_size=2, minimum_number_of_calls=10, failure_rate_threshold=1)
    ticket = breaker.begin(0)
    breaker.tick(2)
    breaker._slow_rate = (2, 1)
    for _ in range(2):
        call(breaker, S, now=2)
    breaker.end(ticket, F, 3)
    assert (breaker.window.failures, breaker.failed) == (0, 1)


def test_overdue_calls_in_all_slots_are_a_stall():
    """Old successes do not keep the rate low when every slot is overdue."""
    breaker = make(minimum_number_of_calls=5, sliding_window_type="time", sliding_window_size=60)
    breaker.stall_slots = 2
    for _ in range(20):
        call(breaker, S)
    breaker.begin(0)
    breaker.tick(2)
    assert breaker.state == "closed"
    breaker.begin(2)
    breaker.tick(4)
    assert moves(breaker) == [("closed", "open", "stalled")]


@pytest.mark.parametrize(("slots", "state"), [(2, "closed"), (3, "open"), (4, "closed")])
def test_a_small_pool_stalls_below_the_minimum(slots, state):
    """Three overdue calls suffice if they hold all slots and a round has no more probes."""
    breaker = make(minimum_number_of_calls=10, permitted_calls_in_half_open_state=3)
    breaker.stall_slots = slots
    for _ in range(min(slots, 3)):
        breaker.begin(0)
    breaker.tick(2)
    assert breaker.state == state


def test_a_guard_without_a_pool_has_no_stalls():
    """Its slots are not the connections of a pool."""
    breaker = make(minimum_number_of_calls=10, permitted_calls_in_half_open_state=1)
    breaker.begin(0)
    breaker.tick(2)
    assert (breaker.state, len(breaker.overdue)) == ("closed", 1)


@pytest.mark.parametrize(
    ("dice", "wait"), [(float("nan"), 2), (float("inf"), 2), (1.5, 2), (-1, 2), (0, 1), (1, 3)]
)
def test_invalid_random_numbers_add_no_jitter(dice, wait):
    """With NaN the open period would never end."""
    breaker = make(lambda: dice, open_jitter=0.5, wait_duration_in_open_state=2)
    breaker.open(0)
    assert breaker.open_until == wait


# --- late results --------------------------------------------------------------------------------


def to(breaker, state, now):
    if state == "open":
        call(breaker, F, now=now)
    else:
        to(breaker, "open", now)
        assert breaker.allow_call(now + 5)
        if state == "closed":
            for _ in range(2):
                call(breaker, S, now=now + 5)
    assert breaker.state == state


@pytest.mark.parametrize("outcome", [S, F, X])
@pytest.mark.parametrize("lasting", [0, 10])
@pytest.mark.parametrize("ends_in", ["open", "half_open", "closed"])
@pytest.mark.parametrize("begins_in", ["closed", "half_open"])
def test_a_late_result_changes_nothing(begins_in, ends_in, outcome, lasting):
    """SM7: a call of an earlier generation ends; only ``late`` and the totals change."""
    breaker = make(slow_call_duration_threshold=100, failure_rate_threshold=0.4)
    if begins_in == "half_open":
        to(breaker, "half_open", 0)
    ticket = breaker.begin(5)
    if begins_in == "half_open":
        call(breaker, F, now=5)  # reopens
        assert breaker.state == "open"
        if ends_in != "open":
            assert breaker.allow_call(10)
            if ends_in == "closed":
                for _ in range(2):
                    call(breaker, S, now=10)
    else:
        to(breaker, ends_in, 5)
    before = (breaker.state, breaker.window.calls, breaker.round.calls, dict(breaker.permits), breaker.streak)
    breaker.transitions.clear()
    ended = breaker.end(ticket, outcome, 10 + lasting)
    assert ended.duration == 5 + lasting
    assert before == (
        *(breaker.state, breaker.window.calls, breaker.round.calls),
        *(dict(breaker.permits), breaker.streak),
    )
    assert (breaker.late, breaker.transitions) == (1, [])


def test_a_ticket_ends_once():
    """B1: a second end, and the end of an unknown ticket, change nothing."""
    breaker = make(minimum_number_of_calls=5)
    ticket = breaker.begin(0)
    assert breaker.end(ticket, F, 0) is not None
    for unknown in (ticket, 999, 0, -1):
        assert breaker.end(unknown, F, 0) is None
    assert (breaker.failed, breaker.window.calls) == (1, 1)


def test_reset_makes_calls_in_flight_late():
    """SM13: a reset in the closed state starts a new generation, too."""
    breaker = make(minimum_number_of_calls=2, sliding_window_size=2)
    ticket = breaker.begin(0)
    breaker.reset(0)
    breaker.end(ticket, F, 0)
    assert (breaker.late, breaker.window.calls, breaker.transitions) == (1, 0, [])


# --- half-open -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probes", "story", "state"),
    [
        (2, "SS", "closed"),
        (2, "F", "open"),
        (2, "SF", "open"),
        (4, "F", "half_open"),
        (4, "FF", "open"),
        (4, "FSSS", "closed"),
        (4, "SSSF", "closed"),
        (4, "SSS", "half_open"),
        (4, "XXXXSSSS", "closed"),
        (3, "F", "half_open"),
        (3, "SFF", "open"),
        (1, "X", "half_open"),
        (1, "XS", "closed"),
    ],
)
def test_a_round_fails_early_and_passes_only_when_complete(probes, story, state):
    """With a threshold of 50 %: it fails as soon as it cannot pass any more."""
    breaker = half_open(permitted_calls_in_half_open_state=probes)
    for letter in story:
        call(breaker, {"S": S, "F": F, "X": X}[letter], now=5)
    assert breaker.state == state


@pytest.mark.parametrize(
    ("outcomes", "state", "cause"), [((S, S), "closed", "probes_passed"), ((F,), "open", "probes_failed")]
)
def test_the_end_of_a_round_has_its_cause(outcomes, state, cause):
    """It is in the log and in the events."""
    breaker = half_open()
    for outcome in outcomes:
        call(breaker, outcome, now=5)
    assert moves(breaker)[-1] == ("half_open", state, cause)


def test_half_open_admits_the_permitted_number_of_probes():
    """In flight and ended together; an abandoned probe frees its permit."""
    breaker = half_open(permitted_calls_in_half_open_state=3)
    tickets = []
    while breaker.allow_call(5):
        tickets.append(breaker.begin(5))
    assert len(tickets) == 3
    breaker.end(tickets[0], S, 5)
    assert not breaker.allow_call(5)
    breaker.end(tickets[1], X, 5)
    assert breaker.allow_call(5)


def test_a_slow_probe_counts_before_it_ends():
    """A probe is overdue at the slow threshold, long before its permit is over."""
    breaker = half_open(permitted_calls_in_half_open_state=2)
    breaker.begin(5)
    breaker.tick(6.1)
    assert moves(breaker)[-1] == ("half_open", "open", "probes_failed")


def test_an_overdue_probe_that_fails_is_one_result_with_two_marks():
    """Its slow mark was counted while it ran; its end adds the failure to the same round."""
    breaker = half_open(permitted_calls_in_half_open_state=8, slow_call_rate_threshold=1)
    ticket = breaker.begin(5)
    breaker.tick(6.1)
    assert (breaker.round.calls, breaker.round.slow, breaker.round.failures) == (1, 1, 0)
    breaker.end(ticket, F, 7)
    assert (breaker.round.calls, breaker.round.slow, breaker.round.failures) == (1, 1, 1)


def test_an_expired_lease_is_a_slow_result():
    """R17: whether the probe has begun or not."""
    for begun in (True, False):
        breaker = half_open(
            permitted_calls_in_half_open_state=1,
            slow_call_duration_threshold=100,
            max_wait_duration_in_half_open_state=10,
        )
        ticket = breaker.acquire_permit(5)
        if begun:
            assert breaker.begin_admitted(5, ticket) == ticket
        breaker.tick(math.nextafter(15, 0))
        assert breaker.state == "half_open"
        breaker.tick(15)
        assert (breaker.state, breaker.slow) == ("open", 1)
        assert breaker.end(ticket, X, 20) is not None
        assert breaker.late == 1


def test_work_on_a_connection_checked_out_before_half_open_is_no_probe():
    """It is neither refused nor evidence."""
    breaker = half_open(permitted_calls_in_half_open_state=1)
    for outcome, lasting in ((F, 0), (S, 0), (F, 5)):
        ticket = breaker.begin_admitted(5, 0)
        breaker.end(ticket, outcome, 5 + lasting)
        assert (breaker.state, breaker.round.calls) == ("half_open", 0)


def test_only_the_first_statement_on_a_probes_connection_is_the_probe():
    """The second is work like any other."""
    breaker = half_open(permitted_calls_in_half_open_state=2)
    permit = breaker.acquire_permit(5)
    assert breaker.begin_admitted(5, permit) == permit
    assert breaker.begin_admitted(5, permit) != permit
    breaker.end(permit, S, 5)
    assert breaker.round.calls == 1
    assert breaker.begin_admitted(5, permit) != permit


def test_a_waiting_probes_duration_starts_when_it_resumes():
    """The wait at another gate is not part of its duration; an overdue call stays overdue."""
    breaker = half_open(permitted_calls_in_half_open_state=3, max_wait_duration_in_half_open_state=60)
    ticket = breaker.begin(5)
    breaker.resume(ticket, 5.9)
    assert not breaker.end(ticket, S, 6.5).slow
    ticket = breaker.begin(7)
    breaker.tick(9)
    breaker.resume(ticket, 9)
    assert breaker.end(ticket, S, 9).slow


# --- the open period -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("multiplier", "most", "waits"),
    [
        (1, 60, [5, 5, 5, 5]),
        (2, 60, [5, 10, 20, 40, 60, 60]),
        (2, 3, [5, 5, 5]),  # the bound never shortens the first wait
        (1000, 60, [5] + [60] * 400),
        (1000.0, 60, [5] + [60] * 400),  # 1000 ** 400 is more than a float holds
        (1.5, 10**9, [5, 7.5, 11.25]),
    ],
)
def test_each_reopening_in_a_row_waits_longer(multiplier, most, waits):
    """Up to the bound; closing starts again."""
    breaker = make(
        open_backoff_multiplier=multiplier,
        max_wait_duration_in_open_state=most,
        permitted_calls_in_half_open_state=1,
    )
    now, seen = 0.0, []
    for _ in waits:
        call(breaker, F, now=now)
        seen.append(breaker.retry_after(now))
        now = breaker.open_until
    assert seen == pytest.approx(waits)
    call(breaker, S, now=now)
    call(breaker, F, now=now)
    assert breaker.retry_after(now) == pytest.approx(waits[0])


@pytest.mark.parametrize("multiplier", [1000, 1000.0])
def test_a_wait_of_zero_stays_zero_however_often_it_reopens(multiplier):
    """0 times anything is 0, also where the multiplier's power is too large for a float."""
    breaker = make(
        wait_duration_in_open_state=0,
        open_backoff_multiplier=multiplier,
        permitted_calls_in_half_open_state=1,
    )
    for _ in range(400):
        call(breaker, F, now=1)
    assert breaker.retry_after(1) == 0
    assert breaker.allow_call(1)


@pytest.mark.parametrize(("random", "wait"), [(0.0, 4.5), (0.5, 5.0), (0.75, 5.25)])
def test_jitter_spreads_the_wait(random, wait):
    """By a share of it in both directions, from the given random source."""
    breaker = make(jitter=lambda: random, open_jitter=0.1)
    call(breaker, F)
    assert breaker.retry_after(0) == pytest.approx(wait)
    assert breaker.transitions[0].retry_after == pytest.approx(wait)


@pytest.mark.parametrize(("state", "hint"), [("closed", None), ("forced_open", None), ("disabled", None)])
def test_retry_after_is_none_in_states_set_by_hand(state, hint):
    """And in the closed state."""
    breaker = make()
    if state != "closed":
        breaker.hold(state, 0)
    assert breaker.retry_after(0) is hint


# --- by hand -------------------------------------------------------------------------------------


def test_opening_and_half_opening_by_hand():
    """Each once; a second time changes nothing."""
    breaker = make()
    breaker.open(0)
    breaker.open(1)
    assert breaker.open_until == 5
    breaker.half_open(1)
    breaker.half_open(1)
    breaker.hold("disabled", 1)
    breaker.hold("disabled", 1)
    breaker.reset(1)
    assert moves(breaker) == [
        ("closed", "open", "manual"),
        ("open", "half_open", "manual"),
        ("half_open", "disabled", "manual"),
        ("disabled", "closed", "manual"),
    ]


def test_a_circuit_without_a_policy_is_disabled_for_good():
    """It may be forced open; a reset brings it back to disabled, not to closed."""
    breaker = Breaker(None, HALF)
    for _ in range(100):
        call(breaker, F, lasting=1000)
    assert breaker.state == "disabled"
    breaker.hold("forced_open", 0)
    assert not breaker.allow_call(0)
    breaker.reset(0)
    assert breaker.state == "disabled"


def test_metrics_only_starts_with_nothing_remembered():
    """Neither the streak nor an earlier report carries over from the state before."""
    breaker = make(consecutive_failures=3, minimum_number_of_calls=100, sliding_window_size=100)
    call(breaker, F)
    call(breaker, F)
    breaker.hold("metrics_only", 0)
    breaker.transitions.clear()
    call(breaker, F)
    assert breaker.transitions == []
    for _ in range(3):
        call(breaker, F)
    assert moves(breaker) == [("metrics_only", "metrics_only", "consecutive_failures")]
    breaker.hold("disabled", 0)
    breaker.hold("metrics_only", 0)
    breaker.transitions.clear()
    for _ in range(5):
        call(breaker, F)
    assert moves(breaker) == [("metrics_only", "metrics_only", "consecutive_failures")]


def test_metrics_only_reports_each_crossing_of_the_threshold():
    """A second one after the failures have left the window, even if the circuit was not read meanwhile."""
    breaker = make(sliding_window_type="time", sliding_window_size=10)
    breaker.hold("metrics_only", 0)
    breaker.transitions.clear()
    for now in (0, 1, 100, 101):
        call(breaker, F, now=now)
    assert [change.at for change in breaker.transitions] == [0, 100]


def test_there_is_no_verdict_without_new_evidence():
    """Old successes leave the window and the rate rises; the circuit stays closed until the next result."""
    breaker = make(sliding_window_type="time", sliding_window_size=10, minimum_number_of_calls=2)
    for _ in range(5):
        call(breaker, S, now=0)
    call(breaker, F, now=5)
    call(breaker, F, now=5)
    breaker.tick(12)
    assert breaker.evidence(12)[:2] == (2, 2)
    assert breaker.state == "closed"
    call(breaker, S, now=12)
    assert breaker.state == "open"


# --- what is shown -------------------------------------------------------------------------------


def test_rates_are_shown_from_the_minimum_on_and_an_open_circuit_keeps_what_opened_it():
    """(calls, failures, slow, enough) in every state."""
    breaker = make(minimum_number_of_calls=2, sliding_window_type="time", sliding_window_size=10)
    call(breaker, F)
    assert breaker.evidence(0) == (1, 1, 0, False)
    call(breaker, F)
    assert breaker.state == "open"
    assert breaker.evidence(4.9) == breaker.evidence(1000) == (2, 2, 0, True)
    breaker.allow_call(5)
    assert breaker.evidence(5) == (0, 0, 0, False)
    call(breaker, F, now=5)
    assert breaker.evidence(5) == (1, 1, 0, True)
    breaker.reset(5)
    assert breaker.evidence(5) == (0, 0, 0, False)


def test_an_idle_window_is_shown_empty():
    """Reading brings it up to date."""
    breaker = make(minimum_number_of_calls=2, sliding_window_type="time")
    call(breaker, F)
    assert breaker.evidence(100) == (0, 0, 0, False)


def test_the_oldest_call_in_flight_is_known():
    """Overdue or not, of any generation."""
    breaker = make(minimum_number_of_calls=10)
    assert breaker.start_times() == []
    breaker.begin(1)
    breaker.begin(1.5)
    assert min(breaker.start_times()) == 1
    breaker.tick(2.2)
    assert min(breaker.start_times()) == 1


def test_start_times_has_only_the_oldest_call_that_is_not_overdue():
    """The caller needs an age and no list."""
    breaker = make()
    for now in (3, 4, 5):
        breaker.begin(now)
    assert breaker.start_times() == [3]


def test_a_call_that_starts_again_is_the_youngest():
    """A call that began before it and was not restarted becomes overdue first."""
    breaker = make(slow_call_duration_threshold=5)
    waited, straight = breaker.begin(0), breaker.begin(1)
    breaker.resume(waited, 2)
    breaker.tick(6.5)
    assert list(breaker.overdue) == [straight]
    breaker.resume(straight, 6.5)
    assert breaker.end(straight, S, 6.5) == (5.5, True)


def test_a_leased_probe_that_never_began_can_be_resumed():
    """Its duration starts there."""
    breaker = half_open()
    ticket = breaker.acquire_permit(5)
    breaker.resume(ticket, 6)
    assert breaker.in_flight == {ticket: 6}


def test_each_lost_probe_is_one_slow_result():
    """Two of four, at different moments."""
    breaker = half_open(permitted_calls_in_half_open_state=4, slow_call_rate_threshold=1)
    for now in (5, 5.5):
        breaker.begin(now)
    for now, lost in ((6.1, 1), (6.6, 2)):
        breaker.tick(now)
        assert (breaker.round.calls, breaker.round.slow) == (lost, lost)


def test_a_call_of_an_earlier_generation_is_no_part_of_a_stall():
    """Nor is the last call admitted before the transition."""
    breaker = make(failure_rate_threshold=1, slow_call_rate_threshold=1)
    breaker.stall_slots = 1
    breaker.begin(0)
    breaker.reset(0)
    call(breaker, S, 0.5)
    breaker.tick(3)
    assert (len(breaker.overdue), breaker.state) == (1, "closed")


def test_a_manual_transition_has_its_time():
    """As every other."""
    breaker = make()
    for now, hand in enumerate((breaker.open, breaker.half_open, breaker.reset)):
        hand(now)
    breaker.hold("disabled", 3)
    assert [change.at for change in breaker.transitions] == [0, 1, 2, 3]


def test_a_transition_by_evidence_has_the_time_of_the_result():
    """The end of the call and not its start."""
    breaker = make()
    call(breaker, F, 1, lasting=0.5)
    assert [change.at for change in breaker.transitions] == [1.5]


def test_a_probe_that_passes_ends_the_streak():
    """The failures before it are no longer in a row with the next."""
    breaker = make(
        consecutive_failures=2,
        failure_rate_threshold=1,
        minimum_number_of_calls=9,
        permitted_calls_in_half_open_state=3,
    )
    for _ in range(2):
        call(breaker, F)
    assert breaker.state == "open"
    call(breaker, S, 5)
    call(breaker, F, 5)
    assert breaker.state == "half_open"


def test_each_late_result_is_counted():
    """Two of two."""
    breaker = make()
    tickets = [breaker.begin(0), breaker.begin(0)]
    breaker.reset(0)
    for ticket in tickets:
        breaker.end(ticket, S, 0.5)
    assert breaker.late == 2


def test_a_probe_whose_lease_ran_out_is_slow_once_and_as_old_as_its_call():
    """Each of them; one that never began is as old as the loss."""
    breaker = half_open(
        permitted_calls_in_half_open_state=4,
        slow_call_rate_threshold=1,
        slow_call_duration_threshold=60,
        max_wait_duration_in_half_open_state=3,
    )
    begun, unused = breaker.begin(5), breaker.acquire_permit(6)
    breaker.tick(9)
    assert (breaker.slow, breaker.in_flight) == (2, {})
    assert breaker.start_times() == [5, 9]
    assert breaker.end(begun, S, 10) == (5, True)
    assert breaker.end(unused, S, 10) == (1, True)


def test_a_call_on_the_fast_path_ends_with_its_duration():
    """And is not slow."""
    breaker = make()
    assert call(breaker, S, 1, lasting=0.75) == (0.75, False)


def test_overdue_calls_change_nothing_in_forced_open():
    """They were in flight before; no verdict follows."""
    breaker = make()
    call(breaker, F)
    breaker.begin_admitted(0, 0)
    breaker.tick(3)
    assert moves(breaker) == [("closed", "open", "failure_rate")]


def test_a_passed_round_has_the_time_of_its_last_result():
    """As every other transition."""
    breaker = half_open()
    for now in (6, 7):
        call(breaker, S, now)
    assert (breaker.state, breaker.transitions[-1].at) == ("closed", 7)


def test_a_state_held_by_hand_starts_a_new_streak():
    """Failures before it and after it are not in a row."""
    breaker = make(consecutive_failures=2, failure_rate_threshold=1, minimum_number_of_calls=9)
    breaker.hold("metrics_only", 0)
    call(breaker, F)
    assert moves(breaker) == [("closed", "metrics_only", "manual")]


def test_a_rounds_figures_suffice_when_the_round_is_complete():
    """Not when the window's minimum is met, which is another number."""
    breaker = half_open(minimum_number_of_calls=1, permitted_calls_in_half_open_state=2)
    call(breaker, S, 6)
    assert breaker.evidence(6) == (1, 0, 0, False)
    breaker.reset(6)
    call(breaker, S, 6)
    assert breaker.evidence(6) == (1, 0, 0, True)


def test_next_overdue_at_is_when_the_oldest_call_becomes_overdue():
    """Without calls in flight, when one that starts now would."""
    breaker = make(slow_call_duration_threshold=1)
    breaker.begin(0)
    breaker.tick(0.5)
    assert breaker.next_overdue_at == 1
    breaker.tick(3)
    assert breaker.next_overdue_at == 4


def test_a_call_that_becomes_overdue_is_judged_though_others_are_in_time():
    """The loop ends at the first call that is not overdue; the verdict still follows."""
    breaker = make(slow_call_rate_threshold=1)
    breaker.begin(0)
    breaker.begin(2)
    breaker.tick(2.5)
    assert moves(breaker) == [("closed", "open", "slow_call_rate")]


def test_a_late_call_that_becomes_overdue_leaves_no_mark():
    """Also the last one before the reset."""
    breaker = make()
    breaker.begin(0)
    breaker.reset(0)
    breaker.tick(3)
    assert (breaker.slow, breaker.window.slow) == (1, 0)


def test_half_open_begins_at_the_first_call_after_the_wait():
    """Time alone changes no state."""
    breaker = make()
    call(breaker, F)
    breaker.allow_call(7)
    assert breaker.transitions[-1][:3] == (7, "open", "half_open")


def test_no_calls_reach_no_rate():
    """0 of 0 is no rate."""
    assert not _reaches(0, 0, (1, 2))


# --- probes of a checkout and of compartments ----------------------------------------------------


def test_a_neutral_end_keeps_the_lease_for_the_next_statement():
    """A ping that works is not the probe's result."""
    breaker = half_open()
    ticket = breaker.begin(5)
    assert breaker.end(ticket, Outcome.NEUTRAL, 5.5) == (0.5, False)
    assert (breaker.permits, breaker.round.calls, breaker.succeeded) == ({ticket: 15}, 0, 1)
    assert breaker.begin_admitted(6, ticket) == ticket
    breaker.end(ticket, S, 6)
    assert (breaker.permits, breaker.round.calls) == ({}, 1)


@pytest.mark.parametrize("begun", [True, False])
def test_an_expired_lease_of_a_failing_compartment_is_no_result_of_the_round(begun):
    """Its own circuit is open and another workload is healthy, so the permit goes to the next probe."""
    breaker, own = make(), make()
    breaker.uncompartmented = healthy = breaker.watch_workload(None, 0)
    failing = breaker.watch_workload(own, 0)
    own.open(0)
    breaker.caller_workload = healthy
    call(breaker, S)
    breaker.half_open(0)
    breaker.caller_workload = failing
    ticket = breaker.begin(0) if begun else breaker.acquire_permit(0)
    assert breaker.workload_by_ticket[ticket] is failing
    breaker.slow_after = math.inf  # so that the permit expires before the call is overdue
    breaker.next_overdue_at = math.inf
    breaker.tick(10)
    assert (breaker.permits, breaker.round.calls, breaker.round.slow, breaker.slow) == ({}, 0, 0, 1)
    assert breaker.overdue == {ticket: (0 if begun else 10, None)}
    assert breaker.state == "half_open"


def test_a_pause_of_the_process_extends_leases_that_end_after_its_start():
    """A call that began after the pause keeps its start."""
    breaker = half_open()
    probe, late = breaker.begin(5), breaker.acquire_permit(5)
    breaker.permits[late] = 6
    breaker.exclude_pause(7, 9)
    assert (breaker.in_flight, breaker.permits) == ({probe: 7}, {probe: 17, late: 6})
    breaker.resume(probe, 20)
    breaker.exclude_pause(10, 12)
    assert (breaker.in_flight, breaker.permits) == ({probe: 20}, {probe: 19, late: 6})


# --- bounds --------------------------------------------------------------------------------------


def test_an_unused_permit_is_that_of_a_probe_which_has_not_begun():
    breaker = half_open()
    assert breaker.unused_permit() == 0
    running, idle = breaker.begin(5), breaker.acquire_permit(5)
    assert idle > running > 0
    assert breaker.unused_permit() == idle
    breaker.begin_admitted(5, idle)
    assert breaker.unused_permit() == 0


def stalling(slow_after=1, slots=3, **options):
    breaker = make(
        minimum_number_of_calls=100,
        sliding_window_size=100,
        permitted_calls_in_half_open_state=2,
        slow_call_duration_threshold=slow_after,
        **options,
    )
    breaker.stall_slots = slots
    return breaker


def stalls_at(breaker, times):
    """The first of these times at which the circuit is open, because all slots hang."""
    for now in times:
        breaker.tick(now)
        if breaker.state == "open":
            assert moves(breaker)[-1] == ("closed", "open", "stalled")
            return now
    return None


TENTHS = [tenth / 10 for tenth in range(200)]


@pytest.mark.parametrize("slow_after", [1, 3])
def test_a_stall_takes_two_slow_call_thresholds(slow_after):
    breaker = stalling(slow_after)
    for _ in range(3):
        breaker.begin(0)
    assert stalls_at(breaker, TENTHS) == 2 * slow_after


@pytest.mark.parametrize(("outcome", "stall"), [(S, 2.5), (F, 2), (X, 2)])
def test_only_a_success_puts_a_stall_off(outcome, stall):
    """Two slow-call thresholds count from the last one."""
    breaker = stalling()
    hanging = [breaker.begin(0) for _ in range(3)]
    assert len(hanging) == 3
    call(breaker, outcome, 0.5)
    assert stalls_at(breaker, TENTHS[6:]) == stall


def test_the_quick_end_of_another_call_does_not_end_a_stall_to_come():
    """One that is not overdue holds none of the slots that hang."""
    breaker = stalling()
    for _ in range(3):
        breaker.begin(0)
    breaker.tick(1.5)
    call(breaker, F, 1.6)
    assert stalls_at(breaker, TENTHS[17:]) == 2


def test_the_end_of_an_overdue_call_ends_a_stall_to_come():
    breaker = stalling()
    tickets = [breaker.begin(0) for _ in range(3)]
    breaker.tick(1.5)
    breaker.end(tickets[0], F, 1.6)
    assert stalls_at(breaker, TENTHS[17:]) is None


def test_a_stall_dates_from_the_calls_of_this_generation():
    """The last call before the transition hangs, too, and says nothing."""
    breaker = stalling()
    breaker.begin(0)
    breaker.reset(0)
    for _ in range(3):
        breaker.begin(1)
    assert stalls_at(breaker, TENTHS[10:]) == 3


def test_pending_results_are_added_in_their_order():
    """Two successes, a failure, two successes, two failures, a success."""
    breaker = make(minimum_number_of_calls=100, sliding_window_size=4)
    breaker.pending_successes, breaker.pending_failures = 5, 3
    breaker.failures_after = {2: 1, 4: 2}
    breaker.tick(0)
    assert (breaker.failed, breaker.streak) == (3, 0)
    window = breaker.window
    assert (window.calls, window.failures, window._total) == (4, 2, 8)
    assert (breaker.pending_successes, breaker.pending_failures, breaker.failures_after) == (0, 0, {})
    breaker.window.add(0)
    assert window.failures == 2, "the oldest call in the window was a success"
    breaker.window.add(0)
    assert window.failures == 1


def test_a_probe_that_outlives_its_lease_and_fails_is_a_failed_one():
    """It counts as slow when the permit ends, and as failed when it does."""
    breaker = half_open(slow_call_rate_threshold=1, slow_call_duration_threshold=60)
    ticket = breaker.begin(5)
    breaker.tick(15)
    assert (breaker.round.calls, breaker.round.slow, breaker.round.failures) == (1, 1, 0)
    assert breaker.state == "half_open"
    breaker.end(ticket, F, 16)
    assert breaker.round.failures == 1
    assert breaker.state == "open"


def test_a_fleets_reset_names_its_cause():
    breaker = make()
    breaker.open(0, "fleet")
    breaker.reset(1, "fleet")
    assert moves(breaker) == [("closed", "open", "fleet"), ("open", "closed", "fleet")]


def test_a_ramp_begins_with_the_calls_of_the_round():
    """The last call before the transition is not one of them."""
    breaker = half_open(permitted_calls_in_half_open_state=1, recovery_ramp=10)
    breaker.half_open(5)
    breaker.state = "closed"
    breaker.begin(5)
    breaker._transition(5, "half_open", "wait_over")
    probe, _ = breaker.begin(6), breaker.begin(6)
    breaker.end(probe, S, 6)
    assert breaker.state == "closed"
    assert len(breaker.in_flight) == 2
    assert breaker.ramp.first == 1


def test_a_lease_that_ends_as_a_pause_begins_is_not_extended():
    breaker = half_open()
    ends, later = breaker.acquire_permit(5), breaker.acquire_permit(5)
    breaker.permits.update({ends: 7, later: 7.5})
    breaker.exclude_pause(7, 9)
    assert breaker.permits == {ends: 7, later: 9.5}


@pytest.mark.parametrize(
    ("failures", "slow", "reached"), [(5, 0, True), (0, 5, True), (5, 5, True), (4, 4, False), (0, 0, False)]
)
def test_either_rate_is_enough(failures, slow, reached):
    assert make().reaches_a_rate(failures, slow, 10) is reached


def test_the_ends_of_calls_are_counted_by_outcome():
    """Two calls of each."""
    breaker = make(minimum_number_of_calls=10)
    for outcome in Outcome:
        for _ in range(2):
            call(breaker, outcome)
    assert (breaker.succeeded, breaker.failed, breaker.abandoned) == (4, 2, 2)


def test_each_neutral_end_counts_as_a_success():
    breaker = half_open(permitted_calls_in_half_open_state=3)
    ticket = breaker.begin(5)
    for number in (1, 2, 3):
        breaker.end(ticket, Outcome.NEUTRAL, 5)
        assert breaker.succeeded == number
        breaker.begin_admitted(5, ticket)


@pytest.mark.parametrize("kind", ["count", "time"])
def test_a_disabled_circuit_is_steady_until_a_call_becomes_overdue(kind):
    """Its window says nothing. With workloads each call's end is recorded, so the fast path is closed."""
    breaker = make(sliding_window_type=kind, slow_call_duration_threshold=100)
    breaker.hold("disabled", 0)
    breaker.begin(0)
    breaker.tick(1)
    assert breaker.steady_until() == breaker.next_overdue_at == 100
    breaker.uncompartmented = breaker.watch_workload(None, 1)
    assert breaker.steady_until() == -math.inf


def test_a_count_window_below_the_minimum_of_calls_lowers_it():
    breaker = make(sliding_window_size=2, minimum_number_of_calls=10)
    call(breaker, F)
    assert breaker.state == "closed"
    call(breaker, F)
    assert breaker.state == "open"
    breaker = make(sliding_window_type="time", sliding_window_size=2, minimum_number_of_calls=3)
    for _ in range(2):
        call(breaker, F)
    assert breaker.state == "closed", "the size of a time window is a number of seconds"


def test_without_a_policy_no_call_is_slow():
    breaker = Breaker(None, HALF)
    assert call(breaker, S, 0, lasting=1e6) == (1e6, False)
    assert breaker.slow == 0


def test_the_end_of_the_wait_is_the_cause_of_half_open():
    assert moves(half_open())[-1] == ("open", "half_open", "wait_over")


# --- how long the fast path may go on -------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "options", "margin"),
    [
        ("", {}, 1),  # of the four calls of the minimum, two failures would be too many
        ("SSSSSSSSSS", {}, 4),
        ("SSSSSSSSSF", {}, 3),
        ("FSSS", {}, 0),
        ("SSSSSSSSSS", {"failure_rate_threshold": 0.3}, 2),
        ("SSSSSSSSSS", {"consecutive_failures": 3}, 2),
        ("SSSSSSSSSF", {"consecutive_failures": 3}, 1),
        ("S" * 1000, {}, 256),
        ("S" * 514, {}, 256),
        ("S" * 512, {}, 255),
        ("F", {}, 0),
        ("FFSSS", {"minimum_number_of_calls": 6}, 0),
    ],
)
@pytest.mark.parametrize("workloads", [False, True])
def test_so_many_failures_in_a_row_change_nothing(outcomes, options, margin, workloads):
    """With workloads each failure is recorded at once."""
    breaker = make(sliding_window_type="time", **({"minimum_number_of_calls": 4} | options))
    for outcome in outcomes:
        call(breaker, S if outcome == "S" else F)
    assert breaker.state == "closed"
    if workloads:
        breaker.uncompartmented = breaker.watch_workload(None, 0)
    breaker.steady_until()
    assert breaker.failure_margin == (0 if workloads else margin)
    for _ in range(margin):
        call(breaker, F)
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    ("outcomes", "slow", "steady"),
    [
        ("", 0, True),
        ("SSSS", 0, True),
        ("F", 0, True),  # one of at least four: even if the next three fail, a success cannot open it
        ("FSSS", 0, True),
        ("FF", 0, False),  # the second success would be the fourth call, two of which failed
        ("FFS", 0, False),
        ("S", 1, False),
        ("SSS", 1, True),
        ("FFSSS", 0, True),
    ],
)
def test_a_success_can_change_a_circuit_only_if_it_completes_the_minimum(outcomes, slow, steady):
    breaker = make(sliding_window_type="time", minimum_number_of_calls=4 if outcomes != "FFSSS" else 5)
    for outcome in outcomes:
        call(breaker, S if outcome == "S" else F)
    for _ in range(slow):
        call(breaker, S, lasting=1.5)
    assert breaker.state == "closed"
    breaker.tick(1.6)
    assert breaker.steady_until() == (
        min(breaker.next_overdue_at, breaker.window.until) if steady else -math.inf
    )


@pytest.mark.parametrize(("slow_after", "until", "later"), [(0.4, 1.4, -math.inf), (60, 2.0, 2.0)])
def test_the_fast_path_ends_with_the_slice_or_when_a_call_is_overdue(slow_after, until, later):
    """And stays closed after that: with an overdue call a success may complete the minimum."""
    breaker = make(
        sliding_window_type="time", minimum_number_of_calls=9, slow_call_duration_threshold=slow_after
    )
    breaker.begin(1.0)
    breaker.tick(1.0)
    assert breaker.steady_until() == until
    breaker.tick(1.5)
    assert breaker.steady_until() == later


# --- calls that become overdue --------------------------------------------------------------------


class Interrupts(CountWindow):
    """A window in whose next new call an interrupt comes."""

    def add(self, mark):
        raise KeyboardInterrupt


def test_a_call_in_whose_move_to_overdue_an_interrupt_comes_can_still_end():
    """It has no mark in the window then."""
    breaker = make(minimum_number_of_calls=9)
    ticket, window = breaker.begin(0), breaker.window
    breaker.window = Interrupts(9)
    with pytest.raises(KeyboardInterrupt):
        breaker.tick(2)
    breaker.window = window
    assert (breaker.in_flight, breaker.overdue) == ({}, {ticket: (0, None)})
    assert breaker.end(ticket, F, 3) == (3, True)
    assert (window.calls, window.failures, breaker.failed) == (1, 1, 1)


@pytest.mark.parametrize("slots", [None, 9])
def test_slow_calls_open_the_circuit_of_a_pool_that_has_free_slots(slots):
    """They need not be a stall."""
    breaker = make(minimum_number_of_calls=2)
    breaker.stall_slots = slots
    for now in (0, 0.1):
        breaker.begin(now)
    breaker.tick(2)
    assert moves(breaker) == [("closed", "open", "slow_call_rate")]
    assert breaker.slow == 2


def test_a_failure_that_a_fast_path_is_noting_is_counted_once_it_is_noted():
    """Another thread adds the results in between: the number of failures is noted last."""
    breaker = make(minimum_number_of_calls=9)
    breaker.pending_successes, breaker.failures_after = 1, {1: 1}
    breaker.tick(0)
    assert (breaker.window.calls, breaker.window.failures, breaker.failed) == (1, 0, 0)
    breaker.pending_failures = 1
    breaker.tick(0)
    assert (breaker.window.calls, breaker.window.failures, breaker.failed) == (2, 1, 1)


def test_a_tick_at_the_end_of_a_slice_forgets_the_oldest_one():
    breaker = make(sliding_window_type="time", minimum_number_of_calls=9)
    call(breaker, F)
    breaker.tick(9.9)
    assert breaker.window.until == 10
    assert breaker.window.failures == 1
    breaker.tick(10)
    assert breaker.window.failures == 0


@pytest.mark.parametrize(
    ("slots", "first", "hanging", "state"), [(9, 2, 2, "open"), (2, 9, 2, "open"), (9, 3, 2, "closed")]
)
def test_a_stall_during_a_ramp_needs_its_first_slots_only(slots, first, hanging, state):
    """The others become usable one after the other, so that few of their calls are overdue in time."""
    breaker = stalling(slots=slots)
    breaker.ramp = Ramp(0, 100, first)
    for _ in range(hanging):
        breaker.begin(0)
    breaker.tick(1.5)
    breaker.tick(2)
    assert breaker.state == state
