"""Connections that are held idle for too long are taken back, and nothing else happens to anybody."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import pickle
import threading
import time
import warnings

import pytest
from sqlalchemy import (
    AssertionPool,
    NullPool,
    SingletonThreadPool,
    StaticPool,
    create_engine,
    event,
    exc,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.util import await_only

from guardrails import ConfigurationError, ConnectionRevokedError, holding, protect
from guardrails._runtime.housekeeper import run_later
from guardrails.integrations.sqlalchemy import _revoking
from support.polling import poll, wait_until
from support.sql_lab import AsyncLab, in_threads, on_loops, on_postgres, those

HERE = "test_revoked_connections.py:"

LIMIT = 0.1
"""Seconds for which a connection may be held idle here."""


@pytest.fixture
def table(lab):
    """A table of the test's own."""
    lab.aside("drop table if exists revoked", "create table revoked (a int)")
    yield "revoked"
    lab.aside("drop table revoked")


def idle(lab, until):
    """Waits on a checkout until something is so: in a thread, or in SQLAlchemy's greenlet."""
    end = time.monotonic() + 10
    while not until():
        assert time.monotonic() < end, "waited in vain"
        if isinstance(lab, AsyncLab):
            await_only(asyncio.sleep(0.005))
        else:
            time.sleep(0.005)


def until_revoked(lab):
    """Waits on the only checkout until it is taken back."""
    idle(lab, lambda: lab.guard.snapshot().in_use == 0)


def protected(lab, **options):
    """An engine with a limit for idle holds; its pool has room for one more."""
    guard = {"max_idle_hold": LIMIT, "timeout": 5.0} | options.pop("guard", {})
    return lab.protect(guard=guard, **options)


def count(lab, table):
    return lab.aside(f"select count(*) from {table}")


# --- what happens to the holder ------------------------------------------------------------------


@pytest.mark.every_driver
def test_an_idle_transaction_is_rolled_back_and_its_commit_raises(lab, table):
    """Its locks and its place are free at once; the holder learns of it, and goes on with another."""
    guard = protected(lab)

    def hold(session):
        session.execute(f"insert into {table} values (1)")
        until_revoked(lab)
        assert lab.pool.checkedout() == 0
        poll(lambda: lab.server_side("true") == 0, "the session is gone from the server")
        lab.aside(f"drop table {table}", f"create table {table} (a int)")  # its lock is gone
        with pytest.raises(ConnectionRevokedError) as told:
            session.commit()
        assert told.value.guard == guard.name
        assert told.value.seconds >= LIMIT
        assert HERE in str(told.value) or "sql_lab.py" in str(told.value)
        with pytest.raises(exc.PendingRollbackError):
            session.execute("select 1")
        session.rollback()
        assert session.execute("select 42") == 42
        session.rollback()

    lab.run(hold)
    assert count(lab, table) == 0
    assert (lab.pool.checkedout(), guard.snapshot().in_use) == (0, 0)


NEXT = {
    "execute": lambda lab, session: session.execute("select 1"),
    "executemany": lambda lab, session: session.connection.execute(
        text("insert into revoked values (:a)"), [{"a": 1}, {"a": 2}]
    ),
    "savepoint": lambda lab, session: session.connection.begin_nested(),
    "commit": lambda lab, session: session.commit(),
    "cursor": lambda lab, session: session.connection.connection.cursor().execute("select 1"),
    "raw commit": lambda lab, session: session.connection.connection.commit(),
    "isolation level": lambda lab, session: session.connection.get_isolation_level(),
    "driver's own": lambda lab, session: session.connection.connection.driver_connection.execute("select 1"),
    "detach": lambda lab, session: session.connection.detach(),
}


@pytest.mark.parametrize("following", NEXT)
def test_whatever_comes_next_raises(lab, table, following):
    """The error is the same for every use of the connection, with each driver, and names the place."""
    protected(lab)

    def hold(session):
        session.execute("select 1")
        until_revoked(lab)
        with pytest.raises(ConnectionRevokedError):
            NEXT[following](lab, session)
        session.rollback()

    lab.run(hold)
    assert lab.soon() == 42


def test_blocks_unwind_quietly(lab, table):
    """A rollback, also to a savepoint, and a close succeed: the database has rolled back already."""
    protected(lab)

    def hold(session):
        outer = session.connection.begin()
        inner = session.connection.begin_nested()
        until_revoked(lab)
        inner.rollback()
        outer.rollback()

    def fail(session):
        with session.connection.begin(), session.connection.begin_nested():
            until_revoked(lab)
            raise KeyError("the holder's own")

    lab.run(hold)
    with pytest.raises(KeyError, match="the holder's own"):
        lab.run(fail)
    lab.run(lambda session: (session.execute("select 1"), until_revoked(lab)))
    assert lab.pool.checkedout() == 0


def test_a_stream_between_two_fetches_is_idle(lab):
    """Its next fetch raises, and its close is quiet."""
    protected(lab)

    def hold(session):
        query = text(lab.backend.say("select n from generate_series(1, 5000) n"))
        rows = session.connection.execution_options(stream_results=True, max_row_buffer=10).execute(query)
        assert rows.fetchone() is not None
        until_revoked(lab)
        with pytest.raises(ConnectionRevokedError):
            rows.fetchall()

    lab.run(hold)
    assert lab.pool.checkedout() == 0


def test_the_innocent_keep_their_connections(lab):
    """The error of one holder costs no other connection of the pool."""
    protected(lab)
    mine = lab.query("select pg_backend_pid()")

    def hold(session):
        assert session.execute("select pg_backend_pid()") == mine
        until_revoked(lab)
        with contextlib.suppress(ConnectionRevokedError):
            session.execute("select 1")

    kept = []

    def beside(session):
        kept.append(session.execute("select pg_backend_pid()"))
        session.rollback()
        hold_other = []

        def other(inner):
            hold_other.append(inner)

        return other

    lab.run(hold)
    other = lab.query("select pg_backend_pid()")
    assert other != mine
    lab.run(lambda session: until_idle_revoked(lab, session))
    again = lab.query("select pg_backend_pid()")
    assert again != other


def until_idle_revoked(lab, session):
    session.execute("select 1")
    until_revoked(lab)
    with contextlib.suppress(ConnectionRevokedError):
        session.execute("select 1")


# --- never in the middle of work -----------------------------------------------------------------


@pytest.mark.every_driver
def test_a_statement_may_take_longer_than_the_limit(lab):
    """A connection with a statement on it is not idle."""
    protected(lab)
    assert lab.query(f"select 42 from pg_sleep({LIMIT * 4})") == 42


@on_postgres
def test_a_commit_may_take_longer_than_the_limit(lab, table):
    """So is one with a COMMIT on it."""
    protected(lab)
    with lab.backend.connect() as other:
        other.execute(
            "create function linger() returns trigger language plpgsql as "
            f"$$begin perform pg_sleep({LIMIT * 4}); return null; end$$;"
            f"create constraint trigger linger after insert on {table} "
            "deferrable initially deferred for each row execute function linger();"
        )
        try:
            lab.run(lambda session: (session.execute(f"insert into {table} values (1)"), session.commit()))
        finally:
            other.execute(f"drop trigger linger on {table}; drop function linger")
    assert count(lab, table) == 1


@pytest.mark.parametrize("timeout", [5.0, None])
def test_listeners_may_take_longer_than_the_limit(lab, timeout):
    """A listener of an event is at work, also without a timeout that bounds it."""
    protected(lab, guard={"timeout": timeout})
    engine = getattr(lab.engine, "sync_engine", lab.engine)
    seen = []

    def linger(*_):
        seen.append(lab.guard.snapshot().in_use)
        began = time.monotonic()
        idle(lab, lambda: time.monotonic() > began + LIMIT * 3)
        seen.append(lab.guard.snapshot().in_use)

    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(engine, name, linger)
    lab.run(lambda session: (session.execute("select 1"), session.commit()))
    assert seen == [1] * 6


def test_a_listener_of_the_checkout_may_take_longer_than_the_limit(lab):
    """Nor is a connection idle before its caller has it."""
    protected(lab)
    engine = getattr(lab.engine, "sync_engine", lab.engine)

    @event.listens_for(engine, "checkout")
    def linger(*_):
        began = time.monotonic()
        idle(lab, lambda: time.monotonic() > began + LIMIT * 3)

    assert lab.query("select 42") == 42


@pytest.mark.parametrize("lab", ["psycopg", "psycopg_async"], indirect=True)
def test_a_copy_is_work_block_by_block(lab, table):
    """A COPY between two blocks is idle; one that goes on is not taken back."""
    protected(lab)

    def hold(session):
        raw = session.connection.connection
        if isinstance(lab, AsyncLab):
            pytest.skip("SQLAlchemy's cursor has no copy()")
        with raw.cursor().copy(f"copy {table} from stdin") as copy:
            for n in range(10):
                copy.write_row((n,))
                time.sleep(LIMIT / 4)
        raw.commit()

    lab.run(hold)
    assert count(lab, table) == 10


def test_the_driver_s_own_connection_is_not_taken_back(lab):
    """Work on it cannot be seen, so a holder that has asked for it keeps it."""
    guard = protected(lab)

    def hold(session):
        assert session.connection.connection.driver_connection is not None
        session.execute("select 1")
        began = time.monotonic()
        idle(lab, lambda: time.monotonic() > began + LIMIT * 4)
        assert guard.snapshot().in_use == 1
        assert session.execute("select 42") == 42

    lab.run(hold)


@those("psycopg", "psycopg2", "pg8000", "pymysql", "mysqldb")
def test_a_prepared_transaction_is_not_touched(lab, table):
    """It would keep its locks, and its holder would have no way to end it."""
    protected(lab)
    with lab.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text(f"insert into {table} values (1)"))
        transaction.prepare()
        time.sleep(LIMIT * 4)
        assert lab.guard.snapshot().in_use == 1
        transaction.commit()
        poll(lambda: lab.guard.snapshot().in_use == 0, "an idle connection after it")
    assert count(lab, table) == 1


# --- leaks ---------------------------------------------------------------------------------------


@in_threads
def test_a_leak_heals(lab):
    """Connections that are never returned cost the pool no place; their later return does nothing."""
    guard = protected(lab, pool_size=2, max_overflow=2)
    leaked = [lab.engine.connect() for _ in range(4)]
    poll(lambda: guard.snapshot().in_use == 0, "the leaked connections are taken back")
    poll(lambda: lab.pool.checkedout() == 0, "their places are back")
    assert lab.all([lambda: lab.query("select 42 from pg_sleep(0.05)")] * 4) == [42] * 4
    for connection in leaked[:2]:
        connection.close()
    del connection
    leaked.clear()
    gc.collect()
    assert (lab.pool.checkedout(), lab.pool.overflow(), guard.snapshot().in_use) == (0, 0, 0)
    assert lab.all([lambda: lab.query("select 42")] * 4) == [42] * 4


@on_loops
def test_a_leak_of_a_task_heals(lab):
    """Likewise on an event loop."""
    guard = protected(lab, pool_size=2, max_overflow=2)

    async def leak():
        leaked = [await lab.engine.connect() for _ in range(4)]
        while lab.pool.checkedout():
            await asyncio.sleep(0.005)
        answers = await asyncio.gather(*[ask() for _ in range(4)])
        await leaked.pop().close()
        return leaked, answers

    async def ask():
        async with lab.engine.connect() as connection:
            return (await connection.execute(text("select 42"))).scalar()

    leaked, answers = lab.runner.run(leak())
    assert answers == [42] * 4
    leaked.clear()
    gc.collect()
    assert (lab.pool.checkedout(), lab.pool.overflow(), guard.snapshot().in_use) == (0, 0, 0)


@on_loops
def test_a_leak_of_a_loop_that_has_ended_heals(lab):
    """The slot comes back and the session ends, although no code of the loop runs any more."""
    kept = []

    async def leak():
        engine = lab.make_engine(pool_size=1, max_overflow=0)
        kept.append(protect(engine, name="db", max_idle_hold=LIMIT))
        kept.append(await engine.connect())

    asyncio.run(leak())
    guard = kept[0]
    poll(lambda: guard.snapshot().in_use == 0, "the slot is back")
    poll(lambda: lab.server_side("true") == 0, "the session is gone")
    guard.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of a transport that its loop has left open
        kept.clear()
        gc.collect()


@in_threads
def test_a_raw_connection_is_taken_back(lab):
    """Every cursor of it raises, and its close is quiet."""
    guard = protected(lab)
    raw = lab.engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute("select 1")
    poll(lambda: guard.snapshot().in_use == 0, "it is taken back")
    for use in (cursor.execute, raw.cursor().execute):
        with pytest.raises(ConnectionRevokedError):
            use("select 1")
    with pytest.raises(ConnectionRevokedError):
        raw.commit()
    cursor.close()
    raw.rollback()
    raw.close()
    assert lab.query("select 42") == 42


@in_threads
@pytest.mark.parametrize("pool", [NullPool, StaticPool, AssertionPool])
def test_every_kind_of_pool(lab, pool):
    """A pool without a limit, one with a single connection for all, and one that lets out one."""
    lab.engine = create_engine(lab.url(), connect_args=lab.backend.connect_args(lab.driver), poolclass=pool)
    options = {} if pool is AssertionPool else {"max_concurrent_calls": 3}
    guard = lab.guard = protect(lab.engine, name="db", max_idle_hold=LIMIT, **options)
    first = lab.engine.connect()
    first.execute(text("select 1"))
    poll(lambda: guard.snapshot().in_use == 0, "it is taken back")
    with lab.engine.connect() as second:
        assert second.execute(text("select 42")).scalar() == 42
        with pytest.raises(ConnectionRevokedError):
            first.execute(text("select 1"))
        assert second.execute(text("select 42")).scalar() == 42
    first.close()
    assert guard.snapshot().in_use == 0


@in_threads
def test_a_shared_connection_is_idle_when_it_is_so_for_all(lab):
    """A StaticPool's connection is taken back from all its holders at once."""
    lab.engine = create_engine(
        lab.url(), connect_args=lab.backend.connect_args(lab.driver), poolclass=StaticPool
    )
    guard = lab.guard = protect(lab.engine, name="db", max_idle_hold=LIMIT, max_concurrent_calls=3)
    holders = [lab.engine.connect() for _ in range(3)]
    holders.pop().close()
    for _ in range(6):
        holders[0].execute(text("select 1"))
        time.sleep(LIMIT / 2)
        assert guard.snapshot().in_use == 2
    poll(lambda: guard.snapshot().in_use == 0, "it is taken back")
    for holder in holders:
        with pytest.raises(ConnectionRevokedError):
            holder.execute(text("select 1"))
        holder.close()
    assert lab.query("select 42") == 42


def test_a_close_that_waits_does_not_hold_the_housekeeper_up(tmp_path):
    """Such as that of a driver that is not known, whose socket nobody can shut."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", pool_size=2)
    guard = protect(engine, name="db", max_idle_hold=LIMIT)
    closing, go_on = threading.Event(), threading.Event()

    @event.listens_for(engine.pool, "close")
    def wait(*_):
        closing.set()
        go_on.wait(10)

    try:
        holders = [engine.connect() for _ in range(2)]
        assert closing.wait(5)
        poll(lambda: guard.snapshot().in_use == 0, "the other one is taken back meanwhile")
        assert engine.pool.checkedout() == 0
    finally:
        go_on.set()
    for holder in holders:
        holder.close()
    engine.dispose()


def test_connections_that_belong_to_threads_are_refused():
    """No other thread may close them."""
    engine = create_engine("sqlite://", poolclass=SingletonThreadPool)
    with pytest.raises(ConfigurationError, match="max_idle_hold must be None with a SingletonThreadPool"):
        protect(engine, max_concurrent_calls=1, max_idle_hold=1.0)


def test_sqlite(tmp_path):
    """Its transaction holds a lock on the whole file."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    guard = protect(engine, name="db", max_idle_hold=LIMIT)
    with engine.begin() as connection:
        connection.execute(text("create table t (a int)"))
    holder = engine.connect()
    holder.execute(text("insert into t values (1)"))
    poll(lambda: guard.snapshot().in_use == 0, "it is taken back")
    with engine.begin() as connection:
        connection.execute(text("insert into t values (2)"))
    with pytest.raises(ConnectionRevokedError):
        holder.commit()
    holder.close()
    with engine.begin() as connection:
        assert connection.execute(text("select a from t")).scalars().all() == [2]
    engine.dispose()


# --- a server that does not answer -------------------------------------------------------------------


@pytest.mark.every_driver
def test_a_frozen_server_delays_nothing(lab, monkeypatch):
    """Slot and place are free at once, other tasks of the housekeeper run, and the session ends later."""
    monkeypatch.setattr(_revoking, "GRACE", 30.0)  # whoever waited for the server would be seen
    guard = protected(lab)

    def hold(session):
        session.execute("select 1")
        with lab.frozen():
            began = time.monotonic()
            until_revoked(lab)
            assert lab.pool.checkedout() == 0
            ran = threading.Event()
            run_later(ran.set, 0.0)
            idle(lab, ran.is_set)
            assert time.monotonic() - began < LIMIT + 1
        with pytest.raises(ConnectionRevokedError):
            session.execute("select 1")
        session.rollback()

    lab.run(hold)
    assert lab.soon() == 42
    poll(lambda: lab.pause(0.01) or lab.server_side("true") <= 1, "the session is gone from the server")
    assert guard.snapshot().in_use == 0


def test_the_slot_is_back_before_the_connection_is_closed(lab):
    """Whatever the close waits for, such as a listener of the application's, delays no other caller."""
    guard = protected(lab)
    seen = []

    @event.listens_for(lab.pool, "invalidate")
    def look(*_):
        seen.append((guard.snapshot().in_use, lab.pool.checkedout()))

    lab.run(lambda session: (session.execute("select 1"), until_revoked(lab), idle(lab, lambda: seen)))
    assert seen == [(0, 0)]


# --- holding ---------------------------------------------------------------------------------------


@in_threads
def test_holding_exempts_what_is_taken_in_the_block_and_what_was_out(lab):
    """The innermost block counts, others' connections are not covered, and the end starts the idle time."""
    guard = protected(lab, pool_size=3)
    before = lab.engine.connect()
    with holding(30):
        inside = lab.engine.connect()
        taken = []
        other = threading.Thread(target=lambda: taken.append(lab.engine.connect()))
        other.start()
        other.join()
        poll(lambda: guard.snapshot().in_use == 2, "the other thread's is taken back")
        time.sleep(LIMIT * 3)
        assert guard.snapshot().in_use == 2
        assert before.execute(text("select 42")).scalar() == 42
        with holding(LIMIT * 2):
            poll(lambda: guard.snapshot().in_use == 0, "the inner block's limit counts")
    for connection in (before, inside, *taken):
        connection.close()
    with holding(30), lab.engine.connect() as connection:
        time.sleep(LIMIT * 3)
    with holding(30):
        connection = lab.engine.connect()
        time.sleep(LIMIT * 2)
    assert connection.execute(text("select 42")).scalar() == 42
    poll(lambda: guard.snapshot().in_use == 0, "after the block the limit counts again")
    connection.close()


@on_loops
def test_holding_in_tasks(lab):
    """It covers the task that enters it and those it starts, and no other."""
    guard = protected(lab, pool_size=3)

    async def hold():
        connection = await lab.engine.connect()
        await connection.execute(text("select 1"))
        return connection

    async def main():
        mine = await hold()
        others = await asyncio.create_task(hold())
        with holding(30):
            child = await asyncio.create_task(hold())
            await asyncio.sleep(LIMIT * 4)
            assert guard.snapshot().in_use == 2
            for connection in (mine, child):
                assert (await connection.execute(text("select 42"))).scalar() == 42
            with pytest.raises(ConnectionRevokedError):
                await others.execute(text("select 1"))
        for connection in (mine, child, others):
            await connection.close()

    lab.runner.run(main())


@pytest.mark.parametrize("seconds", [0, -1, "5", None, True, float("inf"), float("nan")])
def test_holding_refuses_what_is_no_time(seconds):
    with pytest.raises(ConfigurationError, match="holding: seconds must be a number of seconds above 0"):
        holding(seconds)


# --- races -----------------------------------------------------------------------------------------


class Contest:
    """Statements that begin as their connections become due: each runs whole, or raises and has not run."""

    limit = 0.01

    def __init__(self, lab, table, attempts):
        self.lab, self.table, self.attempts = lab, table, attempts
        self.guard = protected(
            lab, pool_size=5, guard={"max_idle_hold": self.limit, "max_wait_duration": 5.0}
        )
        self.ran, self.lost = [], []
        self.pause = self.limit

    @contextlib.contextmanager
    def attempt(self, number):
        """The statement of this number, about when the connection is due; the pause follows the moment.

        On a slow machine the connection is due before its first statement, too.
        """
        try:
            yield text(f"insert into {self.table} values ({number})")
            self.ran.append(number)
            self.pause += 0.00005
        except ConnectionRevokedError:
            self.lost.append(number)
            self.pause = max(0.0, self.pause - 0.00005)

    def in_turn(self):
        """One after the other, in one thread."""
        for number in range(self.attempts):
            with self.attempt(number) as insert, self.lab.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(text("select 1"))
                time.sleep(self.pause)
                connection.execute(insert)
            wait_until(lambda: self.lab.pool.checkedout() == self.guard.snapshot().in_use == 0)

    async def five_at_once(self):
        """Five tasks of one loop, on which connections are taken back, too."""
        await asyncio.gather(*[self._task(range(first, self.attempts, 5)) for first in range(5)])

    async def _task(self, numbers):
        for number in numbers:
            with self.attempt(number) as insert:
                async with self.lab.engine.connect() as connection:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    await connection.execute(text("select 1"))
                    await asyncio.sleep(self.pause)
                    await connection.execute(insert)

    def check(self):
        """What has run is there once, what has raised is not, and both have happened."""
        if isinstance(self.lab, AsyncLab):
            self.lab.runner.run(self.five_at_once())
        else:
            self.in_turn()
        assert (self.lab.pool.checkedout(), self.guard.snapshot().in_use) == (0, 0)
        assert len(self.ran) + len(self.lost) == self.attempts
        assert self.ran
        assert self.lost
        with self.lab.backend.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"select a from {self.table}")
            assert sorted(row[0] for row in cursor.fetchall()) == sorted(self.ran)


def test_a_statement_at_the_moment_of_the_revocation(lab, table):
    """It runs, or it raises and has not run; nothing else."""
    Contest(lab, table, 60).check()


@pytest.mark.slow
@pytest.mark.every_driver
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lab", ["psycopg", "asyncpg", "pymysql", "aiomysql"], indirect=True)
def test_a_thousand_statements_at_the_moment_of_the_revocation(lab, table):
    """Likewise, at as many places of the code as it takes."""
    Contest(lab, table, 1000).check()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_ten_thousand_statements_at_the_moment_of_the_revocation(lab, table):
    """Likewise."""
    Contest(lab, table, 10_000).check()


# --- a thousand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaks", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_many_leaks_beside_work(lab, table, leaks):
    """All are taken back, the workers lose no statement and get no other's result, and the pool is whole."""
    guard = protected(
        lab, pool_size=10, max_overflow=10, guard={"max_idle_hold": 0.25, "max_wait_duration": 5.0}
    )
    over, failures, done = threading.Event(), [], [0]

    def work(number):
        while not over.is_set():
            try:
                with lab.engine.begin() as connection:
                    me = number * 1_000_000 + done[0]
                    assert connection.execute(text(f"select {me}")).scalar() == me
                    connection.execute(text(f"insert into {table} values ({me})"))
                done[0] += 1
            except Exception as error:
                failures.append(error)
                return

    worker = threading.Thread(target=work, args=(1,))
    worker.start()
    kept = []
    try:
        while len(kept) < leaks:
            kept.append(lab.engine.connect())
            if len(kept) % 15 == 0:
                poll(lambda: guard.snapshot().in_use <= 1, "the leaked ones are taken back", 20)
    finally:
        over.set()
        worker.join()
    assert failures == []
    assert count(lab, table) == done[0]
    for connection in kept[::2]:
        connection.close()
    kept.clear()
    connection = None
    gc.collect()
    poll(lambda: (lab.pool.checkedout(), guard.snapshot().in_use) == (0, 0), "the pool is whole")
    lab.until(lambda: lab.server_side("true") <= 10, "the sessions that were taken back have ended")


@pytest.mark.parametrize("leaks", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("lab", ["asyncpg"], indirect=True)
def test_many_leaks_of_tasks_beside_work(lab, table, leaks):
    """Likewise on an event loop."""
    guard = protected(
        lab, pool_size=10, max_overflow=10, guard={"max_idle_hold": 0.25, "max_wait_duration": 5.0}
    )
    over, done = asyncio.Event(), []

    async def work():
        while not over.is_set():
            async with lab.engine.begin() as connection:
                me = len(done)
                assert (await connection.execute(text(f"select {me}"))).scalar() == me
                await connection.execute(text(f"insert into {table} values ({me})"))
            done.append(me)

    async def until_free(most):
        while guard.snapshot().in_use > most:
            await asyncio.sleep(0.005)

    async def main():
        worker, kept = asyncio.create_task(work()), []
        while len(kept) < leaks:
            kept.append(await lab.engine.connect())
            if len(kept) % 15 == 0:
                await until_free(1)
        over.set()
        await worker
        for connection in kept[::2]:
            await connection.close()
        await until_free(0)

    lab.runner.run(main())
    gc.collect()
    assert count(lab, table) == len(done) > 0
    assert (lab.pool.checkedout(), guard.snapshot().in_use) == (0, 0)
    lab.until(lambda: lab.server_side("true") <= 10, "the sessions that were taken back have ended")


# --- the error, the log, the modes -------------------------------------------------------------------


@in_threads
def test_the_log_has_one_line_for_a_place(lab, caplog):
    """It names the line and what to do, and no SQL."""
    guard = protected(lab)
    with caplog.at_level(logging.WARNING, "guardrails"):
        kept = []
        for _ in range(3):
            kept.append(lab.engine.connect())
            kept[-1].execute(text("select 'canary'"))
            poll(lambda: guard.snapshot().in_use == 0, "it is taken back")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1, lines
    assert HERE in lines[0]
    assert "holding()" in lines[0]
    assert "canary" not in lines[0]
    for connection in kept:
        connection.close()


@in_threads
def test_the_error_for_code_that_handles_the_driver_s(lab):
    """With ``raise_as="driver"`` it is an OperationalError, too; it pickles and copies."""
    guard = protected(lab, guard={"raise_as": "driver"})
    connection = lab.engine.connect()
    poll(lambda: guard.snapshot().in_use == 0, "it is taken back")
    with pytest.raises(exc.OperationalError) as told:
        connection.execute(text("select 1"))
    connection.close()
    error = told.value
    assert isinstance(error, ConnectionRevokedError)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again), again.where) == (type(error), str(error), error.where)


def test_an_asynchronous_session_goes_on_after_its_rollback(postgres):
    """As after any other lost connection."""

    async def main():
        engine = create_async_engine(postgres.url("asyncpg"), pool_size=1, max_overflow=0)
        guard = protect(engine, name="db", max_idle_hold=LIMIT)
        async with AsyncSession(engine) as session:
            await session.execute(text("select 1"))
            while guard.snapshot().in_use:
                await asyncio.sleep(0.005)
            with pytest.raises(ConnectionRevokedError):
                await session.execute(text("select 1"))
            await session.rollback()
            assert (await session.execute(text("select 42"))).scalar() == 42
        await engine.dispose()
        guard.detach()

    asyncio.run(main())


@in_threads
@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_guard_that_does_not_enforce_takes_nothing_back(lab, mode):
    """In shadow each idle hold is counted once; switched off, none is. Enforcing begins at once."""
    guard = protected(lab, guard={"mode": mode})
    with lab.engine.connect() as connection:
        time.sleep(LIMIT * 4)
        assert connection.execute(text("select 42")).scalar() == 42
        assert guard.snapshot().would_stop == (mode == "shadow")
        guard.set_mode("enforce")
        poll(lambda: lab.pool.checkedout() == 0, "it is taken back")
        with pytest.raises(ConnectionRevokedError):
            connection.execute(text("select 1"))


@in_threads
def test_detaching_the_guard_ends_the_limit(lab):
    """A connection that is out then is its holder's, and one that was taken back stays so."""
    guard = protected(lab)
    lost = lab.engine.connect()
    poll(lambda: guard.snapshot().in_use == 0, "it is taken back")
    kept = lab.engine.connect()
    guard.detach()
    time.sleep(LIMIT * 3)
    assert kept.execute(text("select 42")).scalar() == 42
    with pytest.raises(ConnectionRevokedError):
        lost.execute(text("select 1"))
    lost.close()
    kept.close()
    assert lab.pool.checkedout() == 0


@in_threads
def test_disposing_of_the_pool_leaves_the_limit(lab):
    """A connection of the old pool is taken back into the old pool."""
    guard = protected(lab)
    held = lab.engine.connect()
    lab.engine.dispose()
    with lab.engine.connect() as connection:
        connection.execute(text("select 1"))
    poll(lambda: lab.server_side("true") <= 1, "the old one is taken back")
    with pytest.raises(ConnectionRevokedError):
        held.execute(text("select 1"))
    held.close()
    assert (lab.pool.checkedout(), guard.snapshot().in_use) == (0, 0)


def test_without_the_setting_nothing_is_taken_back(postgres):
    """It is off by default."""
    engine = create_engine(postgres.url("psycopg"), pool_size=1, max_overflow=0)
    guard = protect(engine, name="db")
    with engine.connect() as connection:
        time.sleep(LIMIT * 3)
        assert connection.execute(text("select 42")).scalar() == 42
    engine.dispose()
    guard.detach()
