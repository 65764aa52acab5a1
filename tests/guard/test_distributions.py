"""Durations by bucket, against the list of durations that they count."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails._guard.pool_snapshot import (
    BOUNDS,
    EXPORTED_BOUNDS,
    Distribution,
    PoolSnapshot,
    RouteFigures,
)

TIMES = ("wait", "hold", "use")
SECONDS = st.lists(st.floats(1e-6, 150.0), max_size=50)


def distribution(seconds):
    """Counts each duration in the bucket of the first bound that is not below it."""
    counts = [0] * (len(BOUNDS) + 1)
    for each in seconds:
        counts[bisect_left(BOUNDS, each)] += 1
    return Distribution(counts=tuple(counts), sum=sum(seconds))


@given(SECONDS)
def test_count_mean_and_buckets_are_those_of_the_durations(seconds):
    """A duration that equals a bound is in the bucket below it."""
    seen = distribution(seconds)
    assert seen.count == len(seconds)
    assert seen.mean == (pytest.approx(sum(seconds) / len(seconds)) if seconds else None)
    below = [sum(each <= bound for each in seconds) for bound in EXPORTED_BOUNDS]
    assert seen.cumulative() == [*below, len(seconds)]
    assert sum(seen.buckets()) == len(seconds)


@given(st.lists(st.floats(1e-5, 99.0), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_in_the_bucket_of_the_true_one(seconds, share):
    """The bounds of a bucket are the error."""
    ordered = sorted(seconds)
    true = next(each for number, each in enumerate(ordered, 1) if number >= share * len(ordered))
    at = bisect_left(BOUNDS, true)
    least = BOUNDS[at - 1] if at else 0.0
    assert least <= distribution(seconds).quantile(share) <= BOUNDS[at] * (1 + 1e-12)


def test_a_quantile_above_all_bounds_is_the_last_bound():
    """Without a duration there is none."""
    assert distribution([1.0, 500.0]).quantile(0.99) == BOUNDS[-1]
    assert Distribution().quantile(0.5) is None


@given(SECONDS, SECONDS)
def test_distributions_are_added_and_subtracted(first, second):
    """The figures since an earlier moment, and those of several routes."""
    total = Distribution.total([distribution(first), distribution(second)])
    assert total.counts == distribution(first + second).counts
    assert total.sum == pytest.approx(sum(first) + sum(second))
    later = total - distribution(first)
    assert later.counts == distribution(second).counts
    assert later.sum == pytest.approx(sum(second), abs=1e-6)
    assert Distribution.total([]) == Distribution()


@given(SECONDS)
def test_values_have_the_count_and_sum_of_the_durations(seconds):
    """Each value is in the bucket that it stands for."""
    seen = distribution(seconds)
    values = list(seen.values())
    counts = [0] * len(seen.counts)
    for value, count in values:
        counts[bisect_left(BOUNDS, value)] += count
    assert tuple(counts) == seen.counts
    assert sum(value * count for value, count in values) == pytest.approx(seen.sum, rel=1e-6, abs=1e-9)


def test_a_summary_has_count_sum_and_two_quantiles():
    """For a page in JSON."""
    seen = distribution([0.1] * 99 + [10.0])
    shown = seen.summary()
    assert (shown["count"], shown["sum"]) == (100, pytest.approx(19.9))
    assert 0.07 <= shown["p50"] <= shown["p99"] <= 0.1


def test_a_pool_summary_has_every_figure_and_its_times_as_summaries():
    """For a page in JSON, the routes included."""
    numbers = {field.name: at for at, field in enumerate(fields(PoolSnapshot))}
    times = {name: distribution([0.1] * at) for at, name in enumerate(("wait", "hold", "use", "connect"), 1)}
    route = RouteFigures(compartment="reports", route="/orders/{id}", **{name: times[name] for name in TIMES})
    shown = PoolSnapshot(**(numbers | times | {"routes": (route,)})).summary()
    assert list(shown) == list(numbers)
    assert {name: shown[name] for name in numbers if name not in (*times, "routes")} == {
        name: at for name, at in numbers.items() if name not in (*times, "routes")
    }
    assert [shown[name]["count"] for name in times] == [1, 2, 3, 4]
    assert shown["connect"]["buckets"] == dict.fromkeys(("0.1", "0.5", "1.0", "5.0", "10.0", "+Inf"), 4) | (
        dict.fromkeys(("0.001", "0.005", "0.01", "0.05"), 0)
    )
    (shown_route,) = shown["routes"]
    assert (shown_route["compartment"], shown_route["route"]) == ("reports", "/orders/{id}")
    assert [shown_route[name]["count"] for name in TIMES] == [1, 2, 3]


def test_a_summary_counts_the_calls_before_a_compartment_formed_with_those_inside():
    """Only where the compartment is the route's own: it may also run in a declared one, and outside."""
    rows = (
        (None, "GET /a", 1),
        ("GET /a", "GET /a", 2),
        (None, "GET /b", 3),
        ("orders", "GET /b", 4),
        (None, None, 5),
    )
    routes = tuple(
        RouteFigures(compartment=part, route=route, **{name: distribution([0.1] * count) for name in TIMES})
        for part, route, count in rows
    )
    numbers = {field.name: 0 for field in fields(PoolSnapshot)} | {"routes": routes}
    shown = PoolSnapshot(**numbers).summary()["routes"]
    assert [(each["compartment"], each["route"], each["hold"]["count"]) for each in shown] == [
        ("GET /a", "GET /a", 3),
        (None, "GET /b", 3),
        ("orders", "GET /b", 4),
        (None, None, 5),
    ]
