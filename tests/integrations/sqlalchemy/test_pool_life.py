"""The life of an engine's idle connections, with every driver and real servers."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import NullPool, QueuePool

from guardrails import BreakerPolicy, ConfigurationError, Guard, WarmUpError, protect
from guardrails._pool.idle_pool import run_to_end
from guardrails.testing.proxy import FaultProxy
from support.lateness import LATE
from support.polling import poll
from support.sql_lab import in_threads, on_loops

ALL = "true"


def warm_up(lab):
    guard = lab.guard
    return lab._run(guard.warm_up_async) if hasattr(lab, "runner") else guard.warm_up()


def occupy(lab, count):
    """Has so many connections out at once, and back."""
    together = threading.Barrier(count)

    def work(session):
        number = session.execute("select pg_backend_pid()")
        if not hasattr(lab, "runner"):
            together.wait(5)
        else:
            session.execute("select pg_sleep(0.05)")
        return number

    return set(lab.all([lambda: lab.run(work)] * count))


@pytest.fixture
def ended(request):
    """Detaches the guard at the end, before the loop of the lab is closed."""
    guards = []
    yield guards.append
    for guard in guards:
        guard.detach()


# --- opening -----------------------------------------------------------------------------------


def test_warm_up_opens_minimum_idle_connections(lab, ended):
    ended(lab.protect(guard={"minimum_idle": 2}))
    assert lab.server_side(ALL) == 0, "protect() opens none"
    assert warm_up(lab) == 2
    assert (lab.server_side(ALL), lab.pool.checkedin(), lab.pool.checkedout()) == (2, 2, 0)
    assert warm_up(lab) == 0
    snapshot = lab.guard.snapshot()
    assert (snapshot.in_use, snapshot.failed, snapshot.calls) == (0, 0, 0)
    assert lab.query("select 42") == 42
    assert lab.server_side(ALL) == 2, "callers use them"


def test_minimum_idle_is_kept_beside_those_in_use(lab, ended):
    ended(lab.protect(pool_size=3, max_overflow=0, guard={"minimum_idle": 2}))

    def hold(session):
        session.execute("select 1")
        until_here = time.monotonic() + 20
        while lab.pool.checkedin() < 2 and time.monotonic() < until_here:
            session.execute("select pg_sleep(0.02)")  # on an event loop the upkeep runs meanwhile
        return lab.server_side(ALL), lab.pool.checkedin()

    assert lab.run(hold) == (3, 2)


def test_minimum_idle_never_exceeds_the_guards_limit(lab, ended):
    ended(lab.protect(guard={"minimum_idle": 2, "max_concurrent_calls": 1}))
    assert warm_up(lab) == 1
    lab.query("select 1")
    lab.pause(0.1)
    assert lab.server_side(ALL) == 1


@in_threads
def test_partial_warm_up_names_how_many_of_how_many(lab, ended):
    """The third connection fails. The message names no host."""
    ended(lab.protect(pool_size=5, max_overflow=0, guard={"minimum_idle": 4}))
    opened = []

    @event.listens_for(lab.engine, "connect")
    def listener(*_):
        if len(opened) == 2:
            raise OSError("db.internal:5432 is full")
        opened.append(1)

    with pytest.raises(WarmUpError, match=r"^'db' has 2 of 4 idle connections: opening the next") as raised:
        lab.guard.warm_up()
    assert (raised.value.idle, raised.value.wanted) == (2, 4)
    assert isinstance(raised.value.__cause__, OSError)
    assert "internal" not in str(raised.value)
    assert (lab.pool.checkedin(), lab.pool.checkedout()) == (2, 0)


def test_warm_up_is_over_at_its_timeout(lab, ended):
    """A frozen server: the warm-up ends, and the pool is as it was."""
    ended(lab.protect(guard={"minimum_idle": 2, "timeout": 20}))
    with lab.frozen():
        began = time.monotonic()
        with pytest.raises(WarmUpError, match="0 of 2"):
            lab._run(lambda: lab.guard.warm_up_async(0.3)) if hasattr(lab, "runner") else lab.guard.warm_up(
                0.3
            )
        assert time.monotonic() - began < 0.3 + LATE
    assert (lab.pool.checkedin(), lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0, 0)


@on_loops
def test_warm_up_of_an_event_loops_engine_must_be_awaited(lab, ended):
    ended(lab.protect(guard={"minimum_idle": 1}))
    with pytest.raises(ConfigurationError, match="await warm_up_async"):
        lab.guard.warm_up()


@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_async_warm_up_of_a_synchronous_engine_does_not_block_the_loop(lab, ended):
    ended(lab.protect(guard={"minimum_idle": 1, "timeout": 20}))

    async def main():
        ticks, warming = 0, asyncio.ensure_future(lab.guard.warm_up_async(0.3))
        while not warming.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert isinstance(warming.exception(), WarmUpError)
        return ticks

    with lab.frozen():
        assert asyncio.run(main()) > 5


def test_warm_up_is_refused_without_a_pool(lab):
    with pytest.raises(ConfigurationError, match="has no pool to warm up"):
        Guard("api", max_concurrent_calls=1).warm_up()
    guard = lab.protect()
    with pytest.raises(ConfigurationError, match=r"guard 'part' of '.*' has no pool"):
        guard.compartment("part").warm_up()
    with pytest.raises(ConfigurationError, match="warm_up: timeout must be a number of seconds above 0"):
        guard.warm_up(0)


@in_threads
def test_failed_openings_pause_and_open_the_circuit_only_as_evidence(lab, ended):
    """A pool whose server is away does not knock in a loop: the server may count failed logins."""
    with FaultProxy(lab.server.port) as proxy:
        lab.engine = create_engine(lab.url(proxy.port), connect_args=lab.backend.connect_args(lab.driver))
        lab.guard = protect(lab.engine, name="db", minimum_idle=2)
        ended(lab.guard)
        assert lab.guard.warm_up() == 2
        proxy.refuse()
        proxy.reset()
        lab.pool._pool.queue[0].invalidate()
        lab.guard._attachment.upkeep.check_soon()
        poll(lambda: lab.guard.snapshot().failed == 1, "one opening was tried")
        lab.pause(0.3)
        assert lab.guard.snapshot().failed == 1


# --- closing -----------------------------------------------------------------------------------


def test_idle_connections_above_the_minimum_are_closed(lab, ended):
    ended(lab.protect(pool_size=3, max_overflow=0, guard={"minimum_idle": 1, "idle_timeout": 0.3}))
    occupy(lab, 3)
    lab.until(lambda: lab.server_side(ALL) == 1, "two of three are closed")
    lab.until(lambda: (lab.pool.checkedin(), lab.pool.checkedout()) == (1, 0), "the pool knows it")
    lab.pause(0.2)
    assert lab.server_side(ALL) == 1
    assert len(occupy(lab, 3)) == 3, "the pool has room for as many as before"


def test_old_connections_are_closed_when_idle(lab, ended):
    ended(lab.protect(guard={"max_lifetime": 0.4}))
    first = lab.query("select pg_backend_pid()")
    lab.until(lambda: lab.server_side(ALL) == 0, "its time is over")
    assert lab.query("select pg_backend_pid()") != first


def test_old_connection_in_use_is_closed_on_its_return(lab, ended):
    ended(lab.protect(guard={"max_lifetime": 0.2}))

    def hold(session):
        number = session.execute("select pg_backend_pid()")
        session.execute("select pg_sleep(0.3)")
        assert session.execute("select pg_backend_pid()") == number, "it is not touched while it is out"
        return lab.server_side(ALL)

    assert lab.run(hold) == 1
    assert (lab.pool.checkedin(), lab.pool.checkedout()) == (0, 0)
    lab.until(lambda: lab.server_side(ALL) == 0, "it was closed")


@pytest.mark.parametrize("lifo", [False, True], ids=["queue", "stack"])
@pytest.mark.parametrize("lab", ["psycopg", "asyncpg"], indirect=True)
def test_resize_closes_idle_connections_and_those_that_return(lab, ended, lifo):
    """Open connections never exceed the limit for longer than the work on them."""
    ended(lab.protect(pool_size=4, max_overflow=0, pool_use_lifo=lifo))
    occupy(lab, 4)

    def shrink(session):
        session.execute("select 1")
        lab.guard.resize(1)
        until_here = time.monotonic() + 20
        while lab.server_side(ALL) > 1 and time.monotonic() < until_here:
            session.execute("select pg_sleep(0.02)")
        return lab.server_side(ALL)

    assert lab.run(shrink) == 1, "the three idle ones are closed while one is out"
    lab.guard.resize(3)
    occupy(lab, 3)
    released = threading.Event()

    def hold(session):
        session.execute("select 1")
        while not released.is_set():
            session.execute("select pg_sleep(0.02)")

    with lab.meanwhile(lambda: lab.run(hold), count=3):
        lab.until(lambda: lab.pool.checkedout() == 3, "three are out")
        lab.guard.resize(1)
        released.set()
    lab.until(lambda: lab.server_side(ALL) <= 1, "two of three were closed on their return")
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)


# --- keepalive ---------------------------------------------------------------------------------


def test_keepalive_pings_idle_connections(lab, ended):
    ended(lab.protect(guard={"keepalive": 0.1}))
    first = lab.query("select pg_backend_pid()")
    before = lab.guard.snapshot()
    lab.until(lambda: lab.guard.snapshot().succeeded >= before.succeeded + 3, "three pings")
    after = lab.guard.snapshot()
    assert (after.calls, after.failed, after.in_use) == (before.calls, 0, 0), "a ping is neutral"
    assert lab.query("select pg_backend_pid()") == first


def test_keepalive_replaces_a_dead_connection_before_a_caller_gets_it(lab, ended):
    ended(lab.protect(guard={"keepalive": 0.1, "minimum_idle": 1}))
    first = lab.query("select pg_backend_pid()")
    lab.aside(lab.backend.say(f"select pg_terminate_backend({first})"))
    lab.until(lambda: lab.guard.snapshot().failed == 1, "the ping fails")
    lab.until(lambda: lab.pool.checkedin() == 1 and lab.server_side(ALL) == 1, "another one is opened")
    assert lab.query("select pg_backend_pid()") != first


def test_keepalive_on_a_frozen_server_is_bounded_and_a_failure(lab, ended):
    ended(lab.protect(guard={"keepalive": 0.1, "timeout": 0.3}))
    lab.query("select 1", timeout=5)
    with lab.frozen():
        lab.until(lambda: lab.guard.snapshot().failed >= 1, "the ping is stopped")
        lab.until(lambda: lab.guard.snapshot().in_use == 0, "its slot is free")
        lab.until(lambda: lab.pool.checkedout() == 0, "the connection is gone")
    assert lab.soon() == 42


def test_keepalive_leaves_the_last_slot_to_callers(lab, ended):
    """While every slot is taken, no idle connection is pinged."""
    ended(lab.protect(guard={"keepalive": 0.05, "max_concurrent_calls": 2}))
    occupy(lab, 2)
    guard = lab.guard

    def hold(session):
        session.execute("select 1")
        with guard.call():
            guard.resize(1)
            before = guard.snapshot().succeeded
            session.execute("select pg_sleep(0.2)")
            return guard.snapshot().succeeded - before

    assert lab.run(hold) == 1, "the statement alone"


@in_threads
def test_open_circuit_is_left_to_callers(lab, ended):
    """No ping and no opening uses up a probe."""
    guard = lab.protect(
        guard={
            "keepalive": 0.05,
            "minimum_idle": 2,
            "breaker": BreakerPolicy(wait_duration_in_open_state=0.1, permitted_calls_in_half_open_state=1),
        }
    )
    ended(guard)
    lab.query("select 1")
    guard.force_open()
    lab.pause(0.1)
    before = guard.snapshot().succeeded
    lab.pause(0.3)
    assert guard.snapshot().succeeded == before


# --- its end -----------------------------------------------------------------------------------


def test_detach_ends_the_upkeep(lab):
    guard = lab.protect(guard={"keepalive": 0.05, "minimum_idle": 2, "max_lifetime": 0.5})
    warm_up(lab)
    guard.detach()
    lab.pause(0.1)
    before = lab.server_side(ALL), guard.snapshot().succeeded
    lab.pause(0.6)
    assert (lab.server_side(ALL), guard.snapshot().succeeded) == before == (2, before[1])


def test_dispose_leaves_the_upkeep_to_the_next_pool(lab, ended):
    ended(lab.protect(guard={"minimum_idle": 2}))
    warm_up(lab)
    lab.dispose()
    lab.until(lambda: lab.server_side(ALL) == 0, "the sessions of the old pool have ended")
    lab.query("select 1")
    lab.until(lambda: lab.server_side(ALL) == 2, "the new pool is filled")


def test_work_on_an_engine_that_was_dropped_ends(lab):
    """The upkeep does not keep an engine alive."""
    lab.protect(guard={"keepalive": 0.05, "leak_after": 0.1})
    lab.query("select 1")
    upkeep = lab.guard._attachment.upkeep
    reference = weakref.ref(upkeep)
    lab.dispose()
    lab.guard = lab.engine = upkeep = None
    gc.collect()
    lab.until(lambda: gc.collect() is not None and reference() is None, "it is collected")


@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_child_does_not_touch_its_parents_connections(lab, ended):
    """A fork inherits the pool with open sockets. Closing or pinging one would break the parent's session."""
    ended(lab.protect(guard={"keepalive": 0.05, "max_lifetime": 0.2, "minimum_idle": 1}))
    lab.guard.warm_up()
    upkeep = lab.guard._attachment.upkeep
    upkeep.stopped = True  # in the parent; its connection stays as it is
    record = lab.pool._pool.queue[0]
    number = record.dbapi_connection.info.backend_pid
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        try:
            upkeep.stopped = False
            upkeep.check_soon()
            poll(lambda: len(upkeep.idle()) == 1, "the child opens a connection of its own")
            time.sleep(0.3)
            untouched = record in lab.pool._pool.queue and record.dbapi_connection is not None
            os._exit(0 if untouched and record not in dict(upkeep.idle()) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lab.query("select pg_backend_pid()") == number


# --- bad input ---------------------------------------------------------------------------------


def test_pool_that_keeps_nothing_is_refused():
    engine = create_engine("sqlite://", poolclass=NullPool)
    with pytest.raises(ConfigurationError, match="a NullPool keeps no idle connections"):
        protect(engine, max_concurrent_calls=2, timeout=None, max_lifetime=3)


def test_minimum_idle_is_at_most_the_pool_size():
    engine = create_engine("postgresql+psycopg://db/orders", pool_size=3, max_overflow=5)
    with pytest.raises(ConfigurationError, match="minimum_idle must be a whole number from 0 to 3, got 4"):
        protect(engine, minimum_idle=4)


@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_preping_is_not_left_out_for_a_connection_of_the_upkeep(lab, ended):
    """SQLAlchemy does not ping a connection that it has just opened; this one may be hours old."""
    ended(lab.protect(pool_pre_ping=True, guard={"minimum_idle": 1}))
    lab.guard.warm_up()
    number = lab.pool._pool.queue[0].dbapi_connection.info.backend_pid
    lab.aside(f"select pg_terminate_backend({number})")
    assert lab.query("select 42") == 42


@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_set_up_of_an_idle_connection_is_that_of_every_other(lab, ended):
    """The engine's listeners see a connection that the upkeep opens."""
    ended(lab.protect(guard={"minimum_idle": 2}))

    @event.listens_for(lab.engine, "connect")
    def set_path(connection, _):
        connection.execute("set application_name = 'lab'; set search_path = pg_catalog")
        connection.commit()

    lab.guard.warm_up()
    assert lab.query("show search_path") == "pg_catalog"
    with lab.engine.connect() as connection:
        assert connection.execute(text("show search_path")).scalar() == "pg_catalog"


@pytest.mark.parametrize("mode", ["shadow", "off"])
@pytest.mark.parametrize("lab", ["psycopg", "asyncpg"], indirect=True)
def test_guard_that_does_not_enforce_touches_no_connection(lab, ended, mode):
    """Nothing is opened, pinged or closed, and a smaller pool keeps what it has."""
    guard = lab.protect(
        pool_size=3,
        max_overflow=0,
        guard={"mode": mode, "minimum_idle": 2, "keepalive": 0.05, "max_lifetime": 0.1, "idle_timeout": 0.1},
    )
    ended(guard)
    occupy(lab, 3)
    open_now, succeeded = lab.server_side(ALL), guard.snapshot().succeeded
    guard.resize(1)
    lab.pause(0.5)
    assert (lab.server_side(ALL), guard.snapshot().succeeded) == (open_now, succeeded)
    guard.set_mode("enforce")
    lab.until(lambda: lab.server_side(ALL) <= 1, "from now on it acts")


# --- disposal while a connection is opened ---------------------------------------------------------


@pytest.mark.parametrize("when", ["after it was emptied", "before the opener looks"])
def test_a_connection_opened_into_a_pool_that_is_disposed_of_is_closed(tmp_path, when):
    """Else it would stay open for as long as the old pool is not collected."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}", poolclass=QueuePool, pool_size=2)
    guard = protect(engine, keepalive=600)  # nothing is opened but by the test
    upkeep, pool, closed = guard._attachment.upkeep, engine.pool, []
    event.listen(pool, "close", lambda *_: closed.append(1))
    if when == "after it was emptied":
        empty = pool.dispose
        pool.dispose = lambda: (empty(), upkeep._open())
        engine.dispose()
    else:
        put = pool._pool.put
        pool._pool.put = lambda *given: (put(*given), setattr(engine, "pool", pool.recreate()))
        assert upkeep._open() is False
    assert (pool._pool.qsize(), closed) == (0, [1])
    guard.detach()
    engine.dispose()


@pytest.mark.parametrize(
    ("when", "answers"),
    [("while it is pinged", True), ("while it is pinged", False), ("before it is put back", True)],
)
def test_a_connection_pinged_while_its_pool_is_disposed_of_is_closed(tmp_path, when, answers):
    """Put into the next pool it would be one connection that that pool does not count."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}", poolclass=QueuePool, pool_size=2)
    guard = protect(engine, keepalive=600)  # nothing is pinged but by the test
    upkeep, old, closed = guard._attachment.upkeep, engine.pool, []
    engine.connect().close()
    event.listen(old, "close", lambda *_: closed.append(1))
    [(record, age)] = upkeep.idle()

    def ping(_):
        if when == "while it is pinged":
            engine.dispose()
        return answers

    engine.dialect.do_ping = ping
    if when == "before it is put back":
        put = old._pool.put
        old._pool.put = lambda *given: (engine.dispose(), put(*given))
    assert upkeep.take(record)
    assert run_to_end(upkeep._answers(record, age)) is answers
    assert (old._pool.qsize(), closed) == (0, [1])
    assert engine.pool is not old
    assert (engine.pool.checkedin(), upkeep.open_count(), guard.snapshot().pool.open) == (0, 0, 0)
    with engine.connect() as first, engine.connect():
        assert first.scalar(text("select 1")) == 1
        assert (engine.pool.checkedout(), upkeep.open_count()) == (2, 2)
    guard.detach()
    engine.dispose()
