"""The edge under load, over sockets, on a real database.

The exact figures are printed by tests/benchmarks/bench_asgi_load.py. The bounds here are wide: what is
asserted is which of two worlds we are in, not how fast the machine is.
"""

from __future__ import annotations

import asyncio

import pytest

from support import edge_service
from support.http_load import Crowd, leave_in_mid_stream, of, poisson, quantile, ready, settled, together

QUERY = 2.5
"""Seconds; far longer than anything that a busy machine does to a request which waits for no query."""


def visiting(url, story, **settings):
    """Runs the service and tells a story to its crowd."""

    async def main():
        with edge_service.service(url, **settings) as address:
            async with Crowd(address) as crowd:
                await ready(crowd)
                return await story(crowd, address)

    return asyncio.run(main())


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "settings",
    [
        {"pool": 5},
        {"pool": 45, "guard": {"max_concurrent_calls": 30}},
        {"pool": 45, "guard": {"max_concurrent_calls": 30}, "edge": {}},
    ],
    ids=["5 connections", "45 connections, 30 slots", "learned"],
)
@pytest.mark.slow
def test_slow_queries_do_not_take_the_threads(postgres, settings):
    """80 requests for a slow query at once, 40 threads: /health and the refusals do not wait for a query."""

    async def story(crowd, _address):
        await crowd.saturate("/query?seconds=0.01", 8, 1.5)  # connections are open, routes learned
        return await crowd.visit(
            together([(0.0, "/query")] * 80, [(0.1 + 0.05 * n, "/health") for n in range(40)]), 4 * QUERY
        )

    visits = visiting(postgres.url("psycopg"), story, query=QUERY, **settings)
    slots = settings.get("guard", settings).get("max_concurrent_calls", settings["pool"])
    health, refused = of(visits, "/health"), of(visits, "/query", 503)
    assert len(of(health, status=200)) == 40
    assert quantile(health, 0.9) < QUERY / 3
    assert len(of(visits, "/query", 200)) + len(refused) == 80
    assert 80 - slots - 2 <= len(refused) <= 80 - slots + 2
    assert quantile(refused, 0.9) < QUERY / 2


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("times", [3, 10])
def test_overload_costs_the_good_answers_nothing(postgres, driver, times):
    """What the pool can do is done, the rest is refused; who needs no database notices nothing."""
    pool, query, seconds = 4, 0.2, 2.5

    async def story(crowd, _address):
        await crowd.saturate("/query", pool, 0.5)
        # A short count may come out above what the pool can do at all.
        capacity = min(pool / query, await crowd.saturate("/query", pool, 1.5))
        visits = await crowd.visit(
            together(
                poisson("/query", times * pool / query, seconds, seed=times),
                poisson("/query", 0.3 * pool / query, seconds, seed=5, begin=seconds + 0.5),
                poisson("/health", 10, 2 * seconds, seed=7),
            )
        )
        return capacity, visits, await settled(crowd)

    endpoints = "async" if driver == "asyncpg" else "sync"
    capacity, visits, held = visiting(
        postgres.url(driver), story, endpoints=endpoints, pool=pool, query=query
    )
    during = [visit for visit in visits if visit.at < seconds]
    after = of([visit for visit in visits if visit.at >= seconds + 0.5], "/query")
    assert len(of(during, "/query", 200)) / seconds > 0.6 * capacity
    assert len(of(visits, "/health", 200)) == len(of(visits, "/health"))
    assert quantile(of(during, "/query", 503), 0.5) < 1.0
    assert len(of(after, status=200)) >= 0.95 * len(after)
    assert (held["in_use"], held["checked_out"], held["in_flight"], held["state"]) == (0, 0, 0, "closed")


def test_a_flood_of_batches_leaves_the_people_alone(postgres):
    """SHEDDABLE requests at five times the pool's capacity, CRITICAL ones at a quarter of it."""
    seconds, capacity = 5, 10 / 0.5

    async def story(crowd, _address):
        await crowd.saturate("/query", 10, 1.0)
        arrivals = together(
            *[[(n / rate, path) for n in range(int(seconds * rate))] for path, rate in rates.items()]
        )
        return await crowd.visit(arrivals, 30), await settled(crowd)

    rates = {"/query": capacity / 4, "/batch": 5 * capacity}
    visits, held = visiting(
        postgres.url("asyncpg"),
        story,
        endpoints="async",
        pool=10,
        query=0.5,
        guard={"max_wait_duration": 1.0},
        policy={"requires": ["/query", "/batch"], "criticality": {"/batch": "SHEDDABLE"}},
    )
    people, batches = of(visits, "/query"), of(visits, "/batch")
    assert (len(people), len(batches)) == (25, 500)
    assert len(of(people, status=200)) >= 0.9 * len(people)
    assert 0 < len(of(batches, status=200)) < 250
    assert len(of(batches, status=200)) + len(of(batches, status=503)) == len(batches)
    assert (held["in_use"], held["checked_out"], held["in_flight"], held["state"]) == (0, 0, 0, "closed")


@pytest.mark.slow
def test_clients_who_vanish_in_mid_stream_leave_nothing(postgres):
    """No slot, no task, no connection, no request; and they are no evidence against the database."""

    async def story(crowd, address):
        before = await crowd.lab()
        assert await leave_in_mid_stream(address, 500) == 500
        return before, await settled(crowd, 30.0)

    before, after = visiting(
        postgres.url("asyncpg"), story, endpoints="async", pool=20, policy={"requires": ["/stream"]}
    )
    assert (after["in_use"], after["checked_out"], after["in_flight"], after["waiting"]) == (0, 0, 0, 0)
    assert (after["state"], after["failed"]) == ("closed", 0)
    assert after["tasks"] <= before["tasks"] + 1
