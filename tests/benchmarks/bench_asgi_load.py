"""The edge under load, over sockets, with the figures of the issue. It prints; it asserts nothing.

    python tests/benchmarks/bench_asgi_load.py [starvation] [overload] [utilisation] [vanish]

Run it on a quiet machine: service, database and clients share its cores.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import edge_lab
from edge_lab import Crowd, of, poisson, quantile, ready, together

from guardrails.testing.servers import PostgresServer

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


async def starvation(url):
    """80 requests for a 2 s query at once, and what becomes of /health meanwhile."""
    variants = {
        "pool 5, no guard": {"pool": 5, "guard": None, "edge": None},
        "pool 5, guard, no edge": {"pool": 5, "guard": {}, "edge": None},
        "pool 5, edge": {"pool": 5},
        "pool 45, no guard": {"pool": 45, "guard": None, "edge": None},
        "pool 45, edge, 30 slots": {"pool": 45, "guard": {"max_concurrent_calls": 30}},
        "pool 45, learned, 30 slots": {
            "pool": 45,
            "guard": {"max_concurrent_calls": 30},
            "edge": {"exempt": []},
        },
    }
    for name, settings in list(variants.items()):
        print(f"starvation: {name}")
        with edge_lab.service(url, query=2.0, **settings) as address:
            async with Crowd(address) as crowd:
                await ready(crowd)
                await crowd.saturate("/query?seconds=0.01", 30, 1.0)  # connections are open, routes learned
                visits = await crowd.visit(
                    together([(0.0, "/query")] * 80, [(0.02 * n, "/health") for n in range(1, 100)]), PATIENT
                )
                report(of(visits, "/query"), "/query")
                report(of(visits, "/health"), "/health")


async def overload(url, seconds=6.0, pool=10, query=0.05):
    """Three and ten times what the pool can do, then back to normal."""
    for endpoints in ("sync", "async"):
        driver = url if endpoints == "sync" else url.replace("+psycopg", "+asyncpg")
        with edge_lab.service(driver, endpoints=endpoints, pool=pool, query=query) as address:
            async with Crowd(address) as crowd:
                await ready(crowd)
                await crowd.saturate("/query", pool, 1.0)
                capacity = await crowd.saturate("/query", pool, 4.0)
                print(f"overload, {endpoints}: capacity {capacity:.0f}/s")
                for times in (3, 10):
                    normal = 0.4 * capacity
                    visits = await crowd.visit(
                        together(
                            poisson("/query", times * capacity, seconds, seed=times),
                            poisson("/query", normal, seconds, seed=5, begin=seconds),
                            poisson("/health", 50, 2 * seconds, seed=7),
                        )
                    )
                    during = [visit for visit in visits if visit.at < seconds]
                    after = [visit for visit in visits if visit.at >= seconds]
                    good = len(of(during, "/query", 200)) / seconds
                    print(f" {times} x: goodput {good / capacity:.1%} of capacity; {await crowd.lab()}")
                    report(of(during, "/query"), "/query")
                    report(of(during, "/health"), "/health")
                    report(of(after, "/query"), "then normal")


async def utilisation(url, seconds=30.0):
    """Poisson arrivals at 80 % of the capacity of SQLAlchemy's default pool."""
    asynchronous = url.replace("+psycopg", "+asyncpg")
    for query in (0.01, 0.02, 0.05):
        with edge_lab.service(asynchronous, endpoints="async", pool=15, query=query) as address:
            async with Crowd(address) as crowd:
                await ready(crowd)
                capacity = await crowd.saturate("/query", 15, 3.0)
                visits = await crowd.visit(poisson("/query", 0.8 * capacity, seconds))
                refused = len(of(visits, status=503)) / len(visits)
                print(f"80 % of {capacity:.0f}/s, {query * 1e3:.0f} ms queries: {refused:.2%} refused")
                report(visits, "/query")


async def vanish(url, clients=500):
    """Clients who leave in the middle of a stream."""
    asynchronous = url.replace("+psycopg", "+asyncpg")
    with edge_lab.service(
        asynchronous, endpoints="async", pool=20, edge={"requires": ["/stream"]}
    ) as address:
        async with Crowd(address) as crowd:
            await ready(crowd)
            before = await crowd.lab()
            left = await edge_lab.leave_in_mid_stream(address, clients)
            after = await edge_lab.settled(crowd)
            print(f"{left} of {clients} streams begun and left: {before} -> {after}")


def main():
    """Runs what is named, or everything."""
    scenes = {scene.__name__: scene for scene in (starvation, overload, utilisation, vanish)}
    with PostgresServer.start(max_connections=100) as server:
        for name in sys.argv[1:] or scenes:
            asyncio.run(scenes[name](server.url("psycopg")))


if __name__ == "__main__":
    main()
