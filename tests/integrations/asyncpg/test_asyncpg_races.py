"""Transactions that end around their deadline, and tasks that are cancelled wherever they wait."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter

import asyncpg
import pytest

from guardrails import CallTimeoutError, CommitUnknownError, DeadlineSpentError, deadline, protect
from guardrails.testing.pgbouncer import PgBouncer
from support.cancelling import cancelled_at
from support.pool_lab import pool_lab_with

lab = pool_lab_with(["asyncpg"])

FEW = pytest.param(120, id="few")
ALL = pytest.param(3000, id="all", marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)])

LIMIT = 0.08
"""Seconds of a transaction; more on a machine that is too busy to end any in time."""
WIDTH = 6


@pytest.fixture(params=["direct", "pgbouncer"])
def way(request, lab):
    """The lab, its own server or a pooler in front of it."""
    lab.aside("drop table if exists races", "create table races (n int)")
    with contextlib.ExitStack() as stack:
        if request.param == "pgbouncer":
            if not PgBouncer.installed():
                pytest.skip("pgbouncer is not installed")
            pooler = stack.enter_context(PgBouncer.start(lab.server))
            lab.url = lambda port=None: pooler.url("")
            lab.options = {"statement_cache_size": 0, "server_settings": {}}
        else:
            lab.options = {}
        yield request.param
        lab.dispose()
    lab.until(lambda: lab.running() == 0, "nothing runs on the server")
    lab.aside("drop table races")


async def transact(lab, number):
    """Commits a row, if that can be done within the limit. Some have all the time they want."""
    if number % 3 == 0:
        return await lab.pool.fetchval(f"select {number} from pg_sleep(0.02)")
    with deadline(lab.limit):
        async with lab.pool.acquire() as connection, connection.transaction():
            await connection.execute(f"insert into races values ({number})")
            length = lab.limit * (0.6 + number % 8 * 0.07)
            await connection.fetchval(f"select {number} from pg_sleep({length})")
    return number


@pytest.mark.parametrize("count", [FEW, ALL])
def test_transactions_around_their_deadline(lab, way, count):
    """What is reported as committed is there, what is not is not, and no innocent statement is stopped."""
    guard = lab.protect(size=4, guard={"max_wait_duration": 30, "timeout": 20}, **lab.options)
    lab.connect()
    lab.limit, tally = LIMIT, Counter()

    async def few(numbers):
        works = [transact(lab, number) for number in numbers]
        return await asyncio.gather(*works, return_exceptions=True)

    for start in range(0, count, WIDTH):
        numbers = range(start, start + WIDTH)
        outcomes = lab.call_async(functools.partial(few, numbers))
        lab.until(lambda: lab.aside(RUNNING) == 0, "nothing runs on the server")
        there = set(lab.aside("select coalesce(array_agg(n), '{}') from races"))
        for number, outcome in zip(numbers, outcomes, strict=True):
            tally[type(outcome).__name__] += 1
            if number % 3 == 0:
                assert outcome == number
            elif isinstance(outcome, CommitUnknownError):
                continue
            elif outcome == number:
                assert number in there
            else:
                assert isinstance(outcome, CallTimeoutError | DeadlineSpentError), outcome
                assert number not in there
        stopped = sum(isinstance(outcome, Exception) for outcome in outcomes)
        lab.limit = lab.limit * 1.3 if stopped >= 4 else max(LIMIT, lab.limit / 1.3)
    print(f"asyncpg, {way}: {count} transactions: {dict(tally)}")
    assert tally["int"] > count // 3
    assert tally["int"] < count
    assert guard.snapshot().in_use == 0
    assert guard.snapshot().failed == 0


RUNNING = """
    select count(*) from pg_stat_activity
    where state = 'active' and query like 'select %pg_sleep(0%' and pid <> pg_backend_pid()
"""


async def fetch(pool):
    await pool.fetch("select 1")


async def transaction(pool):
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("insert into races values (1)")


async def cursor(pool):
    async with pool.acquire() as connection, connection.transaction():
        async for _ in connection.cursor("select n from generate_series(1, 120) n"):
            pass


@pytest.mark.parametrize("work", [fetch, transaction, cursor])
def test_a_task_may_be_cancelled_at_each_await(lab, work):
    """Slot and place come back, and the pool serves the next caller."""
    lab.aside("drop table if exists races", "create table races (n int)")
    guard = lab.protect(size=1, guard={"timeout": 20, "max_wait_duration": 5})

    async def sweep():
        point = reached = 0
        while reached >= point:
            point += 1
            if point % 4 == 0:
                await lab.pool.expire_connections()  # the next acquire opens a connection
            task = asyncio.create_task(cancelled_at(work(lab.pool), point))
            reached = await task
            assert guard.snapshot().in_use <= 1
            assert await asyncio.wait_for(lab.pool.fetchval("select 42"), 20) == 42
            assert guard.snapshot().in_use == 0
        return point

    assert lab.call_async(sweep) > 2
    assert lab.pool.get_size() <= 1
    lab.dispose()
    lab.aside("drop table races")


def test_a_task_may_be_cancelled_while_the_server_is_frozen(lab):
    """Its connection returns within the guard's time, whatever the server does."""
    guard = lab.protect(size=1, guard={"timeout": 0.3, "max_wait_duration": 5})
    lab.connect()

    async def work():
        task = asyncio.create_task(lab.pool.fetch("select 1"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])

    with lab.frozen():
        lab.call_async(work)
        lab.until(lambda: guard.snapshot().in_use == 0, "the slot is back")
    assert lab.soon() == 42


def test_a_pooler_gets_no_setting_that_it_refuses(lab):
    """The settings with which a server notices lost clients are offered once."""
    if not PgBouncer.installed():
        pytest.skip("pgbouncer is not installed")

    async def work(pooler):
        async with asyncpg.create_pool(
            pooler.url(""), min_size=0, max_size=2, statement_cache_size=0
        ) as pool:
            guard = protect(pool, timeout=20)
            both = [pool.fetchval(f"select {number} from pg_sleep(0.1)") for number in range(2)]
            assert await asyncio.gather(*both) == [0, 1]
        return guard.snapshot()

    with PgBouncer.start(lab.server) as pooler:
        seen = lab.call_async(functools.partial(work, pooler))
    assert seen.pool.opened == 2
    assert seen.failed == 0
