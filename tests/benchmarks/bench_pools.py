"""What a guard adds to a statement on a driver's own pool, against the bare pool in the same run.

    python tests/benchmarks/bench_pools.py [--rounds N] [--json FILE]

Prints medians in microseconds and the ratio protected / bare, by the wall and in processor time, and how many
functions the guard adds. Rounds of the two alternate, so that a machine that slows down slows both. Needs the
``test`` extra; starts its own PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib

import asyncpg
from pairs import HEAD, compare, timed, timed_async
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from guardrails import protect
from guardrails.testing.servers import PostgresServer


async def asyncpg_statement(pool):
    """One statement on a checkout of its own."""
    await pool.fetchval("select 1")


async def asyncpg_transaction(pool):
    """Three statements in a transaction: five round trips, and the reset of the connection."""
    async with pool.acquire() as connection, connection.transaction():
        for _ in range(3):
            await connection.fetchval("select 1")


def psycopg_statement(pool):
    """One statement on a checkout of its own, whose transaction is ended."""
    with pool.connection() as connection:
        connection.execute("select 1").fetchone()


async def psycopg_async_statement(pool):
    """The same in a task."""
    async with pool.connection() as connection:
        await (await connection.execute("select 1")).fetchone()


def sync_rows(url, options):
    """The rows of a pool for threads."""
    with (
        ConnectionPool(url, min_size=2, open=True) as bare,
        ConnectionPool(url, min_size=2, open=True) as protected,
    ):
        protect(protected)

        def measure(pool, turns):
            return timed(pool, psycopg_statement, turns)

        return [compare("psycopg statement", bare, protected, measure, options.rounds, options.turns)]


def async_rows(url, options):
    """The rows of the pools on event loops."""
    with asyncio.Runner() as runner:

        async def opened():
            psycopg = [AsyncConnectionPool(url, min_size=2, open=False) for _ in range(2)]
            for pool in psycopg:
                await pool.open()
            return [await asyncpg.create_pool(url, min_size=2, max_size=2) for _ in range(2)], psycopg

        of_asyncpg, of_psycopg = runner.run(opened())
        protect(of_asyncpg[1])
        protect(of_psycopg[1])

        def row(what, pools, body):
            def measure(pool, turns):
                return runner.run(timed_async(pool, body, turns))

            return compare(what, *pools, measure, options.rounds, options.turns)

        rows = [
            row("asyncpg statement", of_asyncpg, asyncpg_statement),
            row("asyncpg transaction", of_asyncpg, asyncpg_transaction),
            row("psycopg async statement", of_psycopg, psycopg_async_statement),
        ]

        async def close():
            for pool in [*of_asyncpg, *of_psycopg]:
                await pool.close()

        runner.run(close())
    return rows


def main():
    """Runs every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    print(HEAD)
    with PostgresServer.start() as server:
        rows = [*sync_rows(server.url(""), options), *async_rows(server.url(""), options)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
