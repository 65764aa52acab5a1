"""Settings: what is accepted, and that everything else is refused by name, all of it at once."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from sqlalchemy import create_engine

from guardrails import BreakerPolicy, ConfigurationError, Guard, protect
from support.calls import be_refused, fail, succeed, trip, tripping

NAN, INF = float("nan"), float("inf")
NOT_NUMBERS = [NAN, INF, -INF, "5", "5s", [], Decimal("0.5"), timedelta(seconds=1), 10**400, 1j, object()]
BAD = {
    "failure_rate_threshold": [*NOT_NUMBERS, None, True, 0, -0.1, 1.01, 50, 5e-324 * 0],
    "slow_call_rate_threshold": [*NOT_NUMBERS, None, True, 0, -0.1, 1.01, 50],
    "slow_call_duration_threshold": [*NOT_NUMBERS, None, True, 0, -1, 10**10],
    "sliding_window_type": ["Time", "", None, 5, [], True],
    "sliding_window_size": [*NOT_NUMBERS, None, True, 0, -1, 1e-300, 5e-324, 10**10],
    "minimum_number_of_calls": [*NOT_NUMBERS, None, True, 0, -1, 1.0, 2.5],
    "wait_duration_in_open_state": [*NOT_NUMBERS, None, True, -1, 10**10],
    "open_backoff_multiplier": [*NOT_NUMBERS, None, True, 0.9, -1, 1001],
    "max_wait_duration_in_open_state": [*NOT_NUMBERS, None, True, 0, -1],
    "open_jitter": [*NOT_NUMBERS, None, True, -0.1, 1.1],
    "permitted_calls_in_half_open_state": [*NOT_NUMBERS, None, True, 0, -1, 3.0],
    "max_wait_duration_in_half_open_state": [*NOT_NUMBERS, None, True, 0, -1],
    "recovery_ramp": [*NOT_NUMBERS, None, True, -1, 10**10],
    "consecutive_failures": [*NOT_NUMBERS, True, 0, -1, 3.0],
    "is_failure": [5, "x", True],
    "is_failure_result": [5, "x", True],
}
GOOD = {
    "failure_rate_threshold": [0.001, 0.5, 1, Fraction(1, 3)],
    "slow_call_rate_threshold": [1.0],
    "slow_call_duration_threshold": [0.001, 60],
    "sliding_window_type": ["time", "count"],
    "sliding_window_size": [0.001, 1, 3600],
    "minimum_number_of_calls": [1, 10**6],
    "wait_duration_in_open_state": [0, 0.0, 0.5, 10**9],
    "open_backoff_multiplier": [1, 1.5, 1000],
    "open_jitter": [0, 0.5, 1],
    "recovery_ramp": [0, 0.5, 60],
    "consecutive_failures": [None, 1],
    "is_failure": [None, bool],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD for value in BAD[field]])
def test_a_wrong_field_is_refused_by_name(field, value):
    """C1: one error type; the message has the field, the value cut short, and what is allowed."""
    with pytest.raises(ConfigurationError) as refusal:
        BreakerPolicy(**{field: value})
    text = str(refusal.value)
    assert text.startswith(f"BreakerPolicy: {field} must be ")
    assert ", got " in text
    assert len(text) < 300


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in GOOD for value in GOOD[field]])
def test_a_right_field_is_accepted(field, value):
    """And kept as it was given."""
    assert getattr(BreakerPolicy(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("name", value) for value in ("", None, 5, b"db")],
        *[("max_concurrent_calls", value) for value in (0, -1, True, 1.0, "5", None, NAN, 10**400)],
        *[("max_wait_duration", value) for value in (-1, -1.0, True, "5", None, NAN, INF, 10**10)],
        *[("max_waiting", value) for value in (-1, True, 1.0, "5", NAN)],
        *[("timeout", value) for value in (0, -1, True, "5", NAN, INF, 10**10, timedelta(seconds=5))],
        *[("breaker", value) for value in (True, {}, "on", BreakerPolicy)],
        *[("clock", value) for value in (None, 5)],
        *[("random", value) for value in (None, 0.5)],
        *[("listeners", value) for value in (5, [5], None, [print, None])],
    ],
)
def test_a_wrong_option_of_a_guard_is_refused_by_name(option, value):
    """C1, for Guard."""
    options = {"name": "db", "max_concurrent_calls": 1} | {option: value}
    with pytest.raises(ConfigurationError, match=f"{option} must be"):
        Guard(options.pop("name"), **options)


def test_several_faults_are_reported_together():
    """C6."""
    with pytest.raises(ConfigurationError) as refusal:
        BreakerPolicy(failure_rate_threshold=50, open_jitter=2, minimum_number_of_calls=0)
    text = str(refusal.value)
    assert text.count("must be") == 3
    assert "write 0.5" in text
    with pytest.raises(ConfigurationError) as refusal:
        Guard("", max_concurrent_calls=0, timeout=-1, clock=None)
    assert str(refusal.value).count("must be") == 4


def test_a_misspelt_option_names_the_nearest_one():
    """C2: never ignored."""
    with pytest.raises(ConfigurationError, match="did you mean 'failure_rate_threshold'"):
        BreakerPolicy(failure_rate_treshold=0.5)
    with pytest.raises(ConfigurationError, match="did you mean 'max_wait_duration'"):
        Guard("db", max_concurrent_calls=1, max_wait_durations=1)
    with pytest.raises(ConfigurationError, match="the options are breaker, clock"):
        Guard("db", max_concurrent_calls=1, zzz=1)


def test_a_round_of_more_probes_than_slots_is_passed_one_after_the_other(run, make_guard, clock):
    """C5: probes do not wait for a slot, so the round takes as long as it takes, and ends."""
    guard = make_guard(
        max_concurrent_calls=1, breaker=tripping(permitted_calls_in_half_open_state=4, open_jitter=0)
    )
    trip(run, guard, clock, wait=5)
    finish = run.start(guard)
    be_refused(run, guard, "bulkhead_full")
    finish()
    succeed(run, guard, times=2)
    assert guard.state == "half_open"
    succeed(run, guard)
    assert guard.state == "closed"


def test_a_timeout_below_the_slow_threshold_still_opens(run, make_guard, clock):
    """C5: no call lives long enough to be slow, but each that comes back late has failed."""
    guard = make_guard(timeout=1, breaker=tripping(slow_call_duration_threshold=60))
    run(guard, clock.advance, 2)
    now = guard.snapshot()
    assert (now.state, now.failures, now.slow_calls) == ("open", 1, 0)


def test_a_longest_wait_below_the_first_one_shortens_nothing(run, make_guard, clock):
    """C5: it bounds how the wait grows."""
    policy = tripping(open_backoff_multiplier=10, max_wait_duration_in_open_state=1)
    guard = make_guard(breaker=policy)
    trip(run, guard)
    assert be_refused(run, guard).retry_after == 5
    clock.advance(5)
    fail(run, guard, times=2)
    assert be_refused(run, guard).retry_after == 5


def test_other_targets_of_protect_are_refused():
    """Anything but an engine or a client, by its type and not by what it holds."""
    with pytest.raises(ConfigurationError, match="a dict cannot be guarded"):
        protect({"dsn": "secret"})
    valkey = type("Valkey", (), {"__module__": "valkey.client"})
    with pytest.raises(ConfigurationError, match="a Valkey cannot be guarded; use redis-py, whose clients"):
        protect(valkey())


def test_targets_of_protect_are_recognised_by_their_package():
    """Also a class of the user's own that inherits from it."""
    guard = protect(create_engine("sqlite://"), max_concurrent_calls=3)
    assert (guard.name, guard.snapshot().max_concurrent_calls) == ("sqlite", 3)
    guard.detach()


def test_only_what_is_attached_can_be_detached():
    """Not a guard of its own."""
    with pytest.raises(ConfigurationError, match="'db' is not attached"):
        Guard("db", max_concurrent_calls=1).detach()


def test_configuration_errors_are_value_errors():
    """Code that validates settings in the usual way catches them."""
    with pytest.raises(ValueError, match="open_jitter"):
        BreakerPolicy(open_jitter=5)


def test_a_policy_is_a_value():
    """Frozen, comparable, copied and pickled, changed by `dataclasses.replace`, which checks again."""
    policy = BreakerPolicy(open_jitter=0.2)
    assert policy == BreakerPolicy(open_jitter=0.2) == copy.deepcopy(policy)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert dataclasses.replace(policy, open_jitter=0).open_jitter == 0
    with pytest.raises(ConfigurationError):
        dataclasses.replace(policy, open_jitter=5)


def test_the_smallest_time_window_works():
    """A millisecond, at any moment."""
    policy = BreakerPolicy(sliding_window_size=0.001, minimum_number_of_calls=1)
    for moment in (0.0, 1e9, -5.0):
        guard = Guard("db", max_concurrent_calls=1, breaker=policy, clock=lambda at=moment: at)
        guard.run(lambda: None)
        assert guard.snapshot().calls == 1
