"""What a guard adds to a checkout and a statement, against the bare engine in the same run.

    python tests/benchmarks/bench_sqlalchemy.py [--rounds N] [--json FILE]

Prints medians in microseconds, the ratio protected / bare, and how many functions the guard adds, Python's
and C's, which are counted and so the same on every machine. Rounds of the two alternate, so that a machine
that slows down slows both. Each statement has the guard's deadline armed. Needs the ``test`` extra; starts
its own PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time

from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import protect
from guardrails.testing.servers import PostgresServer

SELECT = text("select 1")


def timed_sync(body, engine, turns):
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


async def timed_async(body, engine, turns):
    """Microseconds per turn of an asynchronous body."""
    start = time.perf_counter_ns()
    for _ in range(turns):
        await body(engine)
    return (time.perf_counter_ns() - start) / turns / 1e3


def counted(measure, engine, turns=20):
    """Functions called in a turn: Python's, and C's."""
    counts = collections.Counter()

    def note(_frame, event, _argument):
        counts[event] += 1

    def measure_once(turns):
        counts.clear()
        sys.setprofile(note)
        try:
            measure(engine, turns)
        finally:
            sys.setprofile(None)
        return counts["call"], counts["c_call"]

    few, many = measure_once(turns), measure_once(2 * turns)
    return [(after - before) / turns for before, after in zip(few, many, strict=True)]


def compare(name, bare, protected, measure, options):
    """Alternates the two and returns a row of the table."""
    turns = options.turns
    measure(bare, turns), measure(protected, turns)
    pairs = [(measure(bare, turns), measure(protected, turns)) for _ in range(options.rounds)]
    calls = zip(counted(measure, bare), counted(measure, protected), strict=True)
    python, c = (round(after - before) for before, after in calls)
    row = {
        "what": name,
        "bare_us": statistics.median(pair[0] for pair in pairs),
        "protected_us": statistics.median(pair[1] for pair in pairs),
        "added_us": statistics.median(pair[1] - pair[0] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "python_calls_added": python,
        "c_calls_added": c,
    }
    times = f"{row['bare_us']:9.1f} {row['protected_us']:12.1f} {row['added_us']:8.1f} {row['ratio']:7.3f}"
    print(f"{name:34} {times} {python:9} {c:5}")
    return row


def sync_rows(label, make, options):
    """The rows of a synchronous engine."""
    bare, protected = make(), make()
    protect(protected)
    rows = [
        compare(f"{label} {what}", bare, protected, measure, options)
        for what, measure in (
            ("checkout", functools.partial(timed_sync, checkout)),
            ("checkout + select", functools.partial(timed_sync, statement_on_checkout)),
            ("select", statements),
        )
    ]
    bare.dispose()
    protected.dispose()
    return rows


def async_rows(label, make, options):
    """The rows of an asynchronous engine."""
    with asyncio.Runner() as runner:
        bare, protected = make(), make()
        protect(protected)

        def both(engine, turns):
            return runner.run(timed_async(statement_on_checkout_async, engine, turns))

        def alone(engine, turns):
            return runner.run(statements_async(engine, turns))

        rows = [
            compare(f"{label} {what}", bare, protected, measure, options)
            for what, measure in (("checkout + select", both), ("select", alone))
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
    print(f"{title:34}   bare us protected us added us   ratio  + Python   + C")
    with PostgresServer.start() as server, tempfile.TemporaryDirectory() as home:
        file = f"{home}/db"
        rows = sync_rows("sqlite", lambda: create_engine(f"sqlite:///{file}"), options)
        rows += async_rows("aiosqlite", lambda: create_async_engine(f"sqlite+aiosqlite:///{file}"), options)
        for driver in ("psycopg", "psycopg2"):
            rows += sync_rows(driver, lambda driver=driver: create_engine(server.url(driver)), options)
        for label, driver in (("psycopg async", "psycopg"), ("asyncpg", "asyncpg")):
            rows += async_rows(label, lambda driver=driver: create_async_engine(server.url(driver)), options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
