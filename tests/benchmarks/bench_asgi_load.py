"""The edge under load, over sockets: starvation, overload, what is refused. It prints; it asserts nothing.

    python tests/benchmarks/bench_asgi_load.py [starvation] [overload] [utilisation] [vanish]

Run it on a quiet machine: service, database and clients share its cores. Both ends run on uvloop and
httptools, as ``uvicorn[standard]`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from guardrails.testing.servers import PostgresServer
from support import edge_service
from support.http_load import Crowd, leave_in_mid_stream, of, poisson, quantile, ready, settled, together

THREADS = 40
PATIENT = 40.0


def report(visits, what):
    """One line: how many, how many good, and how fast."""
    good, refused = of(visits, status=200), of(visits, status=503)
    print(
        f"  {what:<12} {len(visits):>6} sent {len(good):>6} ok (p99 {ms(good)}) {len(refused):>6} refused"
        f" (p50 {ms(refused, 0.5)}, p99 {ms(refused)}) {len(visits) - len(good) - len(refused):>4} other"
    )


def ms(visits, share=0.99):
    """Milliseconds, for people."""
    return f"{quantile(visits, share) * 1e3:.0f} ms"


BURST = 80
WAITLESS = {"max_wait_duration": 0}

STARVATION = {
    # As many queries as there are slots, and nobody of ours in between: what the threads alone cost /health.
    "bare app, 5 queries": (5, 5, "/query", {"pool": 5, "guard": None, "edge": None}),
    "bare app, 30 queries": (30, 30, "/query", {"pool": 45, "guard": None, "edge": None}),
    # As many refusals, by an endpoint that does nothing else: what the server alone costs them.
    "bare app, 80 times 503": (BURST, 5, "/busy", {"pool": 5, "guard": None, "edge": None}),
    "pool 5, no guard": (BURST, 5, "/query", {"pool": 5, "guard": None, "edge": None}),
    "pool 5, guard, no edge": (BURST, 5, "/query", {"pool": 5, "edge": None}),
    "pool 5, edge": (BURST, 5, "/query", {"pool": 5}),
    "pool 5, edge, no queue": (BURST, 5, "/query", {"pool": 5, "guard": WAITLESS}),
    "pool 45, no guard": (BURST, 30, "/query", {"pool": 45, "guard": None, "edge": None}),
    "pool 45, edge, 30 slots": (BURST, 30, "/query", {"pool": 45, "guard": {"max_concurrent_calls": 30}}),
    "pool 45, edge, 30 slots, no queue": (
        BURST,
        30,
        "/query",
        {"pool": 45, "guard": {"max_concurrent_calls": 30} | WAITLESS},
    ),
    "pool 45, learned, 30 slots": (
        BURST,
        30,
        "/query",
        {"pool": 45, "guard": {"max_concurrent_calls": 30}, "edge": {"exempt": []}},
    ),
}
"""Of each: requests at once, connections that are open beforehand, the path, and the service's settings."""


async def starvation(url):
    """80 requests for a 2 s query at once, and what becomes of /health meanwhile.

    Everything is warm when it starts: the clients' connections, the database's, the threads, the routes. A
    refusal that queued first has waited for the guard's ``max_wait_duration`` of 50 ms; where there is no
    queue its time is ours and the server's.
    """
    for name, (burst, warm, path, settings) in STARVATION.items():
        print(f"starvation: {name}")
        with edge_service.service(url, query=2.0, loop="uvloop", **settings) as address:
            async with Crowd(address) as crowd:
                await ready(crowd)
                await crowd.connect(burst + 20)
                await crowd.saturate("/query?seconds=0.3", warm, 1.5)
                await crowd.saturate("/query?seconds=0.01", warm, 4.0)
                before = await crowd.lab()
                visits = await crowd.visit(
                    together([(0.0, path)] * burst, [(0.02 * n, "/health") for n in range(1, 100)]), PATIENT
                )
                spent = (await crowd.lab())["cpu"] - before["cpu"]
                report(of(visits, path), path)
                report(of(visits, "/health"), "/health")
                print(f"  {'processor':<12} {spent * 1e3:.0f} ms of the service's")


async def overload(url, seconds=8.0, pool=10):
    """Three and ten times what the pool can do, then back to normal.

    With queries of 200 ms the pool is the limit. With 50 ms it is the processor, on a machine where a request
    costs as much of it as here. What is possible then is shown beside it, without us: clients who keep every
    connection busy, while an endpoint that does nothing else answers 503 to as many as would be refused.
    """
    for query, endpoints in itertools.product((0.2, 0.05), ("sync", "async")):
        driver = url if endpoints == "sync" else url.replace("+psycopg", "+asyncpg")
        settings = {"endpoints": endpoints, "pool": pool, "query": query}
        for guarded in (True, False):
            bare = {} if guarded else {"guard": None, "edge": None}
            with edge_service.service(driver, loop="uvloop", **settings, **bare) as address:
                async with Crowd(address) as crowd:
                    await ready(crowd)
                    await crowd.connect(150)
                    await crowd.saturate("/query", pool, 1.0)
                    capacity = await crowd.saturate("/query", pool, 4.0)
                    whose = "guarded" if guarded else "bare"
                    print(f"overload, {endpoints}, {query * 1e3:.0f} ms, {whose}: capacity {capacity:.0f}/s")
                    for times in (3, 10):
                        await (shed if guarded else bound)(crowd, times, capacity, seconds, pool)


async def shed(crowd, times, capacity, seconds, _pool):
    """So many times the capacity, then 40 % of it."""
    health = poisson("/health", 50, seconds, seed=7)
    began, lost = await crowd.lab(), stolen()
    during = await crowd.visit(together(poisson("/query", times * capacity, seconds, seed=times), health))
    held, lost = await crowd.lab(), stolen() - lost
    after = await crowd.visit(poisson("/query", 0.4 * capacity, seconds / 2, seed=5))
    good = len(of(during, "/query", 200)) / seconds
    tell_overload(times, good / capacity, (held["cpu"] - began["cpu"]) / seconds, lost / seconds)
    report(of(during, "/query"), "/query")
    report(of(during, "/health"), "/health")
    report(after, "then normal")
    held = await settled(crowd)
    del held["cpu"]
    print(f"  left: {held}")


async def bound(crowd, times, capacity, seconds, pool):
    """As many good answers as the connections can give, beside as many 503s as would be refusals."""
    health = poisson("/health", 50, seconds, seed=7)
    busy = poisson("/busy", (times - 1) * capacity, seconds, seed=times)
    began, lost = await crowd.lab(), stolen()
    good = asyncio.create_task(crowd.saturate("/query", pool, seconds))
    during = await crowd.visit(together(busy, health))
    held, lost = await crowd.lab(), stolen() - lost
    tell_overload(times, await good / capacity, (held["cpu"] - began["cpu"]) / seconds, lost / seconds)
    report(of(during, "/busy"), "/busy")
    report(of(during, "/health"), "/health")


def tell_overload(times, good, cores, lost):
    """The headline of one stretch of overload."""
    print(
        f" {times} x: goodput {good:.1%} of capacity; processor {cores:.0%} of a core,"
        f" {lost:.0%} stolen from the machine"
    )


def stolen():
    """Seconds of processors that other machines on the same host have taken from this one, on Linux.

    A stretch with much of it says little of the service.
    """
    with contextlib.suppress(OSError):
        return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


async def utilisation(url, seconds=30.0, pool=15):
    """Poisson arrivals at 80 % of what the slots of SQLAlchemy's default pool can do.

    The slots must be what is scarce, and not the processor; so nobody asks the database.
    """
    asynchronous = url.replace("+psycopg", "+asyncpg")
    for query in (0.02, 0.05):
        with edge_service.service(
            asynchronous, endpoints="async", pool=pool, query=query, loop="uvloop"
        ) as address:
            async with Crowd(address) as crowd:
                await ready(crowd)
                await crowd.connect(60)
                await crowd.saturate("/sleep", pool, 1.0)
                began, lost = await crowd.lab(), stolen()
                visits = await crowd.visit(poisson("/sleep", 0.8 * pool / query, seconds))
                held, lost = await crowd.lab(), stolen() - lost
                refused, spent = len(of(visits, status=503)) / len(visits), held["cpu"] - began["cpu"]
                print(
                    f"80 % of {pool / query:.0f}/s, {query * 1e3:.0f} ms: {refused:.2%} refused; processor"
                    f" {spent / seconds:.0%} of a core, {lost / seconds:.0%} stolen from the machine"
                )
                report(visits, "/sleep")


async def vanish(url, clients=500):
    """Clients who leave in the middle of a stream."""
    asynchronous = url.replace("+psycopg", "+asyncpg")
    with edge_service.service(
        asynchronous, endpoints="async", pool=20, policy={"requires": ["/stream"]}, loop="uvloop"
    ) as address:
        async with Crowd(address) as crowd:
            await ready(crowd)
            before = await crowd.lab()
            left = await leave_in_mid_stream(address, clients)
            after = await settled(crowd)
            print(f"{left} of {clients} streams begun and left: {before} -> {after}")


def main():
    """Runs what is named, or everything."""
    scenes = {scene.__name__: scene for scene in (starvation, overload, utilisation, vanish)}
    with PostgresServer.start(max_connections=100) as server:
        for name in sys.argv[1:] or scenes:
            uvloop.run(scenes[name](server.url("psycopg")))


if __name__ == "__main__":
    main()
