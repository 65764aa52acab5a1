"""A task may be cancelled wherever it waits: slot and connection come back, and nothing is done by half."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import threading
import time
import types

import anyio
import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from guardrails import protect
from support.foreign_pool import foreign_pool
from support.polling import poll
from support.prepared import tidy
from support.sql_lab import lab_with, on_loops

BATCH = (1, 2, 3)
NUMBERS = text(" union all ".join(f"select {number}" for number in range(5)))
PLACES = {"numeric_dollar": "$1", "qmark": "?"}
"""A parameter's place in the words of a driver; the others say %s."""


class Sweep:
    """Awaits a coroutine and does something at one of its await points."""

    def __init__(self, point, act):
        self.point = point
        self.act = act
        self.points = 0

    @types.coroutine
    def run(self, coroutine):
        """Everything the loop sends in or takes out passes through here."""
        step = lambda: coroutine.send(None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            except AssertionError as error:  # psycopg's word for a cancelled executemany()
                if isinstance(error.__context__, asyncio.CancelledError):
                    raise error.__context__ from error
                raise
            self.points += 1
            if self.points == self.point:
                self.act()
            try:
                sent = yield awaited
                step = lambda sent=sent: coroutine.send(sent)
            except BaseException as thrown:
                step = lambda thrown=thrown: coroutine.throw(thrown)


async def by_cancel(coroutine, point):
    """Cancels the task at an await point; returns how many were reached."""
    sweep = Sweep(point, lambda: asyncio.current_task().cancel())
    task = asyncio.ensure_future(_as_coroutine(sweep.run(coroutine)))
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return sweep.points


async def by_scope(coroutine, point):
    """The same with an anyio scope, which cancels again and again until it is left."""
    with anyio.CancelScope() as scope:
        sweep = Sweep(point, scope.cancel)
        await sweep.run(coroutine)
    return sweep.points


async def by_timeout(coroutine, point):
    """The same with the standard library's timeout."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as limit:
            sweep = Sweep(point, lambda: limit.reschedule(0))
            await sweep.run(coroutine)
    return sweep.points


async def _as_coroutine(awaitable):
    return await awaitable


async def transaction(engine):
    """The shortest there is."""
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        await connection.commit()


async def journey(engine):
    """A ping, savepoints, a stream that ends and one that is left, a ROLLBACK."""
    async with engine.connect() as connection:
        async with connection.begin_nested():
            await connection.execute(text("select 1"))
        savepoint = await connection.begin_nested()
        await savepoint.rollback()
        streamed = await connection.stream(NUMBERS, execution_options={"yield_per": 2})
        assert sorted([row[0] async for row in streamed]) == [0, 1, 2, 3, 4]
        left = await connection.stream(NUMBERS, execution_options={"yield_per": 2})
        await left.fetchone()
        await left.close()
        await connection.rollback()


async def batch(engine):
    """Many rows in one call, and a COMMIT."""
    async with engine.connect() as connection:
        await batch_on(connection)


async def batch_on(connection):
    """Likewise on a connection."""
    await connection.execute(text("insert into batches values (:n)"), [{"n": n} for n in BATCH])
    await connection.commit()


async def raw_cursors(engine):
    """The same with a cursor of raw_connection(), and then a fetch and a ROLLBACK."""
    place = PLACES.get(engine.dialect.paramstyle, "%s")
    raw = await engine.raw_connection()

    def work():
        cursor = raw.cursor()
        cursor.executemany(f"insert into batches values ({place})", [(n,) for n in BATCH])
        raw.commit()
        cursor.execute("select n from batches order by n desc")
        assert cursor.fetchone()[0] == max(BATCH)
        cursor.close()
        raw.rollback()

    try:
        await greenlet_spawn(work)
    finally:
        await greenlet_spawn(raw.close)


def ask(connection, *_):
    """A listener's own statement, below all hooks."""
    cursor = connection.cursor()
    cursor.execute("select 1")
    cursor.fetchall()
    cursor.close()
    connection.rollback()


def ask_on_return(connection, record, state):
    """Likewise, where a connection that comes back may be used."""
    if state.asyncio_safe:
        ask(connection)


async def listened(engine):
    """A statement of another isolation level, with listeners that ask the server around it."""
    listeners = engine.sync_engine
    if not event.contains(listeners, "checkout", ask):
        event.listen(listeners, "checkout", ask)
        event.listen(listeners, "reset", ask_on_return)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="SERIALIZABLE")
        await connection.execute(text("select 1"))
        await connection.commit()


def in_two_phases(connection):
    """Many rows, prepared and committed."""
    with connection.begin_twophase() as transaction:
        connection.execute(text("insert into batches values (:n)"), [{"n": n} for n in BATCH])
        transaction.prepare()
        transaction.commit()


async def two_phases(engine):
    """The same in a transaction of two phases, whose orphans keep their rows locked."""
    async with engine.connect() as connection:
        await connection.run_sync(in_two_phases)


async def of_a_level(engine):
    """A statement and a COMMIT of an isolation level, which ends with the checkout."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="SERIALIZABLE")
        await batch_on(connection)


async def sweep(engine, db, how, work, *, cold=False, tidy=lambda: None):
    """Cancels a piece of work at its first await point, at its second, and so on; returns how many it has."""
    checked_out = getattr(engine.pool, "checkedout", lambda: 0)  # a NullPool does not count
    for point in itertools.count(1):
        if cold:
            await engine.dispose()
        reached = await how(work(engine), point)
        tidy()
        assert asyncio.current_task().cancelling() == 0
        assert (checked_out(), db.snapshot().in_use) == (0, 0), f"at point {point}"
        async with engine.connect() as connection:
            assert (await connection.execute(text(f"select {point}"))).scalar() == point
        if reached < point:
            break
    async with engine.connect() as connection:
        rows = (await connection.execute(text("select count(*) from batches"))).scalar()
    assert rows % len(BATCH) == 0, "a transaction was done by half"
    assert db.snapshot().failed == 0
    return point


@pytest.fixture
def batches(lab):
    """The table that is written to; afterwards no transaction is left prepared that keeps it locked."""
    lab.aside("drop table if exists batches", "create table batches (n int)")
    yield
    lab.dispose()
    lab.until(lambda: lab.server_side("true") == 0, "the test's connections are gone from the server")
    tidy(lab)
    lab.aside("drop table batches")


every_way = pytest.mark.parametrize("how", [by_cancel, by_scope, by_timeout])
every_work = pytest.mark.parametrize(
    ("pool", "work"),
    [
        ("cold", transaction),
        ("warm", transaction),
        ("warm", journey),
        ("warm", listened),
        ("warm", batch),
        ("warm", raw_cursors),
        ("cold", raw_cursors),
    ],
    ids=lambda it: getattr(it, "__name__", it),
)


@pytest.mark.sampled(8)
@on_loops
@every_way
@every_work
@pytest.mark.usefixtures("batches")
# SQLAlchemy logs, and the drivers warn about, what a cancelled connect leaves to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_cancellation_at_every_await_point(lab, how, pool, work):
    """Wherever a task is cancelled, the slot and the connection are back and the next answer is right."""
    lab.protect(pool_size=1, max_overflow=1, pool_pre_ping=work is journey)
    points = lab.runner.run(sweep(lab.engine, lab.guard, how, work, cold=pool == "cold"))
    gc.collect()  # a driver whose connect was cancelled leaves a socket in a cycle
    assert points >= 3
    poll(lambda: lab.server_side("true") <= 2, "only the pool's connections are left")


@pytest.mark.sampled(3)
@on_loops
@every_way
@pytest.mark.parametrize("work", [two_phases, of_a_level], ids=lambda it: it.__name__)
@pytest.mark.usefixtures("batches")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_cancellation_at_every_await_point_of_phases_and_levels(lab, how, work):
    """Likewise where a transaction has two phases, or an isolation level of its own."""
    lab.protect(pool_size=1, max_overflow=1)
    usual = lab.run(lambda session: session.connection.get_isolation_level())
    orphans = functools.partial(tidy, lab) if work is two_phases else lambda: None
    assert lab.runner.run(sweep(lab.engine, lab.guard, how, work, tidy=orphans)) >= 3
    assert lab.run(lambda session: session.connection.get_isolation_level()) == usual
    gc.collect()
    poll(lambda: lab.server_side("true") <= 2, "only the pool's connections are left")


foreign_lab = lab_with(["psycopg_async"])


@pytest.mark.sampled
@every_way
@pytest.mark.parametrize("work", [transaction, batch, two_phases], ids=lambda it: it.__name__)
@pytest.mark.parametrize("loop", ["idle", "busy"])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_cancellation_at_every_await_point_over_a_foreign_pool(foreign_lab, monkeypatch, how, work, loop):
    """Likewise where the connections belong to a psycopg_pool, which has each of them back in the end.

    psycopg waits at more points on a busy loop. Cancelled there, it leaves pipeline mode on, or a two-phase
    transaction unfinished, and the next user of the connection would get no rows.
    """
    lab = foreign_lab
    if loop == "busy":
        monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", -1.0)
    lab.aside("drop table if exists batches", "create table batches (n int)")
    with foreign_pool(lab) as pool:
        lab.engine = lab.make_engine()
        lab.guard = lab.guard_engine(timeout=5)
        orphans = functools.partial(tidy, lab)
        assert lab.runner.run(sweep(lab.engine, lab.guard, how, work, tidy=orphans)) >= 3
        gc.collect()
        lab.runner.run(back(pool, 1))
    tidy(lab)
    lab.aside("drop table batches")


async def back(pool, size):
    """Waits until all connections of a pool are in it."""
    async with asyncio.timeout(10):
        while pool.get_stats()["pool_available"] != size:
            await asyncio.sleep(0.01)


@pytest.mark.sampled(3)
@every_way
@every_work
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_cancellation_at_every_await_point_of_aiosqlite(tmp_path, how, pool, work):
    """Likewise where the database is a thread."""
    if (how, work) == (by_scope, raw_cursors):
        pytest.skip(
            "a scope cancels the closing, too, and SQLite keeps the locks until the connection is collected"
        )

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db", pool_size=1, max_overflow=1)
        db = protect(engine)
        async with engine.begin() as connection:
            await connection.execute(text("create table batches (n int)"))
        # SQLite keeps a closed connection's read lock while there is a cursor of it, in a traceback perhaps.
        tidy = gc.collect if work is raw_cursors else lambda: None
        points = await sweep(engine, db, how, work, cold=pool == "cold", tidy=tidy)
        await engine.dispose()
        return points

    before = threading.enumerate()
    assert asyncio.run(main()) > 3
    # Likewise; and the thread of such a connect may have it for a moment longer. Ours stay, and have none.
    others = lambda: [thread for thread in threading.enumerate() if not thread.name.startswith("guardrails")]
    poll(lambda: set(before).issuperset(others()), "the threads of all connections are gone")
    gc.collect()


def test_cancelled_statement_of_aiosqlite_is_interrupted(tmp_path):
    """A statement without a waiting caller would block its connection's thread."""
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db", pool_size=1, max_overflow=0)
        db = protect(engine, timeout=30)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), engine.connect() as connection:
                await connection.execute(text(endless))
        assert time.monotonic() - start < 5
        assert (engine.pool.checkedout(), db.snapshot().in_use, db.snapshot().failed) == (0, 0, 0)
        async with engine.connect() as connection:
            assert (await connection.execute(text("select 3"))).scalar() == 3
        await engine.dispose()

    asyncio.run(main())
