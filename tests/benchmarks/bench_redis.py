"""What a guard adds to a Redis command and to a pipeline, against the bare client in the same run.

    python tests/benchmarks/bench_redis.py [--rounds N] [--json FILE]

Prints medians in microseconds and the ratio protected / bare; rounds of the two alternate, so that a
machine that slows down slows both. Needs the ``test`` extra; starts its own Valkey.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import statistics
import time

import redis
import redis.asyncio

from guardrails import deadline, protect
from guardrails.testing.servers import ValkeyServer

LENGTH = 100
"""Commands in a pipeline."""


def get(client):
    """One GET."""
    return client.get("key")


def bounded_get(client):
    """One GET within a deadline of its caller, as in a request; the bare client knows no such thing."""
    with deadline(60):
        return client.get("key")


async def bounded_get_async(client):
    """The same on an asyncio client."""
    with deadline(60):
        return await client.get("key")


def pipeline(client):
    """A pipeline of GETs, without MULTI; on an asyncio client it is to be awaited."""
    pipe = client.pipeline(transaction=False)
    for _ in range(LENGTH):
        pipe.get("key")
    return pipe.execute()


def timed(client, body, turns):
    """Microseconds per turn of a synchronous body."""
    start = time.perf_counter_ns()
    for _ in range(turns):
        body(client)
    return (time.perf_counter_ns() - start) / turns / 1e3


async def timed_async(client, body, turns):
    """The same on an event loop."""
    start = time.perf_counter_ns()
    for _ in range(turns):
        await body(client)
    return (time.perf_counter_ns() - start) / turns / 1e3


def compare(name, bare, protected, measure, rounds):
    """Alternates the two and returns a row of the table."""
    measure(bare), measure(protected)
    pairs = [(measure(bare), measure(protected)) for _ in range(rounds)]
    row = {
        "what": name,
        "bare_us": statistics.median(pair[0] for pair in pairs),
        "protected_us": statistics.median(pair[1] for pair in pairs),
        "added_us": statistics.median(pair[1] - pair[0] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
    }
    figures = f"{row['bare_us']:9.1f} {row['protected_us']:11.1f} {row['added_us']:9.1f} {row['ratio']:7.3f}"
    print(f"{name:32} {figures}")
    return row


def sync_rows(port, rounds, turns):
    """The rows of a synchronous client."""
    bare, protected = redis.Redis(port=port), redis.Redis(port=port)
    protect(protected)
    rows = [
        compare("sync GET", bare, protected, lambda c: timed(c, get, turns), rounds),
        compare("sync GET in a deadline", bare, protected, lambda c: timed(c, bounded_get, turns), rounds),
        compare("sync pipeline of 100", bare, protected, lambda c: timed(c, pipeline, turns // 10), rounds),
    ]
    bare.close()
    protected.close()
    return rows


def async_rows(port, rounds, turns):
    """The rows of an asyncio client."""
    with asyncio.Runner() as runner:
        bare, protected = redis.asyncio.Redis(port=port), redis.asyncio.Redis(port=port)
        protect(protected)

        def measure(body, turns):
            return lambda client: runner.run(timed_async(client, body, turns))

        rows = [
            compare("async GET", bare, protected, measure(get, turns), rounds),
            compare("async GET in a deadline", bare, protected, measure(bounded_get_async, turns), rounds),
            compare("async pipeline of 100", bare, protected, measure(pipeline, turns // 10), rounds),
        ]
        runner.run(bare.aclose())
        runner.run(protected.aclose())
    return rows


def main():
    """Runs every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    title = f"median of {options.rounds} rounds"
    print(f"{title:32} {'bare us':>9} {'protected us':>11} added us   ratio")
    with ValkeyServer.start() as server:
        rows = [
            *sync_rows(server.port, options.rounds, options.turns),
            *async_rows(server.port, options.rounds, options.turns),
        ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
