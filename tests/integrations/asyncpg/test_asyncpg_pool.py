"""A pool of asyncpg behind a guard, on a real server: every way to use it."""

from __future__ import annotations

import asyncio
import gc
import io
import time

import asyncpg
import pytest

from guardrails import (
    BulkheadFullError,
    CallTimeoutError,
    CommitUnknownError,
    ConfigurationError,
    ConnectionRevokedError,
    DeadlineSpentError,
    deadline,
    holding,
    protect,
)
from guardrails._dbapi.drivers.asyncpg import Asyncpg
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.asyncpg._server_question import ServerQuestion
from guardrails.integrations.sqlalchemy import pool_status
from support.asgi_client import fine, http, serve
from support.lateness import LATE
from support.pool_lab import pool_lab_with

lab = pool_lab_with(["asyncpg"])

SHORT = 0.3
"""Seconds of a deadline."""


def run(lab, make):
    return lab.call_async(make)


async def each_way(pool):
    """Uses the pool and its connections in each way; returns what came of it."""
    found = [
        await pool.execute("create table if not exists ways (n int)"),
        await pool.executemany("insert into ways values ($1)", [(1,), (2,)]),
        await pool.fetch("select n from ways order by n"),
        await pool.fetchrow("select $1::int", 3),
        await pool.fetchval("select 4"),
        await pool.fetchmany("insert into ways values ($1) returning n", [(5,), (6,)]),
    ]
    sink = io.BytesIO()
    found.append(await pool.copy_from_table("ways", output=sink))
    found.append(await pool.copy_to_table("ways", source=io.BytesIO(b"7\n8\n")))
    found.append(await pool.copy_records_to_table("ways", records=[(9,)]))
    found.append(sink.getvalue())
    async with pool.acquire() as connection:
        async with connection.transaction():
            async with connection.transaction():
                found.append([row[0] async for row in connection.cursor("select generate_series(1, 120)")])
            cursor = await connection.cursor("select n from ways order by n")
            found += [await cursor.fetch(2), await cursor.forward(1), await cursor.fetchrow()]
        statement = await connection.prepare("select n from ways where n > $1 order by n")
        found += [await statement.fetch(7), await statement.fetchval(8)]
        heard = asyncio.Queue()
        await connection.add_listener("ways", lambda *heard_now: heard.put_nowait(heard_now[-1]))
        await connection.execute("notify ways, 'hello'")
        found.append(await heard.get())
        await connection.reset()
    connection = await pool.acquire()
    found.append(await connection.fetchval("select 10"))
    await pool.release(connection)
    await pool.execute("drop table ways")
    return found


def test_each_way_gives_the_same_as_without_a_guard(lab):
    """Statements on the pool, transactions, cursors, prepared statements, COPY and LISTEN."""
    guard = lab.protect(guard={"timeout": 20})
    guarded = run(lab, lambda: each_way(lab.pool))
    assert guard.snapshot().in_use == 0
    assert guard.snapshot().succeeded > 10
    guard.detach()
    before = guard.snapshot().succeeded
    assert run(lab, lambda: each_way(lab.pool)) == guarded
    assert guard.snapshot().succeeded == before, "detached"


async def stopped(work):
    """Awaits work that must be stopped; returns the seconds that took."""
    started = time.monotonic()
    with pytest.raises(CallTimeoutError):
        await work
    return time.monotonic() - started


async def slow_cursor(pool):
    async with pool.acquire() as connection, connection.transaction():
        async for _ in connection.cursor("select pg_sleep(30) from generate_series(1, 3)", prefetch=1):
            pass


async def slow_prepared(pool):
    async with pool.acquire() as connection:
        await (await connection.prepare("select pg_sleep(30)")).fetch()


async def slow_transaction(pool):
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select 1")
        await connection.fetch("select pg_sleep($1)", 30)


SLOW = {
    "execute": lambda pool: pool.execute("select pg_sleep(30)"),
    "fetch": lambda pool: pool.fetch("select pg_sleep($1)", 30),
    "executemany": lambda pool: pool.executemany("select pg_sleep($1)", [(30,), (30,)]),
    "copy out": lambda pool: pool.copy_from_query("select pg_sleep(30)", output=io.BytesIO()),
    "cursor": slow_cursor,
    "prepared": slow_prepared,
    "transaction": slow_transaction,
}


@pytest.mark.parametrize("way", SLOW)
def test_a_slow_statement_is_stopped_on_the_server(lab, way):
    """However it was sent; its connection is not used again, and the pool serves the next caller."""
    guard = lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()
    assert SHORT <= run(lab, lambda: stopped(SLOW[way](lab.pool))) < SHORT + LATE
    lab.until(lambda: lab.running() == 0, "the server has stopped it")
    assert guard.snapshot().failed == 1
    assert guard.snapshot().in_use == 0
    assert guard.snapshot().pool.invalidated == 1
    assert lab.soon() == 42


def test_a_statement_that_waits_for_a_lock_is_stopped(lab):
    """While a table is locked."""
    lab.aside("drop table if exists locked", "create table locked (n int)")
    lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()
    with lab.locked("locked"):
        assert run(lab, lambda: stopped(lab.pool.fetch("select * from locked"))) < SHORT + LATE
        lab.until(lambda: lab.running() == 0, "the server has stopped it")
    assert lab.soon("select count(*) from locked") == 0
    lab.aside("drop table locked")


def test_a_frozen_server_holds_nobody_up(lab):
    """Statements, connects and returns end in time, and the pool recovers when the server does."""
    guard = lab.protect(size=2, guard={"timeout": SHORT})
    lab.connect()
    with lab.frozen():
        for _ in range(3):
            took = run(lab, lambda: stopped(lab.pool.fetch("select 1")))
            assert took < 2 * SHORT + LATE
        assert guard.snapshot().in_use == 0
    assert lab.soon() == 42


def test_asyncpgs_own_timeout_wins_if_it_is_smaller(lab):
    """Then asyncpg's TimeoutError is raised and the connection stays; the guard's is a CallTimeoutError."""
    guard = lab.protect(size=1, guard={"timeout": 20})
    lab.connect()
    with pytest.raises(TimeoutError) as raised:
        run(lab, lambda: lab.pool.fetch("select pg_sleep(30)", timeout=SHORT))
    assert not isinstance(raised.value, CallTimeoutError)
    assert guard.snapshot().failed == 1
    assert guard.snapshot().pool.invalidated == 0
    with deadline(SHORT), pytest.raises(CallTimeoutError):
        run(lab, lambda: lab.pool.fetch("select pg_sleep(30)", timeout=20))


async def acquired(pool):
    return await pool.acquire(timeout=20)


def test_the_return_has_the_whole_timeout_of_its_acquire(lab):
    """asyncpg keeps that number; the wait for a slot must not shorten it."""
    lab.protect(size=1, guard={"timeout": 30, "max_wait_duration": 20})
    lab.connect()

    async def work():
        held = await lab.pool.acquire()
        waiting = asyncio.ensure_future(acquired(lab.pool))
        await asyncio.sleep(0.05)
        await lab.pool.release(held)
        connection = await waiting
        kept = connection._holder._timeout
        await lab.pool.release(connection)
        return kept

    assert run(lab, work) == 20


def test_the_callers_deadline_counts_and_is_no_evidence(lab):
    """A statement under it is stopped; with no time left none is sent."""
    guard = lab.protect(size=1, guard={"timeout": 20})
    lab.connect()

    async def work():
        with deadline(SHORT):
            await stopped(lab.pool.fetch("select pg_sleep(30)"))
            with pytest.raises(DeadlineSpentError):
                await lab.pool.fetch("select 1")

    run(lab, work)
    assert guard.snapshot().failed == 0


def test_after_a_stop_a_connection_can_only_be_returned(lab):
    """Work on it raises asyncpg's InterfaceError and is not sent; a transaction ends without an error."""
    lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()

    async def work():
        async with lab.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await stopped(connection.execute("select pg_sleep(30)"))
            for late in (connection.execute("select 1"), connection.fetch("select 1")):
                with pytest.raises(asyncpg.InterfaceError, match="stopped at its deadline"):
                    await late
            await transaction.rollback()

    run(lab, work)
    assert lab.soon() == 42


def test_a_commit_that_is_stopped_is_unknown(lab):
    """As the last statement of a block of a transaction."""
    lab.aside("drop table if exists commits", "create table commits (n int)")
    lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()

    async def work():
        async with lab.pool.acquire() as connection, connection.transaction():
            await connection.execute("insert into commits values (1)")

    with lab.backend.slow_commits("commits"):
        with pytest.raises(CommitUnknownError):
            run(lab, work)
        lab.until(lambda: lab.running() == 0, "the server has stopped it")
    lab.aside("drop table commits")


def test_a_commit_that_is_refused_is_rolled_back(lab):
    """A connection that goes on to be used must not commit two transactions."""
    lab.aside("drop table if exists commits", "create table commits (n int)")
    lab.protect(size=1, guard={"timeout": 20})
    lab.connect()

    async def work():
        async with lab.pool.acquire() as connection:
            with pytest.raises(DeadlineSpentError), deadline(0.1):
                async with connection.transaction():
                    await connection.execute("insert into commits values (1)")
                    await asyncio.sleep(0.15)
            assert not connection.is_in_transaction()
            await connection.execute("insert into commits values (2)")

    run(lab, work)
    assert lab.aside("select sum(n) from commits") == 2
    lab.aside("drop table commits")


def test_an_exhausted_pool_refuses_and_says_who_holds_it(lab):
    """Before the pool's own queue, which has no limit."""
    guard = lab.protect(size=2, guard={"max_wait_duration": 0})
    lab.connect()

    async def work():
        held = [await lab.pool.acquire() for _ in range(2)]
        with pytest.raises(BulkheadFullError):
            await lab.pool.fetch("select 1")
        status = pool_status(lab.pool)
        for connection in held:
            await lab.pool.release(connection)
        return status

    status = run(lab, work)
    assert status.checked_out == 2
    assert status.in_use == 2
    assert all(".work" in holder.where[0] for holder in status.holders)
    assert all(holder.pid and holder.port for holder in status.holders)
    assert guard.snapshot().in_use == 0


def test_a_connection_that_is_forgotten_is_reported(lab, caplog):
    """Once, with the line that took it."""
    lab.protect(size=2, guard={"leak_after": 0.1})

    async def forget():
        await lab.pool.acquire()

    run(lab, forget)
    lab.until(lambda: "nothing runs on it" in caplog.text, "the leak is reported")
    assert "forget" in caplog.text


def test_an_idle_hold_is_taken_back(lab):
    """The slot and the place are free, the transaction is rolled back, and blocks unwind."""
    lab.aside("drop table if exists held", "create table held (n int)")
    guard = lab.protect(size=1, guard={"max_idle_hold": SHORT, "timeout": 20})
    lab.connect()

    async def work():
        with pytest.raises(ConnectionRevokedError) as raised:
            async with lab.pool.acquire() as connection, connection.transaction():
                await connection.execute("insert into held values (1)")
                statement = await connection.prepare("select 1")
                cursor = await connection.cursor("select generate_series(1, 9)")
                await asyncio.sleep(2 * SHORT + 0.2)
                assert guard.snapshot().in_use == 0
                assert await lab.pool.fetchval("select count(*) from held") == 0
                for late in (statement.fetch(), cursor.fetch(1), connection.fetchrow("select 1")):
                    with pytest.raises(ConnectionRevokedError):
                        await late
                await connection.execute("select 1")
        assert "work" in raised.value.where[0]
        connection = await lab.pool.acquire()
        await asyncio.sleep(2 * SHORT + 0.2)
        with pytest.raises(ConnectionRevokedError):
            await connection.fetch("select 1")
        await lab.pool.release(connection)

    run(lab, work)
    assert lab.soon() == 42
    assert guard.snapshot().in_use == 0
    lab.aside("drop table held")
    gc.collect()


def test_a_hold_on_purpose_is_not_taken_back(lab):
    """By `holding`, and by a connection that listens."""
    lab.protect(size=2, guard={"max_idle_hold": SHORT, "timeout": 20})

    async def work():
        with holding(20):
            async with lab.pool.acquire() as held, lab.pool.acquire() as listening:
                await listening.add_listener("held", print)
                await asyncio.sleep(2 * SHORT + 0.2)
                await listening.remove_listener("held", print)
                return await held.fetchval("select 42")

    assert run(lab, work) == 42


def test_shadow_stops_nothing_and_counts(lab):
    """A statement past its limit ends by itself, and a caller too many waits for the pool."""
    guard = lab.protect(size=1, guard={"timeout": 0.1, "max_wait_duration": 0})
    lab.connect()
    guard.set_mode("shadow")

    async def work():
        together = [lab.pool.fetchval("select 42 from pg_sleep(0.4)") for _ in range(2)]
        return await asyncio.gather(*together)

    assert run(lab, work) == [42, 42]
    seen = guard.snapshot()
    assert seen.would_stop == 1
    assert seen.would_reject == {"bulkhead_full": 1}
    assert seen.in_use == 0


def test_a_crash_of_the_server_is_survived(lab):
    """All connections are lost at once; the statement under way is a failure, and the pool opens others."""
    guard = lab.protect(size=2, guard={"timeout": 20})
    # The last one comes from asyncpg while the server's word of the end is there and the end itself is not.
    lost = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)

    async def work():
        async with lab.pool.acquire() as busy, lab.pool.acquire() as idle:
            await idle.fetchval("select 1")
            under_way = asyncio.ensure_future(busy.fetchval("select pg_sleep(20)"))
            await asyncio.sleep(0.1)
            lab.aside(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'lab'"
            )
            with pytest.raises(lost):
                await under_way
            assert guard.snapshot().failed == 1
            with pytest.raises(lost):
                for _ in range(100):  # the server ends a session a moment later
                    await idle.fetchval("select 1")
                    await asyncio.sleep(0.02)

    run(lab, work)
    assert guard.snapshot().in_use == 0
    assert lab.soon() == 42


def test_the_pool_may_be_protected_before_it_is_opened(lab):
    """And its first connections are opened as evidence, with what lets the server notice a lost client."""

    async def work():
        pool = asyncpg.create_pool(lab.url(), min_size=2, max_size=2, **lab.backend.connect_args("asyncpg"))
        guard = protect(pool, name="early")
        async with pool:
            interval = await pool.fetchval("show client_connection_check_interval")
        return interval, guard.snapshot()

    interval, seen = run(lab, work)
    assert interval == "1s"
    assert seen.pool.opened == 2
    assert seen.pool.closed == 2
    assert seen.failed == 0


def test_a_detach_while_connections_are_opened(lab):
    """They are the pool's alone, and the next guard guards them."""

    async def work():
        proceed = asyncio.Event()

        async def connect(*args, **kwargs):
            await proceed.wait()
            return await asyncpg.connect(*args, **kwargs)

        pool = lab.live = await lab.open(size=2, connect=connect)
        first = protect(pool, name="first", timeout=20)
        openings = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert first.snapshot().in_use == 2
        first.detach()
        proceed.set()
        for each in openings:
            connection = await each
            assert await connection.fetchval("select 42") == 42
            await pool.release(connection)
        assert (first.snapshot().succeeded, first.snapshot().pool) == (0, None)
        second = protect(pool, name="second", timeout=20)
        assert await pool.fetchval("select 42") == 42
        assert (second.snapshot().succeeded, second.snapshot().in_use) == (2, 0)

    run(lab, work)


def test_wrong_pools_are_refused(lab):
    """A class, a closed pool, one that is guarded, one of another loop, and options that do not exist."""
    guard = lab.protect(size=2)
    with pytest.raises(ConfigurationError, match="guarded already"):
        protect(lab.pool)
    guard.detach()
    with pytest.raises(ConfigurationError, match="from 1 to 2"):
        protect(lab.pool, max_concurrent_calls=3)
    with pytest.raises(ConfigurationError, match="backstop"):
        protect(lab.pool, backstop=None)
    with pytest.raises(ConfigurationError, match="max_idle_hold"):
        protect(lab.pool, max_idle_hold=-1)

    async def elsewhere():
        with pytest.raises(ConfigurationError, match="another event loop"):
            protect(lab.pool)
        connection = await asyncpg.connect(lab.url())
        with pytest.raises(ConfigurationError, match="pass a pool"):
            protect(connection)
        await connection.close()

    asyncio.run(elsewhere())
    guard = protect(lab.pool)

    async def used_elsewhere():
        with pytest.raises(ConfigurationError, match="another event loop"):
            await lab.pool.fetch("select 1")

    asyncio.run(used_elsewhere())
    guard.detach()
    run(lab, lab.pool.close)
    with pytest.raises(ConfigurationError, match="closed"):
        protect(lab.pool)
    with pytest.raises(ConfigurationError, match="class Pool"):
        protect(type(lab.pool))


async def own_connect(*args, **kwargs):
    return await asyncpg.connect(*args, **kwargs)


async def own_password():
    return "secret"


@pytest.mark.parametrize("login", [{"connect": own_connect}, {"password": own_password}], ids=["way", "word"])
def test_the_server_is_not_asked_past_the_applications_own_login(lab, login):
    """A function may know another server, or use what belongs to the application's event loop."""
    lab.live = lab.runner.run(lab.open(size=1, **login))
    asks = ServerQuestion(lab.pool, Asyncpg())
    protect(lab.live)
    with pytest.raises(LookupError, match="login is a function"):
        asks()


def test_minimum_idle_and_warm_up(lab):
    """The upkeep of engines serves these pools, too."""
    guard = lab.protect(size=3, guard={"minimum_idle": 2, "timeout": 20})
    assert run(lab, guard.warm_up_async) == 2
    assert lab.pool.get_idle_size() == 2
    assert guard.snapshot().pool.opened == 2


def test_a_request_learns_that_its_route_needs_the_pool(lab):
    """With ``guards=[db]`` the middleware answers 503 for it while the pool is exhausted."""
    guard = lab.protect(size=1, guard={"max_wait_duration": 0, "timeout": 20})
    lab.connect()

    async def app(_scope, _receive, send):
        await lab.pool.fetchval("select 1")
        await fine(_scope, _receive, send)

    middleware = GuardrailsMiddleware(app, guards=[guard])

    async def work():
        assert (await serve(middleware, http("/orders"))).status == 200
        async with lab.pool.acquire():
            refused = await serve(middleware, http("/orders"))
        assert (await serve(middleware, http("/orders"))).status == 200
        return refused

    refused = run(lab, work)
    assert refused.status == 503
    assert refused.problem["status"] == 503
    assert guard.snapshot().rejected == {"bulkhead_full": 1}
    assert guard.snapshot().in_use == 0


def test_a_place_that_was_given_back_is_not_claimed_again(lab):
    """An old proxy that is released twice does not touch the next user of its place."""
    lab.protect(size=1, guard={"max_idle_hold": SHORT, "timeout": 20})

    async def work():
        first = await lab.pool.acquire()
        await lab.pool.release(first)
        second = await lab.pool.acquire()
        await lab.pool.release(first)
        await asyncio.sleep(2 * SHORT + 0.2)
        with pytest.raises(ConnectionRevokedError):
            await second.fetchval("select 1")

    run(lab, work)
