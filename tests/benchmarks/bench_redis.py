"""What a guard adds to a Redis command and to a pipeline, against the bare client in the same run.

    python tests/benchmarks/bench_redis.py [--rounds N] [--json FILE]

Prints medians in microseconds and the ratio protected / bare, by the wall and in processor time, and how many
functions the guard adds. Rounds of the two alternate, so that a machine that slows down slows both. Needs the
``test`` extra; starts its own Valkey.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib

import redis
import redis.asyncio
from pairs import HEAD, compare, timed, timed_async

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


def sync_rows(port, options):
    """The rows of a synchronous client."""
    bare, protected = redis.Redis(port=port), redis.Redis(port=port)
    protect(protected)

    def row(what, body, turns):
        def measure(client, turns):
            return timed(client, body, turns)

        return compare(f"sync {what}", bare, protected, measure, options.rounds, turns)

    rows = [
        row("GET", get, options.turns),
        row("GET in a deadline", bounded_get, options.turns),
        row("pipeline of 100", pipeline, options.turns // 10),
    ]
    bare.close()
    protected.close()
    return rows


def async_rows(port, options):
    """The rows of an asyncio client."""
    with asyncio.Runner() as runner:
        bare, protected = redis.asyncio.Redis(port=port), redis.asyncio.Redis(port=port)
        protect(protected)

        def row(what, body, turns):
            def measure(client, turns):
                return runner.run(timed_async(client, body, turns))

            return compare(f"async {what}", bare, protected, measure, options.rounds, turns)

        rows = [
            row("GET", get, options.turns),
            row("GET in a deadline", bounded_get_async, options.turns),
            row("pipeline of 100", pipeline, options.turns // 10),
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
    print(HEAD)
    with ValkeyServer.start() as server:
        rows = [*sync_rows(server.port, options), *async_rows(server.port, options)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
