"""The metrics of pools: which series there are, and the value of each."""

from __future__ import annotations

import pytest

from guardrails._guard.guard import attach
from guardrails._guard.metric_table import CLASSIC, METRICS, read_guards
from guardrails._guard.pool_snapshot import BOUNDS, Distribution, LeaseSnapshot, RouteFigures
from support.fake_pool import NUMBERS, TIMES, FakePool

ROUTES = ("checkouts", "wait", "hold", "use")


def took(seconds, count):
    """So many durations of so many seconds, in the first bucket."""
    return Distribution(counts=(count, *(0,) * len(BOUNDS)), sum=seconds * count)


def route(compartment, name, count):
    times = {time: took(seconds, count) for time, seconds in zip(TIMES, (1.0, 2.0, 3.0), strict=False)}
    return RouteFigures(compartment=compartment, route=name, **times)


@pytest.fixture
def pool():
    """A pool in which every figure has a value of its own."""
    numbers = {name: number for number, name in enumerate(NUMBERS, start=10)}
    times = {time: took(0.5, count) for count, time in enumerate(TIMES, start=1)}
    routes = (
        route(None, None, 1),
        route("part", "/a", 2),
        route("part", "/a", 3),
        route("part", "\ud800", 4),
    )
    return FakePool(pool_size=3, routes=routes, **numbers, **times).seen


@pytest.fixture
def read(make_guard, pool):
    """Reads the series of one metric of a guard with that pool, beside a guard without one."""
    db = make_guard()
    attached = FakePool()
    attached.seen = pool
    attach(db, attached)
    seen = read_guards([db, make_guard("plain")])
    tables = {metric.name: metric for metric in (*METRICS, *CLASSIC)}
    return lambda name: dict(tables[name].read(seen))


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ("db.client.connection.max", "capacity"),
        ("db.client.connection.idle.max", "pool_size"),
        ("db.client.connection.pending_requests", "waiting"),
        ("db.client.connection.timeouts", "timeouts"),
        ("db.client.connection.create_time", "connect"),
        ("db.client.connection.wait_time", "wait"),
        ("db.client.connection.use_time", "hold"),
        ("guardrails.pool_overflow", "overflow"),
        ("guardrails.pool_checkouts", "checkouts"),
        ("guardrails.pool_waits", "waits"),
        ("guardrails.pool_exhausted", "exhausted"),
        ("guardrails.pool_opened", "opened"),
        ("guardrails.pool_closed", "closed"),
        ("guardrails.pool_invalidated", "invalidated"),
        ("db_pool_open_connections", "open"),
        ("db_pool_in_use_connections", "in_use"),
        ("db_pool_idle_connections", "idle"),
        ("db_pool_wait", "waits"),
        ("db_pool_wait_duration", "wait"),
        ("db_connection_hold_duration", "hold"),
        ("db_pool_exhausted", "exhausted"),
    ],
)
def test_a_metric_of_pools_is_one_figure_by_the_name_of_the_guard(read, pool, metric, field):
    assert read(metric) == {("db",): getattr(pool, field)}


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("limit", 7),
        ("safe_share", 4),
        ("wants", 9),
        ("in_contact", 1),
        ("budget", 40),
        ("workers", 8),
    ],
)
def test_a_metric_of_leases_has_the_label_of_the_budget_and_is_absent_without_a_fleet(
    make_guard, metric, value
):
    lease = LeaseSnapshot(
        budget="orders", connections=40, workers=8, limit=7, safe_share=4, wants=9, in_contact=True
    )
    guards = {name: make_guard(name) for name in ("db", "plain")}
    attach(guards["db"], FakePool(lease=lease))
    attach(guards["plain"], FakePool())
    tables = {each.name: each for each in METRICS}
    assert dict(tables[f"guardrails.fleet_{metric}"].read(read_guards(guards.values()))) == {
        ("db", "orders"): value
    }


def test_connections_are_counted_by_what_they_do(read, pool):
    assert read("db.client.connection.count") == {("db", "used"): pool.in_use, ("db", "idle"): pool.idle}


def test_statements_have_the_kind_of_server(read, pool):
    assert read("db.client.operation.duration") == {("postgresql", "db"): pool.use}


@pytest.mark.parametrize(("name", "seconds"), list(zip(ROUTES, (1, 1.0, 2.0, 3.0), strict=True)))
def test_times_by_route_add_up_what_has_the_same_names(read, name, seconds):
    assert read(f"guardrails.pool_route_{name}") == {
        ("db", "", ""): 1 * seconds,
        ("db", "part", "/a"): 5 * seconds,
        ("db", "part", "\\ud800"): 4 * seconds,
    }


def test_a_pool_without_a_size_has_no_series_of_it(make_guard):
    db = make_guard()
    attach(db, FakePool())
    (metric,) = [each for each in METRICS if each.name == "db.client.connection.idle.max"]
    assert dict(metric.read(read_guards([db]))) == {}


def test_the_page_of_a_pool_shows_its_lease_as_fields():
    lease = LeaseSnapshot(
        budget="db", connections=40, workers=4, limit=10, safe_share=5, wants=12, in_contact=True
    )
    shown = FakePool(lease=lease).seen.summary()["lease"]
    assert shown == {
        "budget": "db",
        "connections": 40,
        "workers": 4,
        "limit": 10,
        "safe_share": 5,
        "wants": 12,
        "in_contact": True,
    }
    assert FakePool().seen.summary()["lease"] is None
