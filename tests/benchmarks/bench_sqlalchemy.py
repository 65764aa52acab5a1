"""What a guard adds to a checkout and a statement, against the bare engine in the same run.

    python tests/benchmarks/bench_sqlalchemy.py [--rounds N] [--json FILE] [--drivers psycopg pg8000 ...]

Prints medians in microseconds and the ratio protected / bare, by the wall and in processor time, and how many
functions the guard adds. Rounds of the two alternate, so that a machine that slows down slows both. Each
statement has the guard's deadline armed. Needs the ``test`` extra; starts its own PostgreSQL, and a
MariaDB if it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import tempfile
from importlib.util import find_spec

from pairs import HEAD, compare, timed, timed_async
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import protect
from guardrails.testing.mariadb import MariaDBServer
from guardrails.testing.servers import PostgresServer

SELECT = text("select 1")


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
    """A statement, many on one checkout."""
    with engine.connect() as connection:
        return timed(connection, lambda connection: connection.execute(SELECT), turns)


async def statements_async(engine, turns):
    """The same on an event loop."""
    async with engine.connect() as connection:
        return await timed_async(connection, lambda connection: connection.execute(SELECT), turns)


def sync_rows(label, make, options):
    """The rows of a synchronous engine."""
    bare, protected = make(), make()
    protect(protected)

    def row(what, measure):
        return compare(f"{label} {what}", bare, protected, measure, options.rounds, options.turns)

    rows = [
        row("checkout", lambda engine, turns: timed(engine, checkout, turns)),
        row("checkout + select", lambda engine, turns: timed(engine, statement_on_checkout, turns)),
        row("select", statements),
    ]
    bare.dispose()
    protected.dispose()
    return rows


def async_rows(label, make, options):
    """The rows of an asynchronous engine."""
    with asyncio.Runner() as runner:
        bare, protected = make(), make()
        protect(protected)

        def row(what, measure):
            def run(engine, turns):
                return runner.run(measure(engine, turns))

            return compare(f"{label} {what}", bare, protected, run, options.rounds, options.turns)

        rows = [
            row(
                "checkout + select",
                lambda engine, turns: timed_async(engine, statement_on_checkout_async, turns),
            ),
            row("select", statements_async),
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
    parser.add_argument("--drivers", nargs="+", help="these alone")
    options = parser.parse_args()

    def wanted(*drivers):
        return [driver for driver in drivers if driver in (options.drivers or drivers)]

    print(HEAD)
    with PostgresServer.start() as server, tempfile.TemporaryDirectory() as home:
        file, rows = f"{home}/db", []
        for _ in wanted("sqlite"):
            rows += sync_rows("sqlite", lambda: create_engine(f"sqlite:///{file}"), options)
        for name in wanted("aiosqlite"):
            rows += async_rows(name, lambda: create_async_engine(f"sqlite+aiosqlite:///{file}"), options)
        for driver in wanted("psycopg", "psycopg2", "pg8000"):
            rows += sync_rows(driver, lambda driver=driver: create_engine(server.url(driver)), options)
        for label in wanted("psycopg async", "asyncpg"):
            url = server.url(label.split()[0])
            rows += async_rows(label, lambda url=url: create_async_engine(url), options)
    of_mariadb = wanted("pymysql", "mysqldb") if find_spec("MySQLdb") else wanted("pymysql")
    if of_mariadb and MariaDBServer.installed():
        with MariaDBServer.start() as server:
            for driver in of_mariadb:
                rows += sync_rows(driver, lambda driver=driver: create_engine(server.url(driver)), options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
