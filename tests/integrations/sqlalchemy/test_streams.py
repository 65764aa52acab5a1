"""Rows that are still on the server when the statement returns: each fetch is work with a deadline too."""

from __future__ import annotations

import contextlib
import gc
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, PendingRollbackError

from guardrails import CallTimeoutError, DeadlineSpentError, deadline
from guardrails.testing.proxy import FaultProxy
from support.lateness import LATE
from support.polling import poll
from support.sql_lab import in_threads, on_loops

# SQLAlchemy leaves the server-side cursor of a connection it drops to the collector, guarded or not.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deleted while still open:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    # MariaDB's drivers raise it when the next statement, a ROLLBACK, finds unread rows.
    "ignore:Previous unbuffered result was left incomplete:UserWarning",
)


@pytest.fixture
def lab(lab):
    """The lab, without what a stream leaves to the collector."""
    yield lab
    gc.collect()  # here, where the warning is expected, and not in whatever test comes next


WIDE = "repeat('x', 4000)"
"""MariaDB collects 16 KiB before it sends a row."""

STUCK = f"select n, pg_sleep(case when n = 400 then 30 else 0 end), {WIDE} from generate_series(1, 1000) n"
MANY = f"select n, {WIDE} from generate_series(1, 8000) n"
"""32 MB: more than what the sockets between a frozen server and us may hold already."""
SLOW = f"select n, pg_sleep(0.01), {WIDE} from generate_series(1, 1000) n"


def rows(session, sql, *, limit=None, step=10, seen=None):
    """Streams a statement and returns its first column."""
    options = {"yield_per": step} | ({} if limit is None else {"guardrails_timeout": limit})
    seen = [] if seen is None else seen
    for row in session.connection.execute(text(session.backend.say(sql)), execution_options=options):
        seen.append(row[0])
    return seen


def test_stream_arrives_whole(lab):
    """A guarded stream gives the rows of a bare one, each batch as evidence."""
    lab.protect()
    sql = "select n from generate_series(1, 95) n"
    assert lab.run(lambda session: rows(session, sql)) == list(range(1, 96))
    assert lab.guard.snapshot().succeeded >= 10
    assert lab.run(lambda session: session.execute(sql)) == 1


def test_fetch_that_hangs_is_stopped(lab):
    """The limit of a statement is the limit of each of its fetches, on the server too."""
    lab.protect()
    lab.query("select 1")  # connecting has a time of its own
    seen = []
    start = time.monotonic()
    with pytest.raises(CallTimeoutError):
        lab.run(lambda session: rows(session, STUCK, limit=0.3, seen=seen))
    assert 0.3 <= time.monotonic() - start < 0.3 + LATE
    assert seen
    assert seen == list(range(1, len(seen) + 1))
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.guard.snapshot().failed == 1
    poll(lambda: lab.running() == 0, "the fetch has ended on the server", LATE)
    assert lab.query("select 42") == 42


@pytest.mark.sampled(1)
def test_long_stream_of_short_fetches_goes_on(lab):
    """Many fetches may together take longer than each of them may."""
    lab.protect(guard={"timeout": 1.0})
    sql = SLOW.replace("1000", "200").replace("0.01", "0.006")  # asyncpg's batches are 50 rows
    assert lab.run(lambda session: rows(session, sql)) == list(range(1, 201))


def test_ambient_deadline_is_for_the_whole_stream(lab):
    """What bounds a stream as a whole is the caller's budget."""
    lab.protect()
    start = time.monotonic()
    with pytest.raises((CallTimeoutError, DeadlineSpentError)), deadline(0.4):
        lab.run(lambda session: rows(session, SLOW, step=1))
    assert 0.4 <= time.monotonic() - start < 0.4 + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.query("select 42") == 42


def test_stream_over_a_silent_wire(lab):
    """A fetch whose answer never comes ends like any other call."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = lambda port=None, url=lab.url: url(wire.port)
        lab.protect(guard={"timeout": 0.3})

        def work(session):
            options = {"yield_per": 5}
            sql = session.backend.say(SLOW.replace("0.01", "0"))
            result = session.connection.execute(text(sql), execution_options=options)
            assert result.fetchone()[0] == 1
            wire.hang()
            moments.append(time.monotonic())
            result.fetchall()

        moments = []
        with pytest.raises(CallTimeoutError):
            lab.run(work)
        assert time.monotonic() - moments[0] < 0.3 + LATE
        assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
        wire.heal()
        assert lab.query("select 42") == 42
        lab.dispose()


@on_loops
def test_async_stream_is_bounded(lab):
    """AsyncConnection.stream() fetches through the same steps."""
    lab.protect(guard={"timeout": 0.3})
    lab.query("select 1")

    async def main():
        async with lab.engine.connect() as connection:
            result = await connection.stream(text(lab.backend.say(STUCK)))
            return [row async for row in result]

    start = time.monotonic()
    with pytest.raises(CallTimeoutError):
        lab.runner.run(main())
    assert time.monotonic() - start < 0.3 + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    poll(lambda: lab.running() == 0, "the fetch has ended on the server", LATE)
    assert lab.query("select 42") == 42


def half_read(session):
    """A stream with rows still on the server."""
    sql = text(session.backend.say(MANY))
    result = session.connection.execute(sql, execution_options={"yield_per": 5})
    assert result.fetchone()[0] == 1
    return result


def leave_by_close(result):
    """Closing asks the server, with most drivers."""
    result.close()


def leave_by_break(result):
    """The loop is left, and the cursor is still open when its connection goes back."""
    for _ in result:
        break


def leave_by_error(result):
    """An error of the user's own."""
    raise LookupError(result.fetchone())


def sessions(lab):
    """The server's processes behind two connections of the pool."""
    return set(lab.all([lambda: lab.query("select pg_backend_pid() from pg_sleep(0.1)")] * 2))


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_break, leave_by_error])
def test_leaving_a_stream_of_a_frozen_server(lab, leave):
    """However a stream is left, the way out is bounded and costs no other connection."""
    lab.protect(guard={"timeout": 0.3})
    idle = sessions(lab)
    moments = []
    with contextlib.ExitStack() as ice:

        def work(session):
            result = half_read(session)
            ice.enter_context(lab.frozen())
            moments.append(time.monotonic())
            leave(result)

        with contextlib.suppress(CallTimeoutError, LookupError, InterfaceError):  # the last one is PyMySQL's
            lab.run(work)
        took = time.monotonic() - moments[0]
    assert took < 0.3 + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert len(idle - sessions(lab)) == 1
    assert lab.query("select 42") == 42


def test_stream_closed_on_a_frozen_server_leaves_a_connection_that_says_so(lab):
    """SQLAlchemy hides an error of a cursor's close; the next call raises that the connection is lost."""
    if lab.driver == "asyncpg":
        pytest.skip("closes no cursors on the server")
    lab.protect(guard={"timeout": 0.3})

    def work(session):
        result = half_read(session)
        with lab.frozen():
            result.close()
        assert session.connection.invalidated
        with pytest.raises(PendingRollbackError):
            session.execute("select 1")
        session.rollback()
        return session.execute("select 7")

    assert lab.run(work) == 7
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)


# SQLAlchemy only drops a forgotten connection of an AsyncEngine.
@in_threads
def test_stream_left_to_the_collector_on_a_frozen_server(lab):
    """A dropped half-read stream and its connection are gone within a call's timeout."""
    lab.protect(guard={"timeout": 0.3})
    idle = sessions(lab)

    def numbers():
        connection = lab.engine.connect()
        sql = text(lab.backend.say(MANY))
        for row in connection.execute(sql, execution_options={"yield_per": 5}):
            yield row[0]

    stream = numbers()
    assert next(stream) == 1
    with lab.frozen():
        start = time.monotonic()
        del stream
        gc.collect()
        assert time.monotonic() - start < 0.3 + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert len(idle - sessions(lab)) == 1
    assert lab.query("select 42") == 42


@on_loops
def test_async_stream_left_half_way_on_a_frozen_server(lab):
    """Leaving AsyncConnection.stream() early, by its generator's aclose(), is bounded too."""
    lab.protect(guard={"timeout": 0.3})
    idle = sessions(lab)

    async def numbers():
        async with lab.engine.connect() as connection:
            result = await connection.stream(text(lab.backend.say(MANY)))
            async for row in result:
                yield row[0]

    async def main():
        stream = numbers()
        assert await anext(stream) == 1
        with lab.frozen():
            start = time.monotonic()
            with contextlib.suppress(CallTimeoutError):
                await stream.aclose()
            return time.monotonic() - start

    assert lab.runner.run(main()) < 0.3 + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert len(idle - sessions(lab)) == 1
    assert lab.query("select 42") == 42


@pytest.mark.sampled(1)
def test_stream_may_outlast_the_backstop(lab):
    """The backstop is for a statement that cannot be cancelled, not for a stream whose rows keep coming."""
    lab.protect(guard={"timeout": 0.7, "backstop": 0.9})
    sql = SLOW.replace("1000", "200").replace("0.01", "0.006")
    assert lab.run(lambda session: rows(session, sql)) == list(range(1, 201))
