"""Who holds a pool's connections: four ways to run out of them, and connections that were forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import threading
import time
import warnings

import greenlet
import httpx
import pytest
from sqlalchemy import StaticPool, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import guardrails
from guardrails import BulkheadFullError, ConfigurationError, protect
from guardrails._pool import holder_registry, pool_reports
from guardrails.events import LeakFound
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.sqlalchemy import (
    PoolSettings,
    leaks,
    pool_status,
)
from guardrails.integrations.sqlalchemy._pool import registry_of
from support.polling import poll

HERE = "test_holders.py:"
CANARY = "canary-3f1c"
"""What no page, log or message may show."""


def heard_by(events):
    """A listener that wants to know of leaks alone."""

    def listen(event):
        events.append(event)

    listen.events = (LeakFound,)
    return listen


@pytest.fixture
def make_engine(tmp_path):
    """Engines of a SQLite file with small pools, and their guards."""
    engines = []

    def make(size=2, **options):
        engine = create_engine(f"sqlite:///{tmp_path / CANARY}", pool_size=size, max_overflow=0)
        engines.append(engine)
        return engine, protect(engine, name="db", **options)

    yield make
    for engine in engines:
        engine.dispose()


@contextlib.contextmanager
def running(*works):
    """Works in threads of their own, until the block's end lets them go."""
    go_on = threading.Event()
    threads = [threading.Thread(target=work, args=(go_on,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield go_on
    finally:
        go_on.set()
        for thread in threads:
            thread.join(10)


def full(engine, size=2):
    """Waits until all connections are out."""
    poll(lambda: len(pool_status(engine).holders) == size, "all connections are out")


def load(engine, go_on):
    """A statement that takes as long as the block does."""

    def wait():
        go_on.wait()
        return 1

    with engine.connect() as connection:
        connection.connection.driver_connection.create_function("wait", 0, wait)
        connection.execute(text(f"select wait() /* {CANARY} */"))


def call_another_service(engine, go_on):
    """A connection that is held meanwhile."""
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        go_on.wait()


def ask_for_a_second(engine, go_on, over):
    """A connection, and one that is refused to who has it."""
    with engine.connect():
        go_on.wait()
        with contextlib.suppress(BulkheadFullError):
            engine.connect()
        over.wait()


def forget(engine, kept):
    """A connection that outlives the code that asked for it."""
    kept.append(engine.connect())


def test_slow_calls(make_engine):
    """All holders are in a statement: the pool is not the cause."""
    engine, _ = make_engine()
    with running(*[lambda go_on: load(engine, go_on)] * 2):
        full(engine)
        poll(lambda: pool_status(engine).cause == "slow_calls", "both are in a statement")
        status = pool_status(engine)
        assert (status.capacity, status.checked_out, status.idle, status.waiting) == (2, 2, 0, 0)
        assert {holder.doing for holder in status.holders} == {"statement"}
        assert all(HERE in holder.where[0] for holder in status.holders)
        assert all(" in load" in holder.where[0] for holder in status.holders)
        poll(lambda: " in load.<locals>.wait" in pool_status(engine).holders[0].now[0], "where it is now")
        assert "2 x in a statement" in str(status)
        assert leaks(engine, older_than=0) == ()
    assert pool_status(engine).cause == "free"
    assert pool_status(engine).idle == 2


def test_the_log_of_a_database_names_the_command_that_asks_it(make_engine):
    """Only PostgreSQL, MariaDB and MySQL can be asked."""
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/shop")
    guard = protect(engine, breaker=None, timeout=None)
    assert guard._gate.report.hint == "ask the database: guardrails diagnose"
    assert pool_status(engine).cause == "free"
    engine, other = make_engine()
    assert other._gate.report.hint == ""


def went_on(holder):
    """How many lines a holder's code is behind the one that asked."""
    first, now = (int(lines[0].split(":")[1].split()[0]) for lines in (holder.where, holder.now))
    return now - first


def both_wait(engine):
    """Waits until two have come to the other service."""
    full(engine)
    poll(lambda: [went_on(holder) for holder in pool_status(engine).holders] == [2, 2], "both wait there")


def test_held_idle(make_engine):
    """Connections held across other work; the status names the lines where their holders are now."""
    engine, _ = make_engine()
    with running(*[lambda go_on: call_another_service(engine, go_on)] * 2):
        both_wait(engine)
        assert pool_status(engine).cause == "held_idle"
        assert [found.doing for found in leaks(engine, older_than=0)] == ["other_work"] * 2


def test_nested(make_engine):
    """Callers who have one and ask for a second: each would wait for the others."""
    engine, _ = make_engine()
    over = threading.Event()
    with running(*[lambda go_on: ask_for_a_second(engine, go_on, over)] * 2) as go_on:
        try:
            full(engine)
            assert pool_status(engine).cause == "held_idle"
            go_on.set()
            poll(lambda: pool_status(engine).cause == "nested", "both have asked in vain")
        finally:
            over.set()


def test_nested_is_seen_in_two_connections_of_one_caller(make_engine):
    """Also where the second was granted."""
    engine, _ = make_engine()
    with engine.connect(), engine.connect():
        status = pool_status(engine)
        assert status.cause == "nested"
        assert [holder.doing for holder in status.holders] == ["nested"] * 2


def test_leak(make_engine):
    """The code that asked has ended without returning the connections."""
    engine, _ = make_engine()
    kept = []
    with running(*[lambda _: forget(engine, kept)] * 2):
        full(engine)
    status = pool_status(engine)
    assert status.cause == "leak"
    assert [(holder.doing, holder.now) for holder in status.holders] == [("gone", ())] * 2
    assert all(" in forget" in holder.where[0] for holder in leaks(engine))
    assert len(leaks(engine)) == 2
    for connection in kept:
        connection.close()
    assert leaks(engine) == ()


def test_the_cause_is_what_most_holders_do(make_engine):
    """Of several reasons the one of most holders is named, and each has its line."""
    engine, _ = make_engine(3)
    kept = []
    works = [lambda go_on: load(engine, go_on)] * 2
    with running(*works, lambda _: forget(engine, kept)):
        full(engine, 3)
        poll(lambda: "2 x in a statement" in str(pool_status(engine)), "both are in a statement")
        poll(lambda: "1 x gone" in str(pool_status(engine)), "the third has ended")
        poll(lambda: pool_status(engine).cause == "slow_calls", "both take long")
        assert [holder.doing for holder in pool_status(engine).holders].count("gone") == 1
    kept[0].close()


# --- on an event loop ------------------------------------------------------------------------------


async def repository(engine, go_on):
    """A session as a repository has it."""
    async with AsyncSession(engine) as session:
        await session.execute(text("select 1"))
        await go_on.wait()


def test_a_task_is_located_by_its_own_code(tmp_path):
    """Outside SQLAlchemy's greenlet is the code that asked; what it awaits now is where it is."""

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db", pool_size=1, max_overflow=0)
        protect(engine, name="db")
        go_on = asyncio.Event()
        task = asyncio.create_task(repository(engine, go_on))
        while not (holders := pool_status(engine).holders) or holders[0].now == holders[0].where[:1]:
            await asyncio.sleep(0.01)  # the statement is still under way
        (holder,) = pool_status(engine).holders
        assert holder.doing == "other_work"
        assert " in repository" in holder.where[0]
        assert " in repository" in holder.now[0]
        go_on.set()
        await task

        async def forget_it():
            return await engine.connect()

        connection = await asyncio.create_task(forget_it())
        assert pool_status(engine).cause == "leak"
        await connection.close()
        await engine.dispose()

    asyncio.run(main())


def test_greenlets_are_distinguished(make_engine, monkeypatch):
    """As under gevent: the thread goes on with something else, and the greenlet still has it."""
    monkeypatch.setattr(threading, "get_ident", lambda: id(greenlet.getcurrent()))
    engine, _ = make_engine()
    monkeypatch.undo()
    main = greenlet.getcurrent()
    one = greenlet.greenlet(lambda: call_another_service(engine, Switch(main)))
    one.switch()
    (holder,) = pool_status(engine).holders
    assert holder.doing == "other_work"
    assert [line.split()[-1] for line in holder.now[:2]] == ["Switch.wait", "call_another_service"]
    kept = []
    greenlet.greenlet(lambda: forget(engine, kept)).switch()
    assert sorted(holder.doing for holder in pool_status(engine).holders) == ["gone", "other_work"]
    one.switch()
    kept[0].close()


class Switch:
    """An event whose wait goes to another greenlet."""

    def __init__(self, elsewhere):
        self._elsewhere = elsewhere

    def wait(self):
        self._elsewhere.switch()


# --- reports ---------------------------------------------------------------------------------------


def logged(caplog):
    """The lines that the pool's monitor has logged; guards, perhaps of another test, log other lines."""
    return [record for record in caplog.records if record.module == "pool_reports"]


def test_a_connection_held_too_long_is_reported_once(make_engine, caplog):
    """In the log and to listeners; and again in the log when it comes back."""
    events = []
    engine, _ = make_engine(leak_after=0.1, listeners=[heard_by(events)])
    caplog.set_level(logging.INFO, logger="guardrails")
    with engine.connect():
        poll(lambda: events, "the leak is reported")
        time.sleep(0.3)
    (event,) = events
    assert (event.guard, event.cause, event.route) == ("db", "held", None)
    assert 0.1 <= event.seconds < 5
    assert " in test_a_connection_held_too_long_is_reported_once" in event.where[0]
    leak, back = (record.getMessage() for record in logged(caplog))
    assert event.where[0] in leak
    assert "nothing runs on it" in leak
    assert event.where[0] in back
    assert "came back" in back


@pytest.mark.parametrize("mode", ["enforce", "shadow", "off"])
def test_leaks_and_ages_are_reported_in_each_mode_also_beyond_the_slots(make_engine, mode):
    """A checkout that is let in without a slot is held for as long as one with a slot."""
    events = []
    slots = {"max_concurrent_calls": 1} if mode == "shadow" else {}
    engine, _ = make_engine(2, mode=mode, leak_after=0.1, listeners=[heard_by(events)], **slots)
    with engine.connect(), engine.connect():
        poll(lambda: len(events) == 2, "both leaks are reported")
        assert all(holder.seconds >= 0.1 for holder in pool_status(engine).holders)
    assert [event.cause for event in events] == ["held", "held"]
    assert all(0.1 <= event.seconds < 5 for event in events)


def test_work_is_no_leak(make_engine):
    """A statement may take as long as its deadline lets it; what comes after it is looked at."""
    events = []
    engine, _ = make_engine(leak_after=0.1, listeners=[heard_by(events)])
    with running(lambda go_on: load(engine, go_on)):
        time.sleep(0.4)
        assert pool_status(engine).holders[0].seconds > 0.2
        assert not events


def test_place_is_logged_once_a_minute(make_engine, caplog):
    """A loop that forgets connections does not fill the log; the listeners hear of each."""
    events = []
    engine, _ = make_engine(3, leak_after=0.1, listeners=[heard_by(events)])
    kept = []
    for _ in range(3):
        forget(engine, kept)
    poll(lambda: len(events) == 3, "all are reported")
    assert [record.levelname for record in logged(caplog)] == ["WARNING"]
    for connection in kept:
        connection.close()


def test_a_dropped_connection_is_reported(make_engine, caplog):
    """What the garbage collector gives back was not closed by anybody."""
    events = []
    engine, guard = make_engine(listeners=[heard_by(events)])
    engine.connect().execute(text("select 1"))
    gc.collect()
    poll(lambda: events, "the leak is reported")
    (event,) = events
    assert event.cause == "dropped"
    assert " in test_a_dropped_connection_is_reported" in event.where[0]
    assert "was dropped" in logged(caplog)[0].getMessage()
    assert guard.snapshot().in_use == 0
    engine.connect().close()
    time.sleep(0.1)
    assert len(events) == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_dropped_connection_of_a_loop_is_reported(driver, postgres):
    """SQLAlchemy drops the connection and logs that itself; the report names where it was taken."""
    events = []

    async def main():
        engine = create_async_engine(postgres.url(driver))
        guard = protect(engine, name="db", listeners=[heard_by(events)])
        connection = await engine.connect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            del connection
            gc.collect()
            while not events:
                await asyncio.sleep(0.01)
        assert guard.snapshot().in_use == 0
        await engine.dispose()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(main())
        gc.collect()
    assert [event.cause for event in events] == ["dropped"]
    assert " in test_a_dropped_connection_of_a_loop_is_reported.<locals>.main" in events[0].where[0]


def test_exhausted_pool_is_diagnosed_in_the_log(make_engine, caplog):
    """The first refused caller logs the diagnosis; then there is none for a while."""
    engine, _ = make_engine(max_wait_duration=0)
    with running(*[lambda go_on: call_another_service(engine, go_on)] * 2):
        both_wait(engine)
        for _ in range(3):
            with pytest.raises(BulkheadFullError):
                engine.connect()
    (record,) = logged(caplog)
    assert record.levelname == "WARNING"
    assert "pool 'db': 2 of 2 connections checked out" in record.getMessage()
    assert "2 x held across other work" in record.getMessage()
    assert " in call_another_service" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_burst_is_not_called_slow_and_a_lock_is_soon_after(make_engine, caplog, monkeypatch):
    """Both look the same at first. A burst is logged once in 30 s, and hides no slow statement."""
    monkeypatch.setattr(pool_reports, "_BUSY_RECHECK", 0.0)
    policy = guardrails.BreakerPolicy(slow_call_duration_threshold=0.5)
    engine, _ = make_engine(max_wait_duration=0, timeout=None, breaker=policy)
    with running(*[lambda go_on: load(engine, go_on)] * 2):
        poll(lambda: "2 x in a statement" in str(pool_status(engine)), "both are in a statement")

        def causes():
            with pytest.raises(BulkheadFullError):
                engine.connect()
            return [record.getMessage() for record in logged(caplog) if "pool 'db'" in record.getMessage()]

        if pool_status(engine).cause == "busy":  # a loaded machine may take longer to come here
            first = causes()
            assert len(first) == 1
            assert ": most have just begun: a burst" in first[0]
            assert causes() == first
        poll(lambda: pool_status(engine).cause == "slow_calls", "they take long")
        poll(lambda: "statements take long: look for locks" in causes()[-1], "the log has it")
        assert len(causes()) <= 2


def test_pool_that_runs_out_while_it_connects_is_diagnosed_too(make_engine, caplog):
    """The first refusal comes before anybody holds a connection; it may stay the only one."""
    engine, _ = make_engine(max_wait_duration=0)
    connecting = threading.Event()

    @event.listens_for(engine, "do_connect")
    def linger(*_):
        connecting.wait()

    with running(*[lambda go_on: call_another_service(engine, go_on)] * 2):
        poll(lambda: engine.pool.checkedout() == 2, "both connect")
        with pytest.raises(BulkheadFullError):
            engine.connect()
        assert not logged(caplog)
        connecting.set()
        poll(lambda: logged(caplog), "the log has it")
    assert "2 x held across other work" in logged(caplog)[0].getMessage()


def test_pool_that_a_middleware_refuses_for_is_diagnosed_too(make_engine, caplog, monkeypatch):
    """No refused request reaches the pool."""
    monkeypatch.setattr(pool_reports, "_INTERVAL", 0.05)
    engine, guard = make_engine(max_wait_duration=0)
    with running(*[lambda go_on: call_another_service(engine, go_on)] * 2):
        both_wait(engine)
        asyncio.run(guard._gate.reserve())
        poll(lambda: logged(caplog), "the log has it")
    assert "2 x held across other work" in logged(caplog)[0].getMessage()


def test_share_of_a_compartment_is_no_exhaustion(make_engine, caplog):
    """A compartment that has used up its share is no evidence about the pool."""
    engine, guard = make_engine(max_wait_duration=0)
    part = guard.compartment("reports", max_concurrent_calls=1)
    with part.call(), engine.connect():
        with part.call(), pytest.raises(BulkheadFullError):
            engine.connect()
        (holder,) = pool_status(engine).holders
        assert holder.compartment == "reports"
    assert not logged(caplog)


def test_a_holder_names_its_route(make_engine):
    """Under the middleware each holder has the template of its route."""
    engine, _ = make_engine()
    seen = []

    def order(request):
        with engine.connect():
            seen.extend(pool_status(engine).holders)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/orders/{number}", order)])
    app.add_middleware(GuardrailsMiddleware)

    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get(f"/orders/{CANARY}")).status_code == 200

    asyncio.run(main())
    assert [holder.route for holder in seen] == ["/orders/{number}"]
    assert " in test_a_holder_names_its_route.<locals>.order" in seen[0].where[0]


def test_status_and_reports_hold_no_secrets(make_engine, caplog):
    """No statement, no parameter, no file of a database: code and numbers."""
    events = []
    engine, _ = make_engine(1, leak_after=0.1, listeners=[heard_by(events)], max_wait_duration=0)
    with engine.connect() as connection:
        connection.execute(text(f"select '{CANARY}', :value"), {"value": CANARY})
        with pytest.raises(BulkheadFullError):
            engine.connect()
        poll(lambda: events and len(logged(caplog)) > 1, "the leak and the exhausted pool are reported")
        reports = [repr(events), repr(pool_status(engine)), str(pool_status(engine)), repr(leaks(engine))]
        reports += [record.getMessage() for record in logged(caplog)]
    assert len(reports) == 6
    assert not [text for text in reports if CANARY in text]


def test_full_compartment_does_not_look_through_stacks(make_engine, monkeypatch):
    """It refuses a thousand times a second where others are served."""
    engine, guard = make_engine(max_wait_duration=0)
    part = guard.compartment("reports", max_concurrent_calls=1)
    looks = []
    monkeypatch.setattr(holder_registry, "stack_of", lambda caller, otherwise: looks.append(caller))
    with part.call(), engine.connect():
        for _ in range(10):
            with part.call(), pytest.raises(BulkheadFullError):
                engine.connect()
    assert not looks


FORKING = """
import os, sys, time
from sqlalchemy import create_engine
from guardrails import protect
found = []
engine = create_engine("sqlite:///" + sys.argv[1])
protect(engine, leak_after=0.1, listeners=[found.append])
engine.connect().close()
kept = engine.connect()
kept.close()
time.sleep(0.05)
child = os.fork()
if child == 0:
    kept = engine.connect()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(0.01)
        if any(type(event).__name__ == "LeakFound" for event in found):
            os._exit(0)
    os._exit(1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_leaks_are_reported_in_a_child_process(tmp_path):
    """A child process does not have the parent's thread, and starts one."""
    subprocess.run([sys.executable, "-c", FORKING, tmp_path / "db"], check=True, timeout=30)


# --- around it -------------------------------------------------------------------------------------


def test_a_detached_pool_is_not_checked(make_engine):
    """After a detach the connections that are out are not reported."""
    events = []
    engine, guard = make_engine(leak_after=0.1, listeners=[heard_by(events)])
    with engine.connect():
        guard.detach()
        time.sleep(0.3)
        with pytest.raises(ConfigurationError, match="not guarded"):
            pool_status(engine)
    assert not events


def test_leaks_are_not_reported_without_a_limit(make_engine):
    """``leak_after=None`` reports no leak; `leaks` still finds them."""
    events = []
    engine, _ = make_engine(leak_after=None, listeners=[heard_by(events)])
    with engine.connect():
        time.sleep(0.2)
        assert leaks(engine) == ()
        assert len(leaks(engine, older_than=0.1)) == 1
    assert not events


@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), "5", 10**400])
def test_limits_are_checked(make_engine, value):
    """Each by name, with what is allowed."""
    with pytest.raises(ConfigurationError, match="leak_after must be a number of seconds above 0"):
        make_engine(leak_after=value)
    if value != 0 or value is True:
        with pytest.raises(ConfigurationError, match="older_than must be a number of seconds from 0"):
            leaks(create_engine("sqlite://"), older_than=value)


def test_leaks_refuses_what_is_no_guarded_engine():
    """An engine without a guard, and an object that is no engine."""
    with pytest.raises(ConfigurationError, match=r"this engine is not guarded; call protect\(engine\) first"):
        leaks(create_engine("sqlite://"))
    with pytest.raises(ConfigurationError, match="expected an Engine or AsyncEngine, got str"):
        leaks(f"sqlite:///{CANARY}")


def test_pool_status_of_the_integration_is_that_of_the_package(make_engine):
    """It takes a guard, too."""
    assert pool_status is guardrails.pool_status
    _, guard = make_engine()
    assert pool_status(guard).name == "db"


def test_pool_of_one_file_of_static_connections_is_no_surprise():
    """A StaticPool lets the same connection out to several; each is a holder, the one below comes back."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    guard = protect(engine, max_concurrent_calls=3)
    with engine.connect(), engine.connect():
        assert guard.snapshot().in_use == 2
        assert len(pool_status(engine).holders) == 1
    assert pool_status(engine).holders == ()
    assert not registry_of(engine.pool).out


def test_settings_for_a_load():
    """The result of ``guardrails size``, as the arguments of an engine."""
    settings = PoolSettings.for_load(rate=240, hold=0.05, workers=4, max_connections=100)
    assert settings == PoolSettings(pool_size=6)
    engine = create_engine("sqlite:////tmp/unused", **settings.options())
    assert (engine.pool.size(), engine.pool._max_overflow, engine.pool._timeout) == (6, 0, 30.0)
    with pytest.raises(ConfigurationError, match="4 x 6 connections are needed, and each process can have 4"):
        PoolSettings.for_load(rate=240, hold=0.05, workers=4, max_connections=20)


@pytest.mark.parametrize(
    ("field", "value"),
    [("pool_size", 0), ("max_overflow", -1), ("pool_timeout", float("nan")), ("pool_recycle", 0)],
)
def test_settings_are_checked(field, value):
    """By name; several at once."""
    with pytest.raises(ConfigurationError, match=f"PoolSettings: {field} must be"):
        PoolSettings(**({"pool_size": 5} | {field: value}))


@pytest.mark.parametrize("value", [0, -1, float("nan"), "5", None])
def test_loads_are_checked(value):
    """A rate that is none is refused by name."""
    with pytest.raises(ConfigurationError, match="rate must be a number of checkouts per second above 0"):
        PoolSettings.for_load(rate=value, hold=0.05)
