"""What SQLAlchemy hands out under a guard keeps its name, its kind and its identity."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sqlite3
import warnings
import weakref
from unittest import mock

import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.engine import default
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool
from sqlalchemy.pool.base import _ConnectionFairy
from sqlalchemy.util import greenlet_spawn

from guardrails import BulkheadFullError, ConfigurationError, protect
from guardrails.integrations.sqlalchemy import leaks, pool_status
from support.sql_lab import on_postgres, those

made = []


def create_engine(*args, **options):
    """An engine that is disposed of after the test."""
    made.append(sqlalchemy.create_engine(*args, **options))
    return made[-1]


@pytest.fixture(autouse=True)
def dispose_engines():
    """Closes what the tests' engines have kept, and collects what a test has dropped unclosed on purpose.

    Python 3.13 warns of such a database, in whatever test the collector would pick.
    """
    yield
    while made:
        made.pop().dispose()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def url(tmp_path):
    """A database of a test's own."""
    return f"sqlite:///{tmp_path}/db"


@pytest.mark.parametrize("kind", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool])
def test_pool_and_connection_keep_their_names(url, kind):
    """The classes of a guarded pool and of its connections are called and logged as SQLAlchemy's own."""
    engine = create_engine(url, poolclass=kind)
    protect(engine, max_concurrent_calls=1)
    for _ in range(2):
        assert isinstance(engine.pool, kind)
        assert (type(engine.pool).__module__, type(engine.pool).__name__) == (kind.__module__, kind.__name__)
        assert repr(engine.pool).startswith(f"<{kind.__module__}.{kind.__qualname__} ")
        assert engine.pool.logger.name == f"sqlalchemy.pool.impl.{kind.__name__}"
        raw = engine.raw_connection()
        assert type(raw).__name__ == _ConnectionFairy.__name__
        assert type(raw).__module__ == _ConnectionFairy.__module__
        assert "uard" not in repr(raw)
        raw.close()
        assert type(raw).__name__ == _ConnectionFairy.__name__
        engine.dispose()


def test_pool_log_stays_where_it_is_after_dispose(url, caplog):
    """What a new pool logs arrives at the logger that SQLAlchemy documents."""
    caplog.set_level(logging.DEBUG, "sqlalchemy.pool")
    engine = create_engine(url)
    protect(engine)
    engine.dispose()
    caplog.clear()
    with engine.connect():
        pass
    assert {record.name for record in caplog.records} == {"sqlalchemy.pool.impl.QueuePool"}


def test_listeners_get_the_cursor_of_the_result(lab):
    """The cursor that listeners, context and result have is one object of the driver's, streamed or not."""
    lab.protect()
    bare = lab.make_engine()
    seen = {}
    for engine in (lab.engine, bare):
        sync_engine = getattr(engine, "sync_engine", engine)
        cursors = seen[sync_engine] = []

        def note(_connection, cursor, _statement, _parameters, context, _many, cursors=cursors):
            assert cursor is context.cursor
            cursors.append(cursor)

        event.listen(sync_engine, "before_cursor_execute", note)
        event.listen(sync_engine, "after_cursor_execute", note)

    def work(session):
        for options in ({}, {"stream_results": True}, {"yield_per": 2}):
            select = "select n from generate_series(1, 5) n"
            result = session.connection.execute(text(lab.backend.say(select)), execution_options=options)
            cursor = result.cursor
            assert cursor is result.context.cursor
            assert cursor is seen[session.connection.engine][-1]
            assert [row[0] for row in result] == [1, 2, 3, 4, 5]
            assert result.cursor is None

    lab.run(work)
    guarded, lab.engine = lab.engine, bare
    lab.run(work)
    lab.dispose()
    lab.engine = guarded
    of_guarded, of_bare = ([type(cursor) for cursor in cursors] for cursors in seen.values())
    assert of_guarded == of_bare


def test_cursor_of_sqlite_is_sqlites(url):
    """SQLite's rows are computed as they are fetched; the cursor is sqlite3's all the same, and is closed."""
    engine = create_engine(url)
    protect(engine)
    seen = []

    @event.listens_for(engine, "after_cursor_execute")
    def after(_connection, cursor, *_rest):
        seen.append(cursor)

    with engine.connect() as connection:
        result = connection.execute(text("select 1 union select 2"))
        assert type(result.cursor) is sqlite3.Cursor
        assert result.cursor is seen[0]
        assert result.fetchmany(1) == [(1,)]
        assert result.all() == [(2,)]
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            seen[0].fetchone()
        batches = connection.execution_options(yield_per=1).execute(text("select 1 union select 2"))
        assert list(batches.partitions()) == [[(1,)], [(2,)]]


@those("psycopg", "psycopg2", "pg8000", "pymysql", "mysqldb", "aiomysql", "asyncmy")
def test_streamed_result_closes_the_cursor_that_listeners_know(lab):
    """When the rows of a stream are used up, the object that a listener got is the one that is closed."""
    lab.protect()
    seen = []
    event.listen(
        getattr(lab.engine, "sync_engine", lab.engine),
        "after_cursor_execute",
        lambda *args: seen.append(args[1]),
    )

    def work(session):
        result = session.connection.execute(
            text(lab.backend.say("select n from generate_series(1, 5) n")),
            execution_options={"stream_results": True},
        )
        cursor = result.cursor
        assert len(result.all()) == 5
        assert cursor is seen[-1]
        return cursor

    cursor = lab.run(work)
    if lab.driver == "pg8000":
        with pytest.raises(lab.engine.dialect.dbapi.InterfaceError, match="Cursor closed"):
            cursor.execute("select 1")
        return
    closed = getattr(cursor, "closed", None)
    if closed is None:
        closed = getattr(cursor, "connection", None) is None or getattr(cursor, "_cursor", 0) is None
    assert closed


def test_raw_cursor_is_of_the_drivers_kind(lab):
    """A raw cursor has the name of the driver's, and is an instance of its class."""
    lab.protect()
    kinds = {}
    bare = lab.make_engine()
    for engine in (lab.engine, bare):

        def work(session, engine=engine):
            cursor = session.connection.connection.cursor()
            kinds[engine] = type(session.connection.connection.dbapi_connection.cursor())
            assert isinstance(cursor, kinds[engine])
            assert type(cursor).__name__ == kinds[engine].__name__
            cursor.close()

        guarded, lab.engine = lab.engine, engine
        lab.run(work)
        lab.engine = guarded
    assert kinds[lab.engine] is kinds[bare]
    guarded, lab.engine = lab.engine, bare
    lab.dispose()
    lab.engine = guarded


@on_postgres
@pytest.mark.parametrize("kind", [QueuePool, NullPool])
@pytest.mark.parametrize("close", [True, False])
def test_disposed_pool_takes_no_slot_of_the_new_one(lab, kind, close):
    """A connection that is out over dispose() belongs to the old pool: the new one has all its slots."""
    options = {"poolclass": NullPool} if kind is NullPool else {"pool_size": 1, "max_overflow": 0}
    lab.engine = lab.make_engine(**options)
    lab.guard = protect(lab.engine, name="db", max_concurrent_calls=1, max_wait_duration=0.01)
    sync_engine = getattr(lab.engine, "sync_engine", lab.engine)

    old = sync_engine.pool

    def work(session):
        sync_engine.dispose(close=close)
        assert (lab.guard.snapshot().in_use, pool_status(lab.engine).holders) == (0, ())
        with sync_engine.connect() as other:
            assert lab.guard.snapshot().in_use == 1
            assert len(pool_status(lab.engine).holders) == 1
            assert other.execute(text("select 2")).scalar() == 2
            assert session.execute("select 3") == 3
            with pytest.raises(BulkheadFullError), sync_engine.connect():
                pass
        assert lab.guard.snapshot().in_use == 0

    lab.run(work)
    assert lab.guard.snapshot().in_use == 0
    assert lab.query("select 4") == 4
    assert lab.guard.snapshot().in_use == 0
    lab.run(lambda _: old.dispose())


@pytest.mark.parametrize("kind", [StaticPool, SingletonThreadPool])
def test_disposed_pool_of_one_connection(url, kind):
    """The same where one connection is let out several times."""
    engine = create_engine(url, poolclass=kind)
    guard = protect(engine, max_concurrent_calls=2, max_wait_duration=0.01)
    first, second = engine.connect(), engine.connect()
    engine.dispose(close=False)
    assert guard.snapshot().in_use == 0
    third, fourth = engine.connect(), engine.connect()
    first.close()
    second.close()
    assert guard.snapshot().in_use == (2 if kind is StaticPool else 1)
    third.close()
    fourth.close()
    assert guard.snapshot().in_use == 0
    engine.dispose()


def test_dispose_of_an_engine_with_other_options(url):
    """An engine made by execution_options() shares the pool, and its dispose()."""
    engine = create_engine(url, pool_size=1, max_overflow=0)
    guard = protect(engine.execution_options(logging_token="a"), max_wait_duration=0.01)
    with engine.connect():
        engine.execution_options(logging_token="b").dispose()
        with engine.connect():
            assert guard.snapshot().in_use == 1
    assert guard.snapshot().in_use == 0


async def _disposed_async(url):
    engine = create_async_engine(url.replace("sqlite", "sqlite+aiosqlite"), pool_size=1, max_overflow=0)
    guard = protect(engine, max_wait_duration=0.01)
    old = engine.pool
    async with engine.connect():
        await engine.dispose(close=False)
        async with engine.connect():
            assert guard.snapshot().in_use == 1
    assert guard.snapshot().in_use == 0
    await greenlet_spawn(old.dispose)
    await engine.dispose()


def test_dispose_of_an_async_engine(url):
    """Likewise on an event loop."""
    asyncio.run(_disposed_async(url))


def test_dispose_costs_no_listener(url):
    """Knowing of dispose() does not make SQLAlchemy ask for listeners at every statement."""
    engine = create_engine(url)
    guard = protect(engine)
    assert "_has_events" not in vars(engine)
    guard.detach()
    assert "_has_events" not in vars(engine)


@pytest.mark.parametrize("first_is_dropped", [True, False])
def test_static_connection_that_was_dropped_gives_its_slot_back(url, first_is_dropped):
    """Of two users of one connection each gives a slot back, in whichever way and order they go."""
    engine = create_engine(url, poolclass=StaticPool)
    guard = protect(engine, max_concurrent_calls=2)
    for _ in range(5):
        first, second = engine.connect(), engine.connect()
        if first_is_dropped:
            del first
            gc.collect()
            assert guard.snapshot().in_use == 1
            second.close()
        else:
            del second
            gc.collect()
            assert guard.snapshot().in_use == 1
            first.close()
        assert guard.snapshot().in_use == 0
    first, second, third = engine.connect(), engine.connect(), None
    first.close()
    assert guard.snapshot().in_use == 1
    del first
    gc.collect()
    assert guard.snapshot().in_use == 1  # it is the second's
    third = engine.connect()
    del second
    gc.collect()
    third.close()
    assert guard.snapshot().in_use == 0
    engine.dispose()


def test_creator_of_a_guarded_pool_can_be_replaced(url):
    """The pool's creator is set, patched and deleted as on a bare one."""
    engine = create_engine(url, poolclass=NullPool)
    guard = protect(engine, max_concurrent_calls=1)
    own = sqlite3.connect(url.removeprefix("sqlite:///"), check_same_thread=False)
    patch = mock.patch.object(engine.pool, "_creator", lambda: own)  # noqa: PT008 - its signature is read
    with patch, engine.connect() as connection:
        assert connection.connection.dbapi_connection is own
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar() == 1
    creator = engine.pool._creator
    del engine.pool._creator
    assert not hasattr(engine.pool, "_invoke_creator")
    engine.pool._creator = creator
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar() == 1
    assert guard.snapshot().in_use == 0


def test_dialect_without_a_driver_is_named(url):
    """A third-party dialect may have no ``driver``."""
    engine = create_engine(url)

    class Plain(default.DefaultDialect):
        name = "plain"

    if hasattr(Plain, "driver"):
        pytest.skip("every dialect has one")
    engine.dialect = Plain()
    with pytest.raises(ConfigurationError, match="'plain' cannot be stopped"):
        protect(engine)


def test_fork_leaves_no_holders(url):
    """A child process does not list the connections of its parent."""
    engine = create_engine(url)
    protect(engine)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        child = os.fork()
        if not child:
            code = 9
            try:
                engine.dispose(close=False)
                with engine.connect() as other:
                    other.execute(text("select 1"))
                    mine = len(pool_status(engine).holders)
                code = (
                    0
                    if (mine, pool_status(engine).holders, leaks(engine, older_than=0)) == (1, (), ())
                    else 1
                )
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(pool_status(engine).holders) == 1


def test_guard_keeps_no_proxy_alive(url):
    """What a user drops goes at once, without the cyclic collector."""
    engine = create_engine(url, poolclass=StaticPool)
    protect(engine, max_concurrent_calls=3)
    gc.disable()
    try:
        raw = engine.raw_connection()
        other = engine.raw_connection()
        known = weakref.ref(raw)
        del raw
        assert known() is None
        other.close()
    finally:
        gc.enable()
