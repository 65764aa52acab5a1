"""What a guard adds to a checkout and a statement, against the bare engine in the same run.

    python tests/benchmarks/bench_sqlalchemy.py [--rounds N] [--json FILE]

Prints medians in microseconds and the ratio protected / bare; rounds of the two alternate, so that a
machine that slows down slows both. Needs the ``test`` extra; starts its own PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import statistics
import tempfile
import time

from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import protect
from guardrails.testing.servers import PostgresServer

SELECT = text("select 1")


def timed_sync(engine, body, turns):
    """Microseconds per turn of a synchronous body."""
    start = time.perf_counter_ns()
    for _ in range(turns):
        body(engine)
    return (time.perf_counter_ns() - start) / turns / 1e3


def checkout(engine):
    """A checkout and its return, no statement."""
    engine.raw_connection().close()


def statement_on_checkout(engine):
    """A checkout, a statement, the rollback on return."""
    with engine.connect() as connection:
        connection.execute(SELECT)


async def statement_on_checkout_async(engine):
    """The same on an event loop."""
    async with engine.connect() as connection:
        await connection.execute(SELECT)


def statements(engine, turns):
    """Microseconds per statement on one checkout."""
    with engine.connect() as connection:
        start = time.perf_counter_ns()
        for _ in range(turns):
            connection.execute(SELECT)
        return (time.perf_counter_ns() - start) / turns / 1e3


async def statements_async(engine, turns):
    """The same on an event loop."""
    async with engine.connect() as connection:
        start = time.perf_counter_ns()
        for _ in range(turns):
            await connection.execute(SELECT)
        return (time.perf_counter_ns() - start) / turns / 1e3


async def timed_async(engine, body, turns):
    """Microseconds per turn of an asynchronous body."""
    start = time.perf_counter_ns()
    for _ in range(turns):
        await body(engine)
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
    print(f"{name:44} {figures}")
    return row


def sync_rows(label, make, rounds, turns):
    """The rows of a synchronous engine."""
    bare, protected = make(), make()
    protect(protected)
    rows = [
        compare(f"{label} checkout", bare, protected, lambda e: timed_sync(e, checkout, turns), rounds),
        compare(
            f"{label} checkout + select",
            bare,
            protected,
            lambda e: timed_sync(e, statement_on_checkout, turns),
            rounds,
        ),
        compare(f"{label} select", bare, protected, lambda e: statements(e, turns), rounds),
    ]
    bare.dispose()
    protected.dispose()
    return rows


def async_rows(label, make, rounds, turns):
    """The rows of an asynchronous engine."""
    with asyncio.Runner() as runner:
        bare, protected = make(), make()
        protect(protected)

        def both(engine):
            return runner.run(timed_async(engine, statement_on_checkout_async, turns))

        rows = [
            compare(f"{label} checkout + select", bare, protected, both, rounds),
            compare(
                f"{label} select", bare, protected, lambda e: runner.run(statements_async(e, turns)), rounds
            ),
        ]
        runner.run(bare.dispose())
        runner.run(protected.dispose())
    return rows


def main():
    """Runs every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    title = f"median of {options.rounds} rounds"
    print(f"{title:44} {'bare us':>9} {'protected us':>11} added us   ratio")
    with PostgresServer.start() as server, tempfile.TemporaryDirectory() as home:
        rows = [
            *sync_rows(
                "sqlite",
                lambda: create_engine(f"sqlite:///{home}/db"),
                options.rounds,
                options.turns,
            ),
            *sync_rows(
                "psycopg", lambda: create_engine(server.url("psycopg")), options.rounds, options.turns
            ),
        ]
        for driver in ("psycopg", "asyncpg"):
            rows += async_rows(
                f"{driver} async",
                lambda driver=driver: create_async_engine(server.url(driver)),
                options.rounds,
                options.turns,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
