"""The figures of a pool: distributions, bounds of memory, and what a broken clock does to them."""

from __future__ import annotations

import json
import threading
import tracemalloc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import Guard
from guardrails._guard.pool_snapshot import BOUNDS, EXPORTED_BOUNDS, Distribution
from guardrails._pool.checkout import Checkout
from guardrails._pool.figures import MOST_ROUTES, OTHER, PoolFigures

KINDS = "wait", "hold", "use"


class Request:
    """A request as a checkout knows it."""

    def __init__(self, name):
        self.name = name

    def find_name(self):
        return self.name


def checkout_of(guard, figures, route=None):
    """One checkout that is handed out and returned."""
    checkout = Checkout(guard)
    request = Request(route)
    checkout.request_ref = None if route is None else weakref.ref(request)
    checkout.asked = figures.clock()
    figures.handed_out(checkout)
    figures.returned(checkout)
    return checkout


def counted(*seconds):
    """A distribution of these durations, counted as a call does."""
    guard = Guard("db", max_concurrent_calls=1, clock=lambda: 0.0)
    figures = PoolFigures(guard, "postgresql")
    for each in seconds:
        figures.connected(-each)
    return figures.snapshot().connect


@given(st.lists(st.floats(0, 1e6), max_size=300))
def test_durations_are_in_the_bucket_of_their_bound(durations):
    """A duration equal to a bound is below it, as Prometheus and OpenTelemetry have it."""
    seen = counted(*durations)
    for count, bound in zip(seen.cumulative(), (*EXPORTED_BOUNDS, float("inf")), strict=True):
        assert count == sum(each <= bound for each in durations)
    assert seen.count == len(durations)
    assert seen.sum == pytest.approx(sum(durations))


@given(st.lists(st.floats(1e-5, 99), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_in_the_bucket_of_the_true_one(durations, share):
    """The estimate and the true value have the same bounds around them."""
    durations.sort()
    position = max(0, -int(-share * len(durations) // 1) - 1)
    true, estimate = durations[position], counted(*durations).quantile(share)
    above = next(bound for bound in BOUNDS if bound >= true)
    below = max((bound for bound in BOUNDS if bound < true), default=0)
    assert below <= estimate <= above


@given(st.lists(st.floats(0, 99), max_size=100))
def test_single_values_have_the_same_buckets_and_sum(durations):
    """For an exporter that takes only single durations."""
    seen = counted(*durations)
    values = [seconds for seconds, count in seen.values() for _ in range(count)]
    assert sum(values) == pytest.approx(seen.sum)
    assert counted(*values).buckets() == seen.buckets()


def test_differences_and_totals_are_those_of_the_durations():
    """What came since an earlier moment, and two together."""
    first, both = counted(0.02), counted(0.02, 3.0)
    assert (both - first).buckets() == counted(3.0).buckets()
    assert Distribution.total([first, counted(3.0)]) == both
    assert Distribution.total([]) == Distribution()
    assert (Distribution().quantile(0.5), Distribution().mean, first.mean) == (None, None, 0.02)


def test_a_hundred_thousand_routes_take_the_memory_of_a_few():
    """The first ones are kept apart, all others are counted together; no checkout is lost."""
    guard = Guard("db", max_concurrent_calls=1)
    figures = PoolFigures(guard, "postgresql")
    for number in range(1_000):
        checkout_of(guard, figures, f"GET /{number}")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(100_000):
            checkout_of(guard, figures, f"GET /other/{number}")
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()
    seen = figures.snapshot()
    assert len(seen.routes) <= MOST_ROUTES + 1
    assert seen.checkouts == 101_000
    other = next(each for each in seen.routes if each.route == OTHER)
    assert other.hold.count == 101_000 - sum(each.hold.count for each in seen.routes if each is not other)


def test_checkouts_of_many_threads_are_all_counted():
    """Without a lock in the call."""
    guard = Guard("db", max_concurrent_calls=8)
    figures = PoolFigures(guard, "postgresql")
    threads = [
        threading.Thread(target=lambda: [checkout_of(guard, figures) for _ in range(2_000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert figures.snapshot().checkouts <= 16_000  # reads while others count
    seen = figures.snapshot()
    assert (seen.checkouts, seen.hold.count) == (16_000, 16_000)


@pytest.mark.parametrize("reading", [float("nan"), float("inf"), -5.0, None, "now", 10**400])
def test_broken_clock_breaks_no_checkout(reading):
    """A figure may be missing or 0, but nothing is raised, and the sums stay numbers."""
    readings = [1.0, reading]
    guard = Guard("db", max_concurrent_calls=1, clock=lambda: readings[-1])
    figures = PoolFigures(guard, "postgresql")
    checkout = Checkout(guard)
    checkout.asked = 1.0
    figures.handed_out(checkout)
    figures.returned(checkout)
    figures.connected(1.0)
    readings.pop()
    seen = figures.snapshot()
    for kind in (*KINDS, "connect"):
        assert 0 <= getattr(seen, kind).sum < 1e9
    json.dumps(seen.summary(), allow_nan=False)


def test_return_is_counted_once():
    """A connection that is given back twice, as a slot may be."""
    guard = Guard("db", max_concurrent_calls=1)
    figures = PoolFigures(guard, "postgresql")
    figures.returned(checkout_of(guard, figures))
    assert figures.snapshot().hold.count == 1


def test_compartments_are_kept_apart():
    """Each has its own times; the pool's are those of all."""
    guard = Guard("db", max_concurrent_calls=4)
    figures = PoolFigures(guard, "postgresql")
    part = guard.compartment("reports")
    with part.call():
        pass
    for owner in (guard, part, part):
        checkout = Checkout(owner)
        checkout.asked = 0.0
        figures.handed_out(checkout)
    counts = {each.compartment: each.wait.count for each in figures.snapshot().routes}
    assert counts == {None: 1, "reports": 2}
    assert figures.snapshot().checkouts == 3


def test_calls_of_a_route_hang_while_most_of_the_last_ones_do():
    """Until the last of them ends, and not while most return in time."""
    guard = Guard("db", max_concurrent_calls=9, timeout=60, mode="shadow")
    figures = PoolFigures(guard, "postgresql")
    out = [Checkout(guard) for _ in range(12)]
    for each in out:
        each.asked = figures.clock()
        figures.handed_out(each)
    times = out[0].times
    assert not times.hangs
    times.runs_on("first")
    times.runs_on("second")
    figures.returned(out.pop())
    assert times.hangs, "two of three"
    figures.returned(out.pop())
    assert not times.hangs, "two of four"
    for each in ("third", "fourth"):
        times.runs_on(each)
    assert times.hangs
    for _ in range(20):
        times.ended_in_time()
    assert not times.hangs, "only the last sixteen count"
    times.overtime.clear()
    times.runs_on("fifth")
    assert times.hangs, "a new fault begins with nothing"
    times.overtime.discard("fifth")
    assert not times.hangs


def test_a_checkout_that_lasted_longer_than_its_limit_has_not_ended_in_time():
    now = [0.0]
    guard = Guard("db", max_concurrent_calls=9, timeout=2, mode="shadow", clock=lambda: now[0])
    figures = PoolFigures(guard, "postgresql")
    late, prompt = Checkout(guard), Checkout(guard)
    for each in (late, prompt):
        figures.handed_out(each)
    times = late.times
    times.runs_on("work")
    now[0] = 1.0
    figures.returned(prompt)
    assert not times.hangs
    now[0] = 5.0
    times.runs_on("more")
    figures.returned(late)
    assert times.hangs
