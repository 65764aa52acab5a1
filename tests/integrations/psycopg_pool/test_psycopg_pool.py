"""A pool of psycopg_pool behind a guard, for threads and for tasks, on a real server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import threading
import time
from collections import Counter

import psycopg
import psycopg.rows
import psycopg_pool
import pytest

from guardrails import (
    Adaptive,
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
from guardrails.integrations.sqlalchemy import pool_status
from guardrails.testing.pgbouncer import PgBouncer
from support.cancelling import cancelled_at
from support.lateness import LATE
from support.pool_lab import pool_lab_with

lab = pool_lab_with(["psycopg", "psycopg_async"])

SHORT = 0.3
"""Seconds of a deadline."""

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def each_way(session):
    """Uses a connection in each way; returns what came of it."""
    do, connection = session.do, session.connection
    found = [session.execute("create temporary table ways (n int)")]
    cursor = connection.cursor()
    do(cursor.executemany("insert into ways values (%s)", [(1,), (2,)]))
    found.append(do(do(connection.execute("select n from ways order by n")).fetchall()))
    session.commit()
    with session.inside(connection.transaction()), session.inside(connection.transaction()):
        session.execute("insert into ways values (3)")
    with session.inside(cursor.copy("copy ways from stdin")) as copy:
        do(copy.write("4\n5\n"))
    with session.inside(cursor.copy("copy (select n from ways order by n) to stdout")) as copy:
        while data := do(copy.read()):
            found.append(bytes(data))
    with session.inside(connection.pipeline()):
        sent = [do(connection.execute(f"select {number}")) for number in range(3)]
    found.append([do(each.fetchone()) for each in sent])
    with session.inside(connection.cursor("served")) as served:
        do(served.execute("select generate_series(1, 250)"))
        found += [do(served.fetchone()), do(served.fetchmany(3)), len(do(served.fetchall()))]
    found.append(do(do(connection.execute("select %s::int + 1", (4,), prepare=True)).fetchone()))
    session.rollback()
    return found


def test_each_way_gives_the_same_as_without_a_guard(lab):
    """Statements, transactions, COPY, pipelines and server-side cursors."""
    guard = lab.protect(size=1, guard={"timeout": 20})
    guarded = lab.run(each_way)
    assert guard.snapshot().in_use == 0
    assert guard.snapshot().succeeded > 10
    guard.detach()
    before = guard.snapshot().succeeded
    lab.run(lambda session: session.execute("drop table if exists ways"))
    assert lab.run(each_way) == guarded
    assert guard.snapshot().succeeded == before, "detached"


def slow_pipeline(session):
    with session.inside(session.connection.pipeline()):
        session.do(session.connection.execute("select pg_sleep(30)"))


def slow_copy(session):
    with session.inside(session.connection.cursor().copy("copy (select pg_sleep(30)) to stdout")) as copy:
        session.do(copy.read())


def slow_cursor(session):
    with session.inside(session.connection.cursor("served")) as served:
        session.do(served.execute("select pg_sleep(30)"))
        session.do(served.fetchone())


def slow_transaction(session):
    with session.inside(session.connection.transaction()):
        session.execute("select pg_sleep(30)")


SLOW = {
    "execute": lambda session: session.execute("select pg_sleep(30)"),
    "executemany": lambda session: session.do(
        session.connection.cursor().executemany("select pg_sleep(%s)", [(30,), (30,)])
    ),
    "pipeline": slow_pipeline,
    "copy": slow_copy,
    "cursor": slow_cursor,
    "transaction": slow_transaction,
}


def stopped(lab, work):
    """Runs work that must be stopped; returns the seconds that took."""
    started = time.monotonic()
    with pytest.raises(CallTimeoutError):
        lab.run(work)
    return time.monotonic() - started


@pytest.mark.parametrize("way", SLOW)
def test_a_slow_statement_is_stopped_on_the_server(lab, way):
    """However it was sent; its connection is not used again, and the pool serves the next caller."""
    guard = lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()
    assert SHORT <= stopped(lab, SLOW[way]) < SHORT + LATE
    lab.until(lambda: lab.running() == 0, "the server has stopped it")
    assert guard.snapshot().failed == 1
    assert guard.snapshot().in_use == 0
    assert lab.soon() == 42


def test_a_statement_that_waits_for_a_lock_is_stopped(lab):
    """While a table is locked."""
    lab.aside("drop table if exists locked", "create table locked (n int)")
    lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()
    with lab.locked("locked"):
        assert stopped(lab, lambda session: session.execute("select * from locked")) < SHORT + LATE
        lab.until(lambda: lab.running() == 0, "the server has stopped it")
    assert lab.soon("select count(*) from locked") == 0
    lab.aside("drop table locked")


def test_a_frozen_server_holds_nobody_up(lab):
    """Statements, connects and returns end in time, and the pool recovers when the server does."""
    guard = lab.protect(size=2, guard={"timeout": SHORT})
    lab.connect()
    with lab.frozen():
        for _ in range(3):
            assert stopped(lab, lambda session: session.execute("select 1")) < 2 * SHORT + LATE
        assert guard.snapshot().in_use == 0
        assert guard.snapshot().failed >= 3
    assert lab.soon() == 42


def test_the_callers_deadline_counts_and_is_no_evidence(lab):
    """A statement under it is stopped; with no time left none is sent."""
    guard = lab.protect(size=1, guard={"timeout": 20})
    lab.connect()
    with deadline(SHORT):
        stopped(lab, lambda session: session.execute("select pg_sleep(30)"))
        with pytest.raises(DeadlineSpentError):
            lab.query("select 1")
    assert guard.snapshot().failed == 0


def test_after_a_stop_nothing_passes_for_committed(lab):
    """A block whose statement was stopped, and whose error was swallowed, raises at its end."""
    lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()

    def swallow(session):
        with contextlib.suppress(CallTimeoutError):
            session.execute("select pg_sleep(30)")

    def in_block(session):
        with session.inside(session.connection.transaction()):
            swallow(session)

    for work in (swallow, in_block):
        with pytest.raises(psycopg.OperationalError, match="stopped at its deadline"):
            lab.run(work)
    assert lab.soon() == 42


@pytest.mark.parametrize("block", [False, True], ids=["commit", "block"])
def test_a_commit_that_is_stopped_is_unknown(lab, block):
    """The one of the connection's own block, and that of a transaction's."""
    lab.aside("drop table if exists commits", "create table commits (n int)")
    lab.protect(size=1, guard={"timeout": SHORT})
    lab.connect()

    def work(session):
        with session.inside(session.connection.transaction()) if block else contextlib.nullcontext():
            session.execute("insert into commits values (1)")

    with lab.backend.slow_commits("commits"):
        with pytest.raises(CommitUnknownError):
            lab.run(work)
        lab.until(lambda: lab.running() == 0, "the server has stopped it")
    lab.aside("drop table commits")


@pytest.mark.parametrize("block", [False, True], ids=["commit", "block"])
def test_a_commit_that_is_refused_is_rolled_back(lab, block):
    """A connection that goes on to be used must not commit two transactions."""
    lab.aside("drop table if exists commits", "create table commits (n int)")
    lab.protect(size=1, guard={"timeout": 20})
    lab.connect()

    def first(session):
        with deadline(0.1):
            if block:
                with session.inside(session.connection.transaction()):
                    session.execute("insert into commits values (1)")
                    time.sleep(0.15)
            else:
                session.execute("insert into commits values (1)")
                time.sleep(0.15)
                session.commit()

    def work(session):
        with pytest.raises(DeadlineSpentError):
            first(session)
        session.execute("insert into commits values (2)")
        session.commit()

    lab.run(work)
    assert lab.aside("select sum(n) from commits") == 2
    lab.aside("drop table commits")


def test_an_exhausted_pool_refuses_and_says_who_holds_it(lab):
    """Before the pool's own queue."""
    guard = lab.protect(size=1, guard={"max_wait_duration": 0})
    lab.connect()

    def work(session):
        session.execute("select 1")
        with pytest.raises(BulkheadFullError):
            session.do(lab.pool.getconn())
        return pool_status(lab.pool)

    status = lab.run(work)
    assert status.checked_out == status.in_use == 1
    assert "test_psycopg_pool.py" in str(status.holders) or "pool_lab.py" in str(status.holders)
    assert all(holder.pid and holder.port for holder in status.holders)
    assert guard.snapshot().in_use == 0


def test_the_pools_timeout_bounds_the_wait_for_a_slot(lab):
    """Its own error is raised then, which is a CallTimeoutError, too."""
    guard = lab.protect(size=1, timeout=SHORT, guard={"max_wait_duration": 20, "timeout": 20})

    def work(session):
        session.execute("select 1")
        started = time.monotonic()
        with pytest.raises(psycopg_pool.PoolTimeout) as raised:
            session.do(lab.pool.getconn())
        assert isinstance(raised.value, CallTimeoutError)
        return time.monotonic() - started

    assert SHORT <= lab.run(work) < SHORT + LATE
    assert guard.snapshot().in_use == 0


def test_a_connection_that_is_forgotten_is_reported(lab, caplog):
    """Once, with the line that took it."""
    lab.protect(size=2, guard={"leak_after": 0.1})
    kept = [take(lab)]
    lab.until(lambda: "nothing runs on it" in caplog.text, "the leak is reported")
    assert "test_psycopg_pool.py" in caplog.text
    back(lab, kept.pop())


def take(lab):
    """A connection out of the pool."""
    if not hasattr(lab, "runner"):
        return lab.pool.getconn()

    async def take_one():
        return await lab.pool.getconn()

    return lab.runner.run(take_one())


def back(lab, connection):
    """Returns one."""
    done = lab.pool.putconn(connection)
    if hasattr(lab, "runner"):
        lab.runner.run(done)


def test_a_connection_that_is_dropped_is_made_up_for(lab, caplog):
    """Its slot is free, and the pool has another connection."""
    guard = lab.protect(size=1, guard={"leak_after": 60, "timeout": 20})
    connection = take(lab)
    assert guard.snapshot().in_use == 1
    del connection
    gc.collect()
    lab.until(lambda: guard.snapshot().in_use == 0, "the slot is back")
    assert lab.soon() == 42
    lab.until(lambda: "not returned" in caplog.text, "it is reported")


def test_an_idle_hold_is_taken_back(lab):
    """The slot and the place are free, the transaction is rolled back, and blocks unwind."""
    lab.aside("drop table if exists held", "create table held (n int)")
    guard = lab.protect(size=1, guard={"max_idle_hold": SHORT, "timeout": 20})
    lab.connect()

    def nap(session):
        session.do(asyncio.sleep(2 * SHORT + 0.2)) if hasattr(lab, "runner") else time.sleep(2 * SHORT + 0.2)

    def work(session):
        session.execute("insert into held values (1)")
        nap(session)
        assert guard.snapshot().in_use == 0
        for late in (session.connection.cursor, lambda: session.execute("select 1"), session.commit):
            with pytest.raises(ConnectionRevokedError):
                late()
        session.rollback()
        session.execute("select 1")

    def silent(session):
        session.execute("insert into held values (1)")
        nap(session)

    def in_block(session):
        with session.inside(session.connection.transaction()):
            silent(session)

    for each in (work, silent, in_block):
        with pytest.raises(ConnectionRevokedError) as raised:
            lab.run(each)
        assert raised.value.where
        assert lab.soon("select count(*) from held") == 0
    assert guard.snapshot().in_use == 0
    lab.aside("drop table held")


def test_a_hold_on_purpose_is_not_taken_back(lab):
    """By `holding`, and while it waits for notifications."""
    lab.protect(size=1, guard={"max_idle_hold": SHORT, "timeout": 20})

    def work(session):
        with holding(20):
            session.do(asyncio.sleep(1)) if hasattr(lab, "runner") else time.sleep(1)
        return session.execute("select 42")

    with holding(20):
        assert lab.run(work) == 42


def test_shadow_stops_nothing_and_counts(lab):
    """A statement past its limit ends by itself, and a caller too many waits for the pool."""
    guard = lab.protect(size=1, guard={"timeout": 0.1, "max_wait_duration": 0})
    lab.connect()
    guard.set_mode("shadow")
    both = [functools.partial(lab.query, "select 42 from pg_sleep(0.4)")] * 2
    assert lab.all(both) == [42, 42]
    seen = guard.snapshot()
    assert seen.would_stop == 1
    assert seen.would_reject == {"bulkhead_full": 1}
    assert seen.in_use == 0


def test_lost_connections_are_survived(lab):
    """Those of an administrator's command; the pool opens others."""
    guard = lab.protect(size=1, guard={"timeout": 20})

    def work(session):
        session.execute("select 1")
        lab.aside(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'lab'"
        )
        for _ in range(100):  # the server ends a session a moment later
            session.execute("select 1")
            time.sleep(0.02)

    with pytest.raises(psycopg.OperationalError):
        lab.run(work)
    assert guard.snapshot().in_use == 0
    assert guard.snapshot().failed == 1
    assert lab.soon() == 42


def resized(lab, size):
    """Resizes the pool; returns the guard's slots."""
    done = lab.pool.resize(0, size)
    if hasattr(lab, "runner"):
        lab.runner.run(done)
    return lab.guard.snapshot().max_concurrent_calls


def test_slots_follow_the_size_of_the_pool(lab):
    """A pool of psycopg may be resized. If its size stays, slots that were set by hand stay, too."""
    guard = lab.protect(size=2, guard={"timeout": 20})
    assert resized(lab, 4) == 4
    guard.resize(3)
    assert resized(lab, 4) == 3
    assert resized(lab, 2) == 2
    assert lab.soon() == 42


@pytest.mark.parametrize(("maximum", "slots"), [(None, 8), (3, 3)])
def test_an_adaptive_limit_follows_the_size_of_the_pool(lab, maximum, slots):
    """Up to its maximum."""
    limit = Adaptive(minimum=2, maximum=maximum, mode="enforce")
    lab.protect(size=4, guard={"timeout": 20, "max_concurrent_calls": limit})
    assert resized(lab, 8) == slots
    assert resized(lab, 1) == 1
    assert lab.soon() == 42


def test_a_class_of_connections_with_its_types(lab):
    """As type checkers want it; detached, the pool has it back."""
    kind = psycopg.AsyncConnection if hasattr(lab, "runner") else psycopg.Connection
    given = kind[psycopg.rows.TupleRow]
    guard = lab.protect(size=1, connection_class=given, guard={"timeout": 20})
    assert lab.soon() == 42
    assert guard.snapshot().pool.opened == 1
    guard.detach()
    assert lab.pool.connection_class is given
    assert lab.query("select 42") == 42


def sessions(lab):
    return lab.aside("select count(*) from pg_stat_activity where application_name = 'lab'")


def drain(lab):
    done = lab.pool.drain()
    if hasattr(lab, "runner"):
        lab.runner.run(done)


def test_connections_that_are_out_at_the_detach_are_the_pools_alone(lab):
    """When the pool closes them later, it opens as many, and not twice as many."""
    guard = lab.protect(min_size=2, size=2, guard={"timeout": 20})
    lab.until(lambda: sessions(lab) == 2, "the pool is full")
    connections = [take(lab), take(lab)]
    guard.detach()
    opened = lab.pool.get_stats()["connections_num"]
    while connections:
        back(lab, connections.pop())
    drain(lab)
    gc.collect()
    lab.until(lambda: lab.pool.get_stats()["connections_num"] >= opened + 2, "they are replaced")
    assert lab.query("select 42 from pg_sleep(0.3)") == 42
    assert lab.pool.get_stats()["connections_num"] == opened + 2
    assert sessions(lab) == 2


def test_a_detach_while_a_worker_of_the_pool_has_a_connection(lab):
    """The connection is the pool's alone, and the next guard guards it."""
    resetting, proceed = threading.Event(), threading.Event()

    def reset(_):
        resetting.set()
        assert proceed.wait(20)

    async def reset_on_loop(_):
        resetting.set()
        await asyncio.to_thread(proceed.wait, 20)

    chosen = reset_on_loop if hasattr(lab, "runner") else reset
    first = lab.protect(size=1, reset=chosen, guard={"timeout": SHORT, "name": "first"})
    connection = take(lab)
    back(lab, connection)
    lab.until(resetting.is_set, "a worker has the connection")
    first.detach()
    proceed.set()
    seen = first.snapshot()
    assert lab.query("select 42 from pg_sleep(0.5)") == 42, "not stopped"
    assert first.snapshot().succeeded == seen.succeeded
    second = lab.guard_pool({"timeout": 20, "name": "second"})
    for _ in range(3):
        assert lab.soon() == 42
        assert second.snapshot().in_use == 0
    assert second.snapshot().succeeded > 0
    assert type(connection) is lab.pool.connection_class


def test_a_detach_while_a_caller_waits_for_a_connection(lab):
    """The caller gets one without the guard."""
    first = lab.protect(size=1, guard={"timeout": 20, "name": "first", "max_concurrent_calls": 1})
    first.set_mode("shadow")  # both have a slot
    held = take(lab)
    with concurrent.futures.ThreadPoolExecutor(1) as others:
        waiting = others.submit(take, lab) if not hasattr(lab, "runner") else None
        if waiting is None:
            waiting = lab.runner.get_loop().create_task(lab.pool.getconn())
        lab.until(lambda: lab.pool.get_stats()["requests_waiting"] == 1, "it waits")
        first.detach()
        back(lab, held)
        lab.until(waiting.done, "it has the connection")
        connection = waiting.result()
    assert not first.snapshot().in_use
    back(lab, connection)
    assert type(connection) is lab.pool.connection_class
    second = lab.guard_pool({"timeout": 20, "name": "second"})
    assert lab.soon() == 42
    assert second.snapshot().in_use == 0


def test_what_the_pool_refuses_by_itself_is_no_evidence(lab):
    """Its queue is full, or it is closed: the database was not asked."""
    proceed = threading.Event()

    def configure(_):
        assert proceed.wait(20)

    async def configure_on_loop(_):
        await asyncio.to_thread(proceed.wait, 20)

    chosen = configure_on_loop if hasattr(lab, "runner") else configure
    guard = lab.protect(size=3, max_waiting=1, configure=chosen, guard={"timeout": 30})
    with concurrent.futures.ThreadPoolExecutor(2) as others:

        def begin(method):
            if hasattr(lab, "runner"):
                return lab.runner.get_loop().create_task(method())
            return others.submit(method)

        waiting = begin(lab.pool.getconn)
        lab.until(lambda: lab.pool.get_stats()["requests_waiting"] == 1, "one waits")
        with pytest.raises(BulkheadFullError) as raised:
            take(lab)
        assert isinstance(raised.value.__cause__, psycopg_pool.TooManyRequests)
        closing = begin(functools.partial(lab.pool.close, timeout=0.1))  # of its worker, which opens one
        lab.until(waiting.done, "the pool is closed")
        proceed.set()
        assert isinstance(waiting.exception(), psycopg_pool.PoolClosed)
        lab.until(closing.done, "its workers have ended")
    seen = guard.snapshot()
    assert (seen.failed, seen.abandoned, seen.in_use) == (0, 2, 0)
    assert seen.rejected == {"bulkhead_full": 1}


NULL = {"psycopg": psycopg_pool.NullConnectionPool, "psycopg_async": psycopg_pool.AsyncNullConnectionPool}


def test_a_pool_without_idle_connections(lab):
    """Each checkout opens one; without a size it needs a number of slots."""
    lab.plain = NULL["psycopg_async" if hasattr(lab, "runner") else "psycopg"]
    guard = lab.protect(size=2, guard={"timeout": SHORT})
    assert lab.soon() == 42
    stopped(lab, lambda session: session.execute("select pg_sleep(30)"))
    assert lab.soon() == 42
    seen = guard.snapshot()
    assert seen.in_use == 0
    assert seen.pool.opened == seen.pool.closed >= 3
    lab.dispose()
    with pytest.raises(ConfigurationError, match="max_concurrent_calls"):
        lab.protect(size=0, max_size=0)
    lab.guard_pool({"max_concurrent_calls": 2, "timeout": 20})
    assert lab.soon() == 42


def test_wrong_pools_are_refused(lab):
    """A closed pool, one that is guarded, a class, and options that do not exist or belong to the pool."""
    guard = lab.protect(size=2)
    with pytest.raises(ConfigurationError, match="guarded already"):
        protect(lab.pool)
    guard.detach()
    with pytest.raises(ConfigurationError, match="from 1 to 2"):
        protect(lab.pool, max_concurrent_calls=3)
    with pytest.raises(ConfigurationError, match="psycopg_pool looks after"):
        protect(lab.pool, keepalive=30)
    with pytest.raises(ConfigurationError, match="backstop"):
        protect(lab.pool, backstop=None)
    with psycopg.connect(lab.url()) as connection, pytest.raises(ConfigurationError, match="pass its pool"):
        protect(connection)
    if hasattr(lab, "runner"):
        protect(lab.pool)
        lab.query("select 1")

        async def used_elsewhere():
            with pytest.raises(ConfigurationError, match="another event loop"):
                await lab.pool.getconn()

        asyncio.run(used_elsewhere())
    lab.dispose()
    with pytest.raises(ConfigurationError, match="closed"):
        lab.guard_pool({})


FEW = pytest.param(120, id="few")
ALL = pytest.param(3000, id="all", marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)])

LIMIT = 0.08
"""Seconds of a transaction; more on a machine that is too busy to end any in time."""
WIDTH = 6

RUNNING = """
    select count(*) from pg_stat_activity
    where state = 'active' and query like 'select %pg_sleep(0%' and pid <> pg_backend_pid()
"""


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
            lab.own_options = {"prepare_threshold": None}
        yield request.param
        lab.dispose()
    lab.until(lambda: lab.running() == 0, "nothing runs on the server")
    lab.aside("drop table races")


@pytest.mark.parametrize("count", [FEW, ALL])
def test_transactions_around_their_deadline(lab, way, count):
    """What is reported as committed is there, what is not is not, and no innocent statement is stopped."""
    guard = lab.protect(size=4, guard={"max_wait_duration": 30, "timeout": 20})
    lab.connect()
    lab.limit, tally = LIMIT, Counter()

    def transact(number):
        if number % 3 == 0:
            return lab.query(f"select {number} from pg_sleep(0.02)")

        def work(session):
            with deadline(lab.limit):
                session.execute(f"insert into races values ({number})")
                session.execute(f"select {number} from pg_sleep({lab.limit * (0.6 + number % 8 * 0.07)})")
                session.commit()
            return number

        return lab.run(work)

    for start in range(0, count, WIDTH):
        numbers = range(start, start + WIDTH)
        outcomes = lab.all([functools.partial(transact, number) for number in numbers])
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
        late = sum(isinstance(outcome, Exception) for outcome in outcomes)
        lab.limit = lab.limit * 1.3 if late >= 4 else max(LIMIT, lab.limit / 1.3)
    print(f"{lab.plain.__name__}, {way}: {count} transactions: {dict(tally)}")
    assert count // 3 < tally["int"] < count
    assert guard.snapshot().in_use == 0
    assert guard.snapshot().failed == 0


async def statement(pool):
    async with pool.connection() as connection:
        await connection.execute("select 1")


async def in_transaction(pool):
    async with pool.connection() as connection, connection.transaction():
        await connection.execute("select 1")


async def piped(pool):
    async with pool.connection() as connection, connection.pipeline():
        await connection.execute("select 1")


@pytest.mark.parametrize("lab", ["psycopg_async"], indirect=True)
@pytest.mark.parametrize("work", [statement, in_transaction, piped])
def test_a_task_may_be_cancelled_at_each_await(lab, work):
    """Slot and connection come back, and the pool serves the next caller."""
    guard = lab.protect(size=1, guard={"timeout": 20, "max_wait_duration": 5})

    async def sweep():
        point = reached = 0
        while reached >= point:
            point += 1
            if point % 3 == 0:
                await lab.pool.drain()  # the next caller waits for a connection that is opened
            reached = await asyncio.create_task(cancelled_at(work(lab.pool), point))
            assert guard.snapshot().in_use == 0
            async with lab.pool.connection() as connection:
                cursor = await connection.execute("select 42")
                assert await cursor.fetchone() == (42,)
            assert guard.snapshot().in_use == 0
        return point

    assert lab.runner.run(sweep()) >= 2
