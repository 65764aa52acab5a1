"""SQLite has no server to ask; its statements are interrupted where they run."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import time

import aiosqlite
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from guardrails import CallTimeoutError, ConfigurationError, protect
from guardrails._dbapi.stopping import TimeLimiter
from guardrails._pool.limits import time_allowed
from support.lateness import LATE

ENDLESS = text("with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n")


def test_endless_statement_is_interrupted(tmp_path):
    """A statement in this very process stops at its deadline, and the pool is whole."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine, timeout=0.2)
    start = time.monotonic()
    with engine.connect() as connection, pytest.raises(CallTimeoutError):
        connection.execute(ENDLESS)
    assert 0.2 <= time.monotonic() - start < 0.2 + LATE
    assert db.snapshot().in_use == engine.pool.checkedout() == 0
    with engine.connect() as connection:
        assert connection.execute(text("select 3")).scalar() == 3
    engine.dispose()


def test_endless_statement_of_aiosqlite_is_interrupted(tmp_path):
    """Likewise in the thread aiosqlite keeps for each connection."""

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db")
        db = protect(engine, timeout=0.2)
        start = time.monotonic()
        async with engine.connect() as connection:
            with pytest.raises(CallTimeoutError):
                await connection.execute(ENDLESS)
        assert 0.2 <= time.monotonic() - start < 0.2 + LATE
        assert db.snapshot().in_use == 0
        async with engine.connect() as connection:
            assert (await connection.execute(text("select 3"))).scalar() == 3
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("comes", [False, True], ids=["never", "late"])
def test_connecting_that_forgets_its_cancellation_is_cancelled_again(tmp_path, comes):
    """As `asyncio.wait_for` of Python 3.11 does at times. What comes after all is used."""
    forgotten = []

    async def connect(*_, **__):
        while not forgotten:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                forgotten.append(1)
        if not comes:
            await asyncio.sleep(30)
        return await aiosqlite.connect(tmp_path / "db")

    async def main():
        engine = create_async_engine("sqlite+aiosqlite://", connect_args={"async_creator_fn": connect})
        db = protect(engine, max_concurrent_calls=3, timeout=0.2)
        start = time.monotonic()
        with contextlib.nullcontext() if comes else pytest.raises(CallTimeoutError):
            async with engine.connect() as connection:
                assert (await connection.execute(text("select 3"))).scalar() == 3
        assert 0.2 <= time.monotonic() - start < 0.45 + LATE
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0.3)  # nothing rings any more
        assert db.snapshot().in_use == 0
        await engine.dispose()

    asyncio.run(main())


def test_endless_fetch_is_interrupted(tmp_path):
    """SQLite computes rows as they are fetched: the fetch has a deadline too."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine, timeout=0.2)
    rare = (
        "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n where i in (1, -1)"
    )
    start = time.monotonic()
    with engine.connect() as connection:
        result = connection.execute(text(rare))  # has found the first row
        with pytest.raises(CallTimeoutError):
            result.fetchall()
    assert 0.2 <= time.monotonic() - start < 0.2 + LATE
    assert db.snapshot().in_use == engine.pool.checkedout() == 0
    engine.dispose()


@pytest.fixture
def locked(tmp_path):
    """A database whose only table another connection is writing."""
    other = sqlite3.connect(tmp_path / "db", isolation_level=None)
    other.execute("create table t (id int)")
    other.execute("begin immediate")
    yield f"{tmp_path}/db"
    other.close()


def test_wait_for_a_lock_ends_at_the_deadline(locked):
    """interrupt() does not reach SQLite's busy wait; a call must not take its five seconds."""
    engine = create_engine(f"sqlite:///{locked}", connect_args={"timeout": 4.0})
    db = protect(engine, timeout=0.2)
    start = time.monotonic()
    with engine.connect() as connection, pytest.raises(CallTimeoutError):
        connection.execute(text("insert into t values (1)"))
    assert 0.2 <= time.monotonic() - start < 0.2 + LATE
    assert db.snapshot().in_use == engine.pool.checkedout() == 0
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from t")).scalar() == 0
    engine.dispose()


def test_wait_for_a_lock_of_aiosqlite_ends_at_the_deadline(locked):
    """Likewise in aiosqlite's thread."""

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{locked}", connect_args={"timeout": 4.0})
        db = protect(engine, timeout=0.2)
        start = time.monotonic()
        async with engine.connect() as connection:
            with pytest.raises(CallTimeoutError):
                await connection.execute(text("insert into t values (1)"))
        assert 0.2 <= time.monotonic() - start < 0.2 + LATE
        assert db.snapshot().in_use == 0
        await engine.dispose()

    asyncio.run(main())


def test_shorter_busy_timeout_of_the_users_is_kept(locked):
    """A wait that is shorter than the deadline stays SQLite's own error, which is a failure."""
    engine = create_engine(f"sqlite:///{locked}", connect_args={"timeout": 0.05})
    db = protect(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("pragma busy_timeout").scalar() == 50
        with pytest.raises(OperationalError, match="locked"):
            connection.execute(text("insert into t values (1)"))
    assert db.snapshot().failed == 1
    engine.dispose()


def test_busy_timeout_comes_back_after_a_hurried_statement(tmp_path):
    """A short deadline lowers the wait for locks for its own statements only."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", connect_args={"timeout": 2.0})
    protect(engine)
    with engine.connect() as connection:
        hurried = {"guardrails_timeout": 0.3}
        question = text("pragma busy_timeout")
        assert connection.execute(question, execution_options=hurried).scalar() == 300
        assert connection.execute(question).scalar() == 2000
    engine.dispose()


def test_violated_constraint_is_an_answer(tmp_path):
    """An error about the data is no failure of the database."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine)
    with engine.begin() as connection:
        connection.execute(text("create table t (id int primary key)"))
        connection.execute(text("insert into t values (1)"))
    with engine.begin() as connection, pytest.raises(IntegrityError):
        connection.execute(text("insert into t values (1)"))
    assert db.snapshot().failed == 0
    engine.dispose()


def test_memory_database_needs_a_number():
    """A pool of one connection per thread has no limit the guard could take over."""
    with pytest.raises(ConfigurationError, match="max_concurrent_calls"):
        protect(create_engine("sqlite://"))


def test_stopped_memory_database_begins_anew():
    """A database that lives in its connection goes with it; the engine works on."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    db = protect(engine, timeout=0.2, max_concurrent_calls=1)
    tables = text("select count(*) from sqlite_master")
    with engine.begin() as connection:
        connection.execute(text("create table t (id int)"))
        assert connection.execute(tables).scalar() == 1
    with engine.connect() as connection, pytest.raises(CallTimeoutError):
        connection.execute(ENDLESS)
    with engine.connect() as connection:
        assert connection.execute(tables).scalar() == 0
    assert db.snapshot().in_use == 0
    engine.dispose()


def test_memory_database_without_deadlines_keeps_its_data():
    """With ``timeout=None`` a statement runs for as long as it takes, and the data stays."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    protect(engine, timeout=None, max_concurrent_calls=1)
    with engine.begin() as connection:
        connection.execute(text("create table t (id int)"))
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from sqlite_master")).scalar() == 1
    engine.dispose()


def test_unknown_driver_is_guarded_only_without_deadlines(tmp_path):
    """What cannot be stopped must not be promised to stop."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    engine.dialect.driver = "carrier_pigeon"
    with pytest.raises(ConfigurationError, match=r"carrier_pigeon.*timeout=None.*psycopg"):
        protect(engine)
    db = protect(engine, timeout=None)
    with engine.connect() as connection:
        assert connection.execute(text("select 3")).scalar() == 3
    assert db.snapshot().succeeded > 0
    engine.dispose()


@pytest.fixture
def make_engine(tmp_path):
    """Makes engines on one file, and disposes of them."""
    engines = []

    def make(**options):
        engines.append(create_engine(f"sqlite:///{tmp_path}/db", **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("asked", [None, 0.2, 60])
@pytest.mark.parametrize("timeout", [None, 5.0])
def test_the_scope_is_not_asked_for_a_timeout_outside_every_scope(make_engine, monkeypatch, timeout, asked):
    """Outside every scope a statement is not asked for one, and has the time it would have had."""
    engine = make_engine()
    db = protect(engine, timeout=timeout)
    engine.connect().close()  # a first connection is asked this and that
    given = []
    run = TimeLimiter.run
    monkeypatch.setattr(TimeLimiter, "run", lambda self, *args: given.append(args[3]) or run(self, *args))
    options = {} if asked is None else {"guardrails_timeout": asked}
    with engine.connect() as connection:
        connection.execute(text("select 1"), execution_options=options).all()
    *statement, rollback = given
    assert set(statement) == {time_allowed(db, asked)[0]}
    assert rollback == time_allowed(db)[0]


@pytest.mark.parametrize("place", ["engine", "connection", "statement", "execution", "session"])
def test_a_misspelt_option_is_refused_wherever_it_is_given(make_engine, place):
    """SQLAlchemy takes any name at each of these places."""
    engine = make_engine()
    protect(engine)
    wrong = {"guardrails_time_out": 5}
    statement = text("select 1").execution_options(**(wrong if place == "statement" else {}))

    def user():
        if place == "session":
            return Session(engine)
        connection = (engine.execution_options(**wrong) if place == "engine" else engine).connect()
        return connection.execution_options(**(wrong if place == "connection" else {}))

    options = wrong if place in {"execution", "session"} else {}
    for _ in range(2):  # the second time the names are known
        with user() as asked, pytest.raises(ConfigurationError, match="did you mean 'guardrails_timeout'"):
            asked.execute(statement, execution_options=options)
    assert engine.pool.checkedout() == 0
    with engine.connect() as connection:
        assert connection.execute(text("select 2"), execution_options={"mine": 1}).scalar() == 2


def test_a_misspelt_option_of_an_engine_is_refused_when_it_is_protected(make_engine):
    """Nothing is attached."""
    engine = make_engine(execution_options={"guardrails_timout": 5})
    with pytest.raises(ConfigurationError, match="did you mean 'guardrails_timeout'"):
        protect(engine)
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar() == 1


def calls_of(body):
    """Python functions that are called in a body that has run before; the collector's own are not its."""
    counts = []
    for _ in range(5):
        calls = []
        before = sys.getprofile()
        sys.setprofile(lambda _frame, event, _argument, calls=calls: calls.append(event == "call"))
        try:
            body()
        finally:
            sys.setprofile(before)
        counts.append(sum(calls))
    return min(counts)


def test_what_a_statement_costs(make_engine):
    """The guard adds few Python calls to a statement, and so few to a checkout with a statement in it."""
    bare, guarded = make_engine(), make_engine()
    protect(guarded)

    def together(engine):
        with engine.connect() as connection:
            connection.execute(text("select 1"))

    def alone(engine):
        with engine.connect() as connection:
            return calls_of(lambda: connection.execute(text("select 1")))

    for engine in (bare, guarded):
        together(engine)
        alone(engine)
    assert alone(guarded) - alone(bare) <= 20
    assert calls_of(lambda: together(guarded)) - calls_of(lambda: together(bare)) <= 45
