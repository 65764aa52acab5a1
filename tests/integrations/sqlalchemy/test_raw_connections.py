"""What is done with raw_connection() is bounded and is evidence, like SQLAlchemy's own statements."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import io
import sqlite3
import time

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from guardrails import (
    CallTimeoutError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineSpentError,
    deadline,
    protect,
)
from guardrails._dbapi import watchdog
from guardrails.testing.proxy import FaultProxy
from support.lateness import LATE
from support.polling import poll
from support.sql_lab import on_loops, on_postgres

LIMIT = 0.3

of_libpq = pytest.mark.parametrize("lab", ["psycopg", "psycopg2"], indirect=True)
"""The drivers whose cursors have a COPY and are closed on the server."""


def in_greenlet(lab, work):
    """Runs ``work()``, on the loop of a lab that has one."""
    if not hasattr(lab, "runner"):
        return work()

    async def main():
        return await greenlet_spawn(work)

    return lab.runner.run(main())


def on_raw(lab, work):
    """Runs ``work(connection)`` on a raw connection and closes it."""

    def run():
        engine = getattr(lab.engine, "sync_engine", lab.engine)
        with contextlib.closing(engine.raw_connection()) as connection:
            return work(connection)

    return in_greenlet(lab, run)


def ask(lab, connection, sql):
    """Runs a statement with a raw cursor; its first value."""
    cursor = connection.cursor()
    cursor.execute(lab.backend.say(sql))
    value = cursor.fetchone()[0]
    cursor.close()
    return value


@contextlib.contextmanager
def stopped(lab, error=CallTimeoutError):
    """The block raises a timeout by the limit and a grace, and leaves nothing taken."""
    start = time.monotonic()
    with pytest.raises(error):
        yield
    assert LIMIT <= time.monotonic() - start < LIMIT + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)


@pytest.fixture
def table(lab):
    """A table nobody else uses."""
    lab.aside("drop table if exists raws", "create table raws (n int)")
    yield "raws"
    lab.aside("drop table raws")


def test_slow_statement_is_stopped(lab):
    """A raw cursor's statement ends at the guard's deadline, on the server too, and counts as a failure."""
    lab.protect(guard={"timeout": LIMIT})
    idle = lab.query("select pg_backend_pid()")
    with stopped(lab):
        on_raw(lab, lambda connection: ask(lab, connection, "select pg_sleep(30)"))
    poll(lambda: lab.running() == 0, "the statement has ended on the server", 1.0 + LATE)
    assert lab.guard.snapshot().failed == 1
    assert lab.query("select pg_backend_pid()") != idle  # a late cancel request stops no other caller


def test_frozen_server_does_not_hold_a_raw_cursor(lab):
    """A server that answers nothing costs a raw cursor its socket."""
    lab.protect(guard={"timeout": LIMIT})
    lab.query("select 1")
    with lab.frozen(), stopped(lab):
        on_raw(lab, lambda connection: ask(lab, connection, "select 1"))
    assert lab.query("select 42") == 42


def test_commit_that_hangs_is_unknown(lab, table):
    """commit() of a raw connection raises CommitUnknownError."""
    lab.protect(guard={"timeout": LIMIT})
    with lab.backend.slow_commits(table) as hang:

        def work(connection):
            connection.cursor().execute(f"insert into {table} values (1)")
            hang()
            with stopped(lab, CommitUnknownError):
                connection.commit()

        on_raw(lab, work)
        poll(lambda: lab.running() == 0, "the COMMIT has ended on the server", 1.0 + LATE)
    assert lab.query("select 42") == 42


def test_what_the_usual_error_handling_does_after_a_stop(lab):
    """rollback() and close() of a connection that was dropped do nothing, and hide no error."""
    lab.protect(guard={"timeout": LIMIT})

    def work(connection):
        cursor = connection.cursor()
        try:
            cursor.execute(lab.backend.say("select pg_sleep(30)"))
        finally:
            cursor.close()
            connection.rollback()
            connection.close()

    with stopped(lab):
        in_greenlet(lab, lambda: work(getattr(lab.engine, "sync_engine", lab.engine).raw_connection()))


def test_rows_are_written_and_read(lab, table):
    """A guarded raw connection does what a bare one does, and each piece of work is evidence once."""
    lab.protect()
    lab.query("select 1")
    before = lab.guard.snapshot().succeeded

    def work(connection):
        assert isinstance(connection, PoolProxiedConnection)
        cursor = connection.cursor()
        cursor.executemany(
            f"insert into {table} values (%s)"
            if lab.driver != "asyncpg"
            else f"insert into {table} values ($1)",
            [(1,), (2,), (3,)],
        )
        connection.commit()
        cursor.execute(f"select n from {table} order by n")
        assert cursor.description[0][0] == "n"
        cursor.arraysize = 2
        assert cursor.arraysize == 2
        rows = [cursor.fetchone(), *cursor.fetchmany(1), *cursor]
        connection.rollback()
        return [row[0] for row in rows]

    assert on_raw(lab, work) == [1, 2, 3]
    # executemany, COMMIT, execute, two fetches, the last row and the end, ROLLBACK, the one on return
    assert lab.guard.snapshot().succeeded - before == 9
    assert lab.query(f"select count(*) from {table}") == 3


def test_statements_of_sqlalchemy_are_bounded_once(lab):
    """SQLAlchemy's own cursors are the driver's: a statement is evidence once, and so is its rollback."""
    lab.protect()
    lab.query("select 1")
    before = lab.guard.snapshot().succeeded
    lab.query("select 1")
    assert lab.guard.snapshot().succeeded - before == 2


def test_connection_of_a_connection_is_raw_too(lab):
    """Connection.connection is the same kind of thing as raw_connection()."""
    lab.protect(guard={"timeout": LIMIT})
    with stopped(lab):
        lab.run(lambda session: ask(lab, session.connection.connection, "select pg_sleep(30)"))
    assert lab.query("select 42") == 42


@on_loops
def test_raw_connection_of_an_async_engine(lab):
    """AsyncEngine.raw_connection() gives the same; its driver_connection is the driver's own."""
    lab.protect(guard={"timeout": LIMIT})

    async def main():
        connection = await lab.engine.raw_connection()
        assert connection.driver_connection is connection.dbapi_connection.driver_connection
        assert await greenlet_spawn(ask, lab, connection, "select 7") == 7
        with pytest.raises(CallTimeoutError):
            await greenlet_spawn(ask, lab, connection, "select pg_sleep(30)")
        await greenlet_spawn(connection.close)

    lab.runner.run(main())
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)


def test_time_of_a_checkout(lab):
    """guardrails_timeout of a raw connection is for its own cursors, until it is closed."""
    lab.protect(guard={"timeout": LIMIT})

    def patient(connection):
        connection.guardrails_timeout = 5
        return ask(lab, connection, "select 8 from pg_sleep(0.6)")

    assert on_raw(lab, patient) == 8
    with stopped(lab):
        on_raw(lab, lambda connection: ask(lab, connection, "select 8 from pg_sleep(30)"))

    def hasty(connection):
        connection.guardrails_timeout = LIMIT
        return ask(lab, connection, "select pg_sleep(30)")

    lab.dispose()
    lab.protect()
    with stopped(lab):
        on_raw(lab, hasty)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "5", True])
def test_wrong_time_is_refused(lab, wrong):
    """What is no positive number of seconds is refused when it is set."""
    lab.protect()

    def work(connection):
        with pytest.raises(ConfigurationError, match="guardrails_timeout"):
            connection.guardrails_timeout = wrong
        return ask(lab, connection, "select 1")

    assert on_raw(lab, work) == 1


def test_spent_budget_lets_only_the_rollback_pass(lab):
    """Nothing new starts without time; what has begun is rolled back."""
    lab.protect()

    def work(connection):
        ask(lab, connection, "select 1")
        with deadline(0):
            with pytest.raises(DeadlineSpentError):
                connection.cursor().execute("select 2")
            connection.rollback()
        return ask(lab, connection, "select 3")

    assert on_raw(lab, work) == 3


@on_postgres
def test_fetch_from_a_cursor_of_the_server(lab):
    """The rows of a server-side cursor have the deadline too."""
    if lab.driver == "pg8000":
        pytest.skip("has no cursors of the server")
    lab.protect(guard={"timeout": LIMIT})

    def server_side(connection):
        if lab.driver == "asyncpg":
            return connection.cursor(server_side=True)
        return connection.cursor("wanderer")

    def work(connection):
        with contextlib.closing(server_side(connection)) as cursor:
            cursor.execute(
                "select n, pg_sleep(case n when 90 then 30 else 0 end) from generate_series(1, 100) n"
            )
            assert cursor.fetchone()[0] == 1
            cursor.fetchall()

    with stopped(lab):
        on_raw(lab, work)
    poll(lambda: lab.running() == 0, "the fetch has ended on the server", 1.0 + LATE)


@pytest.mark.filterwarnings("ignore:.*deleted while still open:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@of_libpq
def test_closing_a_cursor_of_a_frozen_server(lab):
    """Closing what the server keeps asks it, and is bounded like everything else."""
    lab.protect(guard={"timeout": LIMIT})

    def work(connection):
        cursor = connection.cursor("wanderer")
        cursor.execute("select generate_series(1, 100)")
        assert cursor.fetchone()
        with lab.frozen():
            cursor.close()

    with stopped(lab):
        on_raw(lab, work)
    assert lab.query("select 42") == 42
    gc.collect()  # here, where psycopg's warning about a cursor that could not be closed is expected


@of_libpq
@pytest.mark.parametrize("towards", ["server", "client"])
def test_copy_is_stopped(lab, towards):
    """COPY, in either direction, over a wire on which nothing moves ends at the deadline."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        lab.protect(guard={"timeout": LIMIT})
        lab.aside("drop table if exists raws", "create table raws (n int)")

        def work(connection):
            cursor = connection.cursor()
            cursor.execute("select 1")
            wire.hang()
            copy = COPIES[lab.driver, towards]
            copy(cursor)

        with stopped(lab):
            on_raw(lab, work)
        wire.heal()
        assert lab.query("select 42") == 42
        assert lab.query("select count(*) from raws") == 0
        lab.aside("drop table raws")
        lab.dispose()


def write_with_psycopg(cursor):
    """Writes a column of numbers."""
    with cursor.copy("copy raws from stdin") as copy:
        for number in range(50_000):
            copy.write_row((number,))


def read_with_psycopg(cursor):
    """Reads a column of numbers."""
    with cursor.copy("copy (select generate_series(1, 50000)) to stdout") as copy:
        return sum(1 for _ in copy.rows())


def write_with_psycopg2(cursor):
    """Likewise."""
    cursor.copy_expert("copy raws from stdin", io.StringIO("".join(f"{n}\n" for n in range(50_000))))


def read_with_psycopg2(cursor):
    """Likewise."""
    out = io.StringIO()
    cursor.copy_expert("copy (select generate_series(1, 50000)) to stdout", out)
    return out.getvalue().count("\n")


COPIES = {
    ("psycopg", "server"): write_with_psycopg,
    ("psycopg", "client"): read_with_psycopg,
    ("psycopg2", "server"): write_with_psycopg2,
    ("psycopg2", "client"): read_with_psycopg2,
}


@of_libpq
def test_copy_that_is_kept_in_time(lab):
    """What is copied through a guarded raw connection arrives whole."""
    lab.protect()
    lab.aside("drop table if exists raws", "create table raws (n int)")

    def work(connection):
        cursor = connection.cursor()
        COPIES[lab.driver, "server"](cursor)
        connection.commit()
        return COPIES[lab.driver, "client"](cursor)

    assert on_raw(lab, work) == 50_000
    assert lab.query("select count(distinct n) from raws") == 50_000
    lab.aside("drop table raws")


PSYCOPG_WAITS = 5
"""Seconds psycopg gives its own cancel request when a stream() is left early."""


@pytest.mark.parametrize("patient", [True, False])
def test_stream_of_psycopg(postgres, patient):
    """Its stream() gives every row, and leaving it early on a frozen server ends, too."""
    engine = create_engine(postgres.url("psycopg"))
    db = protect(engine, timeout=LIMIT)
    start = None
    with contextlib.closing(engine.raw_connection()) as connection:
        rows = connection.cursor().stream(WIDE)
        if patient:
            assert sum(1 for _ in rows) == 1000
        else:
            assert next(rows)
            postgres.freeze()
            start = time.monotonic()
            with pytest.raises(CallTimeoutError):
                rows.close()
            took = time.monotonic() - start
            postgres.thaw()
            assert took < PSYCOPG_WAITS + LATE
    assert (engine.pool.checkedout(), db.snapshot().in_use) == (0, 0)
    with engine.connect() as connection:
        assert connection.execute(text("select 4")).scalar() == 4
    engine.dispose()


WIDE = "select n, repeat('x', 9000), pg_sleep(0.002) from generate_series(1, 1000) n"
"""Rows that are longer than what the server keeps to itself before it sends."""


def test_copy_in_the_middle_of_which_the_server_freezes(postgres):
    """psycopg's blocks have the limit one by one, so a long COPY goes on and one that hangs does not."""
    engine = create_engine(postgres.url("psycopg"))
    db = protect(engine, timeout=LIMIT)
    start = None
    with pytest.raises(CallTimeoutError), contextlib.closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        with cursor.copy(f"copy ({WIDE}) to stdout") as copy:
            copy.set_types(["int4", "text", "text"])
            seen = 0
            for row in copy.rows():
                assert row[0] == seen + 1
                seen += 1
                if seen == 300:
                    start = time.monotonic()
                    postgres.freeze()
    postgres.thaw()
    assert time.monotonic() - start < LIMIT + LATE
    assert seen >= 300
    assert (engine.pool.checkedout(), db.snapshot().in_use, db.snapshot().failed) == (0, 0, 1)
    engine.dispose()


def on_driver(lab, work):
    """Runs what ``work(connection)`` gives with the driver's own connection, and closes the checkout."""
    if not hasattr(lab, "runner"):
        with contextlib.closing(lab.engine.raw_connection()) as raw:
            return work(raw.driver_connection)

    async def main():
        raw = await lab.engine.raw_connection()
        try:
            return await work(raw.driver_connection)
        finally:
            await greenlet_spawn(raw.close)

    return lab.runner.run(main(), context=contextvars.copy_context())


def execute_with_driver(connection, sql):
    """A statement, past SQLAlchemy."""
    return connection.execute(sql) if hasattr(connection, "execute") else connection.cursor().execute(sql)


@on_postgres
@pytest.mark.parametrize("frozen", [False, True])
def test_deadline_of_the_drivers_own_connection(lab, frozen):
    """Work past the hooks also ends at the ambient deadline, and its connection is dropped."""
    lab.protect()
    idle = lab.query("select pg_backend_pid()")
    seconds = 0 if frozen else 30
    start = time.monotonic()
    with contextlib.ExitStack() as block:
        if frozen:
            block.enter_context(lab.frozen())
        with deadline(LIMIT), pytest.raises(Exception, match=r"cancel|clos|lost|terminat|network error"):
            on_driver(lab, lambda own: execute_with_driver(own, f"select pg_sleep({seconds})"))
        assert LIMIT <= time.monotonic() - start < LIMIT + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.query("select pg_backend_pid()") != idle
    poll(lambda: lab.running() == 0, "the statement has ended on the server", 1.0 + LATE)


@pytest.mark.parametrize("lab", ["asyncpg"], indirect=True)
@pytest.mark.parametrize("way", ["in", "out"])
def test_copy_of_asyncpg(lab, table, way):
    """asyncpg copies on its own connection only; that ends at the ambient deadline, on the server too."""
    lab.protect()
    lab.query("select 1")

    def copy(own):
        if way == "in":  # waits for the lock
            return own.copy_records_to_table(table, records=[(1,)])
        return own.copy_from_query("select pg_sleep(30)", output=io.BytesIO())

    with lab.locked(table):
        start = time.monotonic()
        with deadline(LIMIT), pytest.raises(Exception, match=r"cancel|clos"):
            on_driver(lab, copy)
        assert LIMIT <= time.monotonic() - start < LIMIT + LATE
        poll(lambda: lab.running() == 0, "the COPY has ended on the server", 1.0 + LATE)
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.query(f"select count(*) from {table}") == 0


def test_drivers_own_connection_that_is_back_in_time(lab):
    """A connection that was returned in time is not stopped, and its next user gets it unchanged."""
    lab.protect(pool_size=1, max_overflow=0)
    number = lab.query("select pg_backend_pid()")
    with deadline(LIMIT):
        lab.run(lambda session: session.connection.connection.driver_connection)
    assert lab.query("select pg_backend_pid() from pg_sleep(0.8)") == number
    assert not watchdog._watchdog.armed


def test_detaching_ends_the_deadline_of_the_drivers_own_connection(postgres):
    """When the guard goes, so does what it had planned for a connection that is out."""
    engine = create_engine(postgres.url("psycopg"))
    db = protect(engine)
    with deadline(LIMIT), contextlib.closing(engine.raw_connection()) as raw:
        own = raw.driver_connection
        db.detach()
        assert own.execute("select 5 from pg_sleep(1)").fetchone() == (5,)
    engine.dispose()


def test_drivers_own_connection_of_a_loop_in_a_thread(lab):
    """Where there is no loop nothing is planned, and looking at the connection does no harm."""
    if not hasattr(lab, "runner"):
        pytest.skip("about event loops")
    lab.protect()

    async def main():
        raw = await lab.engine.raw_connection()
        with deadline(LIMIT):
            own = await asyncio.to_thread(lambda: raw.driver_connection)
        assert own is raw.dbapi_connection.driver_connection
        await greenlet_spawn(raw.close)

    lab.runner.run(main())
    assert lab.query("select 6 from pg_sleep(0.8)") == 6


def test_context_managers_chains_and_iteration(postgres):
    """What psycopg adds to PEP 249 still works: `with`, execute() that returns the cursor, next()."""
    engine = create_engine(postgres.url("psycopg"))
    protect(engine)
    with contextlib.closing(engine.raw_connection()) as connection:
        with connection.cursor() as cursor:
            assert cursor.execute("select generate_series(1, 3)").fetchone() == (1,)
            assert next(cursor) == (2,)
            assert list(cursor) == [(3,)]
            with pytest.raises(StopIteration):
                next(cursor)
        assert cursor.closed
    engine.dispose()


def test_detaching_while_a_raw_connection_is_out(postgres):
    """A raw connection that is out when the guard goes works on; the next one is plain."""
    engine = create_engine(postgres.url("psycopg"), pool_size=1, max_overflow=0)
    plain = type(engine.raw_connection())
    db = protect(engine)
    connection = engine.raw_connection()
    assert type(connection) is not plain
    db.detach()
    connection.cursor().execute("select 1")
    connection.commit()
    connection.rollback()
    connection.close()
    with contextlib.closing(engine.raw_connection()) as connection:
        assert type(connection) is plain
        assert not hasattr(connection.cursor(), "_step")
    engine.dispose()


def test_sqlite_rows_and_statements_are_interrupted(tmp_path):
    """A raw cursor of SQLite is interrupted in execute() and in a fetch, and keeps its own settings."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine, timeout=LIMIT)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select {} from n {}"
    for sql in (endless.format("count(*)", ""), endless.format("i", "where i in (1, -1)")):
        start = time.monotonic()
        with contextlib.closing(engine.raw_connection()) as connection, pytest.raises(CallTimeoutError):
            connection.cursor().execute(sql).fetchall()
        assert LIMIT <= time.monotonic() - start < LIMIT + LATE
        assert (db.snapshot().in_use, engine.pool.checkedout()) == (0, 0)
    with contextlib.closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.row_factory = sqlite3.Row
        assert cursor.execute("select 3 as n").fetchone()["n"] == 3
    with engine.connect() as connection:
        assert connection.execute(text("select 4")).scalar() == 4
    engine.dispose()


SCRIPT = """
    create table if not exists pages (n int);
    insert into pages with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n;
"""


def test_script_of_sqlite_is_interrupted(tmp_path):
    """executescript() of a raw cursor has the limit as a whole."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine, timeout=LIMIT)
    start = time.monotonic()
    with contextlib.closing(engine.raw_connection()) as connection, pytest.raises(CallTimeoutError):
        connection.cursor().executescript(SCRIPT)
    assert LIMIT <= time.monotonic() - start < LIMIT + LATE
    assert (db.snapshot().in_use, db.snapshot().failed, engine.pool.checkedout()) == (0, 1, 0)
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from pages")).scalar() == 0
    engine.dispose()


def test_script_of_aiosqlite_is_interrupted(tmp_path):
    """aiosqlite's is a method of its own connection, so it ends at the ambient deadline."""

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db")
        db = protect(engine)
        raw = await engine.raw_connection()
        start = time.monotonic()
        with deadline(LIMIT), pytest.raises(sqlite3.OperationalError, match="interrupted"):
            await raw.driver_connection.executescript(SCRIPT)
        assert LIMIT <= time.monotonic() - start < LIMIT + LATE
        await greenlet_spawn(raw.close)
        assert (db.snapshot().in_use, engine.pool.checkedout()) == (0, 0)
        async with engine.connect() as connection:
            assert (await connection.execute(text("select count(*) from pages"))).scalar() == 0
        await engine.dispose()

    asyncio.run(main())
