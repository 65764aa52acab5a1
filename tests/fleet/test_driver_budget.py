"""Pools of drivers under a fleet's budget, on a real PostgreSQL that counts their connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import asyncpg
import psycopg
import psycopg_pool
import pytest

from guardrails import BulkheadFullError, ConfigurationError, protect
from guardrails.fleet import Fleet
from support.polling import wait_until

BUDGET = 6
NAME = "driver-fleet"
QUERY = f"select count(*) from pg_stat_activity where application_name = '{NAME}'"


class Counter:
    """Counts the connections of all workers on the server, in a thread, every 5 ms."""

    def __init__(self, postgres):
        self.most, self._over = 0, threading.Event()
        self._client = psycopg.connect(postgres.url(""), autocommit=True)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(30)
        self._client.close()

    def _run(self):
        while not self._over.wait(0.005):
            self.most = max(self.most, self._client.execute(QUERY).fetchone()[0])


def made(kind, postgres):
    """A pool of psycopg_pool that is not open."""
    more = {"min_size": 0, "max_size": BUDGET, "open": False, "kwargs": {"application_name": NAME}}
    return kind(postgres.url(""), **more)


def guarded(pool, fleet, name):
    budget = fleet.budget("db", connections=BUDGET)
    return protect(pool, name=name, fleet=budget, max_wait_duration=0.1, timeout=20.0)


@pytest.fixture
def fleets(tmp_path):
    """Those of two processes."""
    made = [Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop") for _ in range(2)]
    yield made
    for fleet in made:
        fleet.close()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", [psycopg_pool.ConnectionPool, psycopg_pool.NullConnectionPool])
def test_two_pools_in_threads_share_one_budget(postgres, fleets, kind):
    """First one of them is busy, then the other; the server never has more than the budget."""
    failed = []
    with Counter(postgres) as counter, contextlib.ExitStack() as stack:
        pools = [made(kind, postgres) for _ in fleets]
        guards = list(map(guarded, pools, fleets, "pq"))
        for pool, guard in zip(pools, guards, strict=True):
            pool.open()
            stack.callback(pool.close)
            stack.callback(guard.detach)
        for busy, guard in zip(pools, guards, strict=True):
            over = threading.Event()

            def run(pool, over=over, busy=busy):
                while not over.wait(0 if pool is busy else 0.05):
                    try:
                        with pool.connection() as connection:
                            connection.execute("select pg_sleep(0.05)")
                    except BulkheadFullError:
                        time.sleep(0.01)
                    except Exception as error:
                        failed.append(error)

            callers = [busy] * 8 + [pool for pool in pools if pool is not busy]
            threads = [threading.Thread(target=run, args=(pool,)) for pool in callers]
            for thread in threads:
                thread.start()
            try:
                wait_until(lambda guard=guard: guard.snapshot().pool.in_use >= 4, 60)
            finally:
                over.set()
                for thread in threads:
                    thread.join(30)
    assert not failed
    assert 4 <= counter.most <= BUDGET


@contextlib.asynccontextmanager
async def asyncpg_pool(postgres):
    settings = {"application_name": NAME}
    async with asyncpg.create_pool(
        postgres.url(""), min_size=0, max_size=BUDGET, server_settings=settings
    ) as pool:
        yield pool


@contextlib.asynccontextmanager
async def psycopg_async(postgres, kind=psycopg_pool.AsyncConnectionPool):
    async with made(kind, postgres) as pool:
        yield pool


@contextlib.asynccontextmanager
async def psycopg_null(postgres):
    async with psycopg_async(postgres, psycopg_pool.AsyncNullConnectionPool) as pool:
        yield pool


async def sleep_on(pool):
    if isinstance(pool, asyncpg.Pool):
        await pool.fetch("select pg_sleep(0.05)")
    else:
        async with pool.connection() as connection:
            await connection.execute("select pg_sleep(0.05)")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", [asyncpg_pool, psycopg_async, psycopg_null])
def test_two_pools_on_an_event_loop_share_one_budget(postgres, fleets, kind):
    """The same for tasks."""
    asyncio.run(asyncio.wait_for(two_pools(postgres, fleets, kind), 100))


async def two_pools(postgres, fleets, kind):
    failed = []

    async def run(pool, pause):
        while True:
            try:
                await sleep_on(pool)
            except BulkheadFullError:
                await asyncio.sleep(0.01)
            except Exception as error:
                failed.append(error)
            await asyncio.sleep(pause)

    with Counter(postgres) as counter:
        async with contextlib.AsyncExitStack() as stack:
            pools = [await stack.enter_async_context(kind(postgres)) for _ in fleets]
            guards = list(map(guarded, pools, fleets, "pq"))
            for guard in guards:
                stack.callback(guard.detach)
            for busy, guard in zip(pools, guards, strict=True):
                tasks = [asyncio.create_task(run(busy, 0)) for _ in range(8)]
                tasks += [asyncio.create_task(run(pool, 0.05)) for pool in pools if pool is not busy]
                until = time.monotonic() + 60
                while guard.snapshot().pool.in_use < 4:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    assert not failed
    assert 4 <= counter.most <= BUDGET


def test_a_pool_that_keeps_connections_in_any_case_is_refused(postgres, fleets):
    """A verdict has no such limit."""
    pool = psycopg_pool.ConnectionPool(postgres.url(""), min_size=2, open=False)
    with pytest.raises(ConfigurationError, match="guard 'p': the pool's min_size must be 0, got 2"):
        guarded(pool, fleets[0], "p")
    guard = protect(pool, name="p", fleet=fleets[0].verdict("db"))
    with pool, pool.connection() as connection:
        connection.execute("select 1")
    guard.detach()


def test_a_pool_of_asyncpg_that_keeps_connections_in_any_case_is_refused(postgres, fleets):
    async def main():
        async with asyncpg.create_pool(postgres.url(""), max_size=BUDGET, min_size=1) as pool:
            with pytest.raises(ConfigurationError, match="guard 'p': the pool's min_size must be 0, got 1"):
                guarded(pool, fleets[0], "p")

    asyncio.run(main())


def test_a_smaller_limit_closes_idle_connections_of_a_pool(postgres, fleets):
    """Also those that were open before the guard, and those that come back later."""
    with made(psycopg_pool.ConnectionPool, postgres) as pool:
        with pool.connection(), pool.connection(), pool.connection():
            pass
        budget = fleets[0].budget("db", connections=BUDGET, minimum=3)
        guard = protect(pool, name="p", fleet=budget, timeout=20.0)
        with psycopg.connect(postgres.url(""), autocommit=True) as watch, pool.connection():
            assert guard.snapshot().pool.open == 3
            guard.resize(1)
            wait_until(lambda: watch.execute(QUERY).fetchone()[0] == 1)
            assert guard.snapshot().pool.open == 1
        with pool.connection() as connection:
            connection.execute("select 1")
        guard.detach()
