"""The figures of guarded pools against what the server and the callers say, for each driver and client."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings

import pytest
import redis
import redis.asyncio
from django.core.signals import request_finished
from django.db import connections
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from guardrails import BulkheadFullError, ConfigurationError, Guard, pool_status, protect
from guardrails.integrations.prometheus import GuardCollector
from support import django_lab
from support.polling import poll
from support.sql_lab import drivers, lab_with

lab = lab_with(drivers())

WORK = "select 1 from pg_sleep(0.1)"

CLASSIC = {
    "db_pool_open_connections",
    "db_pool_in_use_connections",
    "db_pool_idle_connections",
    "db_pool_wait_total",
    "db_pool_wait_duration_seconds",
    "db_connection_hold_duration_seconds",
    "db_pool_exhausted_total",
}


def numbers(seen):
    """Open, in use and idle."""
    return seen.open, seen.in_use, seen.idle


def totals(seen):
    """Checkouts, opened, closed and invalidated."""
    return seen.checkouts, seen.opened, seen.closed, seen.invalidated


def scrape(guard, *, classic_names=False):
    """The samples of a scrape, by name and the values of the labels."""
    registry = CollectorRegistry()
    registry.register(GuardCollector([guard], classic_names=classic_names))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def await_in_use(lab, count):
    """Waits until so many connections are out; an event loop gets on with its tasks meanwhile."""

    def are_out():
        lab.pause(0.01)
        return lab.guard.snapshot().pool.in_use == count

    poll(are_out, f"{count} connections are out")


# --- engines -----------------------------------------------------------------------------------------


def test_connections_are_those_of_the_server(lab):
    """While they are used, when they are back, when one was invalidated, and after a dispose."""
    guard = lab.protect(pool_size=2, max_overflow=1)
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.3)"), count=3) as answers:
        await_in_use(lab, 3)
        seen = guard.snapshot().pool
        assert numbers(seen) == (3, 3, 0)
        assert (seen.overflow, seen.capacity, seen.pool_size) == (1, 3, 2)
        assert lab.server_side("true") == 3
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    seen = pool_status(lab.engine)
    assert numbers(seen) == (2, 0, 2)
    assert totals(seen) == (3, 3, 1, 0)
    poll(lambda: lab.server_side("true") == 2, "the third one was closed")
    assert scrape(guard)["db_client_connection_count", "db", "idle"] == 2
    lab.dispose()
    seen = guard.snapshot().pool
    assert numbers(seen) == (0, 0, 0)
    assert seen.closed == seen.opened
    poll(lambda: lab.server_side("true") == 0, "all were closed")


def measure(lab, callers):
    """Runs callers at once, each with a statement of 0.1 s; returns sums of what they measured.

    Of waiting for a connection, of holding it until the statement's end, and of both until it was back.
    """
    measured = []

    def work():
        asked = time.monotonic()
        with lab.engine.connect() as connection:
            got = time.monotonic()
            connection.execute(text(lab.backend.say(WORK)))
            done = time.monotonic()
        measured.append((got - asked, done - got, time.monotonic() - asked))

    async def work_async():
        asked = time.monotonic()
        async with lab.engine.connect() as connection:
            got = time.monotonic()
            await connection.execute(text(lab.backend.say(WORK)))
            done = time.monotonic()
        measured.append((got - asked, done - got, time.monotonic() - asked))

    async def together():
        await asyncio.gather(*(work_async() for _ in range(callers)))

    if isinstance(lab.engine, AsyncEngine):
        lab.runner.run(together())
    else:
        lab.all([work] * callers)
    assert len(measured) == callers
    return [sum(column) for column in zip(*measured, strict=True)]


def test_sums_are_what_the_callers_measured(lab):
    """The callers look at the clock outside and inside of what is counted, so the load changes nothing."""
    guard = lab.protect(pool_size=2, max_overflow=0, guard={"max_wait_duration": 5, "timeout": 10})
    lab.query("select 1")  # opened before the measurement
    before = guard.snapshot().pool
    waited, worked, total = measure(lab, 4)
    seen = guard.snapshot().pool
    wait, hold, use = ((getattr(seen, kind) - getattr(before, kind)).sum for kind in ("wait", "hold", "use"))
    rounding = 0.001
    assert waited / 2 <= wait <= waited + rounding  # a caller may be held up before it waits
    assert worked - rounding <= hold <= total - wait + rounding
    assert 4 * 0.1 * 0.9 <= use <= total
    assert (seen.waits, seen.timeouts, seen.exhausted) == (2, 0, 0)
    assert seen.use.count == 5


def test_refused_callers_are_counted_by_cause(lab):
    """One that queued in vain, and one for whom there was no room in the queue."""
    guard = lab.protect(
        pool_size=1, max_overflow=0, guard={"max_wait_duration": 0.05, "max_waiting": 1, "timeout": 10}
    )
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.6)")):
        await_in_use(lab, 1)
        with lab.meanwhile(lambda: lab.query("select 1"), count=2) as refused:
            pass
    assert [type(each) for each in refused] == [BulkheadFullError] * 2
    seen = guard.snapshot().pool
    assert (seen.waits, seen.timeouts, seen.exhausted, seen.checkouts) == (1, 1, 2, 1)


def test_stopped_statement_invalidates_its_connection(lab):
    """It is closed, and counted as such; the next caller opens another one."""
    guard = lab.protect(pool_size=1, max_overflow=0, guard={"timeout": 0.3})
    assert lab.soon() == 42
    with lab.meanwhile(lambda: lab.query("select pg_sleep(30)")) as answers:
        pass
    assert len(answers) == 1
    assert lab.soon() == 42
    seen = guard.snapshot().pool
    assert seen.invalidated == seen.closed == seen.opened - 1 >= 1


# --- Redis ---------------------------------------------------------------------------------------------


@pytest.fixture
def client(valkey):
    """A client with its guard."""
    client = redis.Redis.from_url(valkey.url(), max_connections=3, client_name="figures")
    protect(client, name="cache")
    yield client
    client.close()


def clients_of(valkey):
    """Connections of the test on the server."""
    with redis.Redis.from_url(valkey.url()) as other:
        return sum(each["name"] == "figures" for each in other.client_list())


def test_connections_of_a_redis_client_are_those_of_the_server(client, valkey):
    """Pipelines and subscribers hold theirs; a closed client has none."""
    pipelines = [client.pipeline(), client.pipeline()]
    for pipeline in pipelines:
        pipeline.watch("a")
    seen = pool_status(client)
    assert numbers(seen) == (2, 2, 0)
    assert clients_of(valkey) == 2
    assert [holder.where[0].split(":")[0].rpartition("/")[2] for holder in seen.holders] == [
        "test_pool_figures.py"
    ] * 2
    assert {holder.doing for holder in seen.holders} == {"nested"}
    for pipeline in pipelines:
        pipeline.reset()
    client.get("a")
    seen = pool_status(client)
    assert numbers(seen) == (2, 0, 2)
    assert totals(seen) == (3, 2, 0, 0)
    assert seen.holders == ()
    assert (seen.hold.count, seen.connect.count) == (3, 2)
    client.close()
    assert totals(pool_status(client)) == (3, 2, 2, 0)


def test_command_that_is_stopped_invalidates_its_connection(client, valkey):
    """The next command opens another one."""
    client.get("a")
    valkey.freeze()
    try:
        with pytest.raises(Exception, match=r"0\.2"), client_call(client, 0.2):
            client.get("a")
    finally:
        valkey.thaw()
    client.get("a")
    seen = pool_status(client)
    assert totals(seen) == (3, 2, 1, 1)
    assert seen.use.count == 3


def client_call(client, seconds):
    """A block of code with a timeout of its own."""
    return client.connection_pool._guardrails.call(seconds)


def test_asyncio_redis_client_has_the_same_figures(valkey):
    """Each task holds its own connection, and is named with its line."""

    async def main():
        client = redis.asyncio.Redis.from_url(valkey.url(), max_connections=3, client_name="figures")
        guard = protect(client, name="cache")
        pipeline = client.pipeline()
        await pipeline.watch("a")
        await asyncio.gather(*(client.get("a") for _ in range(2)))
        seen = pool_status(client)
        assert seen.in_use == 1
        assert "test_pool_figures.py" in seen.holders[0].where[0]
        assert seen.open == clients_of(valkey)
        await pipeline.reset()
        assert pool_status(guard).in_use == 0
        await client.aclose()
        seen = pool_status(guard)
        assert (seen.open, seen.checkouts, seen.opened - seen.closed) == (0, 3, 0)

    asyncio.run(main())


def test_exhausted_redis_pool_is_reported_with_its_holders(valkey, caplog):
    """As an engine's: which line holds the connections, and for how long."""
    client = redis.Redis.from_url(valkey.url(), max_connections=1)
    protect(client, name="cache", max_wait_duration=0, leak_after=0.1)
    pipeline = client.pipeline()
    pipeline.watch("a")
    with pytest.raises(BulkheadFullError):
        client.get("a")
    poll(lambda: len(reports(caplog)) >= 2, "the exhausted pool and the leak are logged", 10)
    assert all("test_pool_figures.py" in report for report in reports(caplog))
    pipeline.reset()
    client.close()


def reports(caplog):
    """What the monitor of the pool has logged."""
    return [record.getMessage() for record in caplog.records if record.module == "pool_reports"]


# --- Django --------------------------------------------------------------------------------------------

shop = Guard("shop", max_concurrent_calls=3, max_wait_duration=0)


@pytest.fixture(params=[{}, {"pool": {"min_size": 1, "max_size": 3}}], ids=["a thread each", "pool"])
def alias(request, postgres):
    """A guarded database of Django's, whose connections stay open between requests."""
    options = {"guard": shop, "application_name": "figures", **request.param}
    more = {} if request.param else {"CONN_MAX_AGE": None}
    with django_lab.configured("figures", django_lab.database(postgres, options, **more)):
        yield "figures"


def test_connections_of_django_are_those_of_the_server(alias, postgres):
    """In use inside a request, idle after it; their holder is the line of the query."""
    before = pool_status(shop) if shop.call_settings.attached else None
    with connections[alias].cursor() as cursor:
        cursor.execute("select 1")

        def on_server():
            cursor.execute("select count(*) from pg_stat_activity where application_name = 'figures'")
            return cursor.fetchone()[0]

        poll(lambda: on_server() == pool_status(alias).open, "a pool may still open one")
    seen = pool_status(alias)
    assert seen.in_use == 1
    assert "test_pool_figures.py" in seen.holders[0].where[0]
    assert seen.holders[0].doing == "other_work"
    request_finished.send(sender=None)
    seen = pool_status(alias)
    poll(lambda: pool_status(alias).idle == seen.open, "the connection is idle")
    assert pool_status(alias).holders == ()
    earlier = 0 if before is None else before.hold.count
    assert seen.hold.count == earlier + 1
    connections[alias].close()
    connections[alias].close_pool()
    poll(lambda: pool_status(alias).open == 0, "all are closed")
    seen = pool_status(alias)
    assert seen.opened == seen.closed >= 1


def test_thread_that_ends_with_its_connection_open_is_counted_as_dropped(alias):
    """Its slot comes back, and its connection is not in use any more."""

    def work():
        connections[alias].cursor().execute("select 1")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        poll(lambda: gc.collect() is not None and shop.snapshot().in_use == 0, "the slot came back")
    poll(lambda: pool_status(shop).in_use == 0, "the connection is gone")
    assert pool_status(shop).holders == ()


# --- one interface for all ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [None, 5, object(), redis.Redis, "nothing", Guard("x", max_concurrent_calls=1)]
)
def test_what_has_no_guarded_pool_is_refused(target):
    """With what to pass instead; an address in a text is not shown."""
    with pytest.raises(ConfigurationError, match="pool_status: "):
        pool_status(target)


def test_classic_names_are_exactly_the_seven(lab):
    """With the label ``pool_name``; without the option there are none."""
    guard = lab.protect()
    lab.query("select 1")
    registry = CollectorRegistry()
    registry.register(GuardCollector([guard], classic_names=True))
    families = [
        family
        for family in registry.collect()
        if family.name.startswith("db_") and "client" not in family.name
    ]
    names = {family.name + "_total" * (family.type == "counter") for family in families}
    assert names == CLASSIC
    assert {tuple(set(sample.labels) - {"le"}) for family in families for sample in family.samples} == {
        ("pool_name",)
    }
    assert not [key for key in scrape(guard) if key[0] in CLASSIC]


def test_options_of_the_collector_are_checked(lab):
    """By name."""
    with pytest.raises(ConfigurationError, match="classic_names must be True or False"):
        GuardCollector([lab.protect()], classic_names="yes")
