"""Django's connections that are held idle for too long are taken back, with and without a pool."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import psycopg
import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connections, transaction
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from guardrails import ConfigurationError, ConnectionRevokedError, Guard, holding
from guardrails._pool import revoked_sessions
from guardrails._runtime.housekeeper import run_later
from guardrails.integrations.django.postgresql.base import DatabaseWrapper
from guardrails.testing.proxy import FaultProxy
from support import django_lab
from support.polling import poll

LIMIT = 0.1
"""Seconds for which a connection may be held idle here."""

LONGER = 0.5
"""The same where a proxy hides the ports: a round trip to the server must be shorter."""

KINDS = {
    "pool": {"pool": {"min_size": 1, "max_size": 3}},
    "kept": {},
}


@contextlib.contextmanager
def guarded(server, kind, size=3, wait=0.5):
    """A guard with the database ``shop`` behind it."""
    guard = Guard("db", max_concurrent_calls=size, max_wait_duration=wait)
    options = {"guard": guard, "max_idle_hold": LIMIT, **KINDS[kind]}
    if "pool" in options:
        options["pool"] = {"min_size": 1, "max_size": size}
    kept = {} if "pool" in options else {"CONN_MAX_AGE": None}
    with django_lab.configured("shop", django_lab.database(server, options, **kept)):
        yield guard
    guard.detach()


@pytest.fixture(params=KINDS)
def db(request, postgres):
    """The same, for a test."""
    with guarded(postgres, request.param) as guard:
        yield guard


@pytest.fixture
def table(postgres):
    """A table of the test's own."""
    aside(postgres, "create table if not exists revoked (a int)", "truncate revoked")
    yield "revoked"
    aside(postgres, "drop table revoked")


def aside(server, *statements):
    """Runs statements on a connection of their own; returns the last one's first value."""
    with psycopg.connect(server.url(""), autocommit=True) as connection:
        cursor = [connection.execute(sql) for sql in statements][-1]
        return cursor.fetchone()[0] if cursor.description else None


def run(sql):
    with connections["shop"].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def until_revoked(guard):
    poll(lambda: guard.snapshot().in_use == 0, "the connection is taken back")


def test_an_idle_transaction_is_rolled_back_and_its_commit_raises(db, table, postgres):
    """Its locks and its slot are free at once; the thread goes on with a new connection."""

    def hold():
        with transaction.atomic("shop"):
            run(f"insert into {table} values (1)")
            until_revoked(db)
            aside(postgres, f"drop table {table}", f"create table {table} (a int)")

    with pytest.raises(ConnectionRevokedError) as told:
        hold()
    assert told.value.guard == "db"
    assert "test_revoked_connections.py:" in told.value.where[0]
    assert run(f"select count(*) from {table}") == 0


def test_the_next_statement_raises_and_blocks_unwind(db, table):
    """Also inside a savepoint; what the block itself raises is not replaced."""

    def hold(then):
        with transaction.atomic("shop"), transaction.atomic("shop"):
            run(f"insert into {table} values (1)")
            until_revoked(db)
            then()

    def fail():
        raise KeyError("the holder's own")

    with pytest.raises(ConnectionRevokedError):
        hold(lambda: run("select 1"))
    with pytest.raises(KeyError, match="the holder's own"):
        hold(fail)
    assert run(f"select count(*) from {table}") == 0


def test_without_a_transaction(db):
    """The next statement raises, and the one after it has a new connection."""
    assert run("select 42") == 42
    until_revoked(db)
    with pytest.raises(ConnectionRevokedError):
        run("select 42")
    assert run("select 42") == 42


def test_the_next_request_of_the_thread_is_not_the_holder(db):
    """A connection that was taken back in one request is replaced in the next one, without an error."""
    assert run("select 42") == 42
    until_revoked(db)
    connections["shop"].close_if_unusable_or_obsolete()
    assert run("select 42") == 42


def test_a_statement_may_take_longer_than_the_limit(db):
    """A connection with a statement on it is not idle."""
    assert run(f"select 42 from pg_sleep({LIMIT * 4})") == 42


def test_work_that_is_not_seen(db, table):
    """A COPY runs on the driver's own cursor: its connection is not taken back until the request ends."""
    statement = f"copy {table} from stdin"
    with transaction.atomic("shop"), connections["shop"].cursor() as cursor, cursor.copy(statement) as copy:
        for n in range(8):
            copy.write_row((n,))
            time.sleep(LIMIT / 3)
    assert run(f"select count(*) from {table}") == 8


def test_a_stream_between_two_fetches_is_idle(db):
    """Its next page raises."""
    with (
        transaction.atomic("shop"),
        pytest.raises(ConnectionRevokedError),
        connections["shop"].chunked_cursor() as cursor,
    ):
        cursor.execute("select generate_series(1, 5000)")
        assert cursor.fetchmany(10)
        until_revoked(db)
        cursor.fetchmany(10)


def test_a_frozen_server_delays_nothing(db, postgres):
    """The slot is free at once, and other tasks of the housekeeper run."""
    assert run("select 42") == 42
    postgres.freeze()
    try:
        began = time.monotonic()
        until_revoked(db)
        ran = threading.Event()
        run_later(ran.set, 0.0)
        assert ran.wait(5)
        assert time.monotonic() - began < LIMIT + 1
    finally:
        postgres.thaw()
    with pytest.raises(ConnectionRevokedError):
        run("select 42")
    assert run("select 42") == 42


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_whose_close_is_swallowed_is_ended_over_another_connection(
    table, postgres, kind, monkeypatch, caplog
):
    """Its row lock is gone a moment later."""
    monkeypatch.setattr(revoked_sessions, "_DELAY", 0.1)
    aside(postgres, f"insert into {table} values (1)")
    guard = Guard("db", max_concurrent_calls=3)
    options = {"guard": guard, "max_idle_hold": LONGER, **KINDS[kind]}
    with FaultProxy(postgres.port) as first, FaultProxy(postgres.port) as second:
        entry = django_lab.database(postgres, options, PORT=first.port)
        with django_lab.configured("shop", entry) as connection:
            with pytest.raises(ConnectionRevokedError), transaction.atomic("shop"):
                run(f"update {table} set a = 2")
                first.hang("server")
                connection.settings_dict["PORT"] = second.port
                until_revoked(guard)
            poll(lambda: "ended over another connection (1)" in caplog.text, "the session was ended")
            assert aside(postgres, f"update {table} set a = 3 returning a") == 3
            first.heal()
    guard.detach()


def test_a_dead_server_keeps_no_other_database_from_the_question(table, postgres, monkeypatch, caplog):
    """The session of a second database is ended meanwhile; the first one's is when its server answers."""
    monkeypatch.setattr(revoked_sessions, "_DELAY", 0.1)
    monkeypatch.setattr(revoked_sessions, "_INTERVAL", 0.1)
    guard = Guard("several", max_concurrent_calls=3)
    options = {"guard": guard, "max_idle_hold": LONGER}
    line = "ended over another connection (1)"
    aside(postgres, f"insert into {table} values (1), (2)")
    with contextlib.ExitStack() as stack:
        dead, lossy, direct = (stack.enter_context(FaultProxy(postgres.port)) for _ in range(3))
        entries = {"dead": dead.port, "replica": lossy.port}
        opened = {
            alias: stack.enter_context(
                django_lab.configured(alias, django_lab.database(postgres, options, PORT=port))
            )
            for alias, port in entries.items()
        }
        for number, connection in enumerate(opened.values(), 1):
            connection.set_autocommit(False)
            with connection.cursor() as cursor:
                cursor.execute(f"update {table} set a = a where a = {number}")
        dead.hang()
        lossy.hang("server")
        opened["replica"].settings_dict["PORT"] = direct.port
        until_revoked(guard)
        poll(lambda: caplog.text.count(line) == 1, "the replica's session was ended", 10)
        assert aside(postgres, f"update {table} set a = 3 where a = 2 returning a") == 3
        dead.heal()
        lossy.heal()
        poll(lambda: locks(postgres, table) == 0, "the other one's session has ended", 10)
    guard.detach()


def locks(server, table):
    """The number of transactions that hold locks on a table."""
    return aside(server, f"select count(*) from pg_locks where relation = '{table}'::regclass")


def test_what_a_subclass_does_to_connect_runs_in_the_thread_that_asks(postgres, monkeypatch):
    """It may fetch a password: no lock of all connections is held meanwhile, and the housekeeper goes on."""
    monkeypatch.setattr(revoked_sessions, "_DELAY", 0.1)
    fetched = []
    original = DatabaseWrapper.get_connection_params

    def fetch(wrapper):
        fetched.append(threading.current_thread().name)
        return original(wrapper)

    monkeypatch.setattr(DatabaseWrapper, "get_connection_params", fetch)
    with guarded(postgres, "kept") as guard:
        assert run("select 42") == 42
        own = len(fetched)
        until_revoked(guard)
        poll(lambda: len(fetched) > own, "the server is asked")
        assert set(fetched[own:]) == {"guardrails-revoked-sessions"}


def test_holding(db):
    """A block of `holding` exempts the connection of its thread."""
    with holding(30):
        assert run("select 42") == 42
        time.sleep(LIMIT * 4)
        assert run("select 42") == 42
    until_revoked(db)
    with pytest.raises(ConnectionRevokedError):
        run("select 42")


@pytest.mark.parametrize(("leaks", "size"), [(12, 3), pytest.param(1000, 25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_leaks_of_threads_heal(postgres, table, kind, leaks, size):
    """Threads that sit on their connections cost no slot, and lose no statement that they have run."""
    with guarded(postgres, kind, size, wait=20) as guard:
        leak_and_heal(guard, table, leaks, size)


def leak_and_heal(db, table, leaks, size):
    """All connections are leaked at once, again and again."""
    go_on = threading.Event()
    begun, lost, failed = [], [], []

    def leak(number):
        try:
            with transaction.atomic("shop"):
                assert run(f"select {number}") == number
                begun.append(number)
                go_on.wait(60)
                run(f"insert into {table} values ({number})")
        except ConnectionRevokedError:
            lost.append(number)
        except Exception as error:
            failed.append(error)
        finally:
            django_lab.leave("shop")

    for first in range(0, leaks, size):
        threads = [threading.Thread(target=leak, args=(n,)) for n in range(first, first + size)]
        for thread in threads:
            thread.start()
        # A slow machine takes some of them back before their first statement.
        poll(
            lambda most=first + size: failed or len({*begun, *lost}) == most,
            "all connections are out, or were",
        )
        until_revoked(db)
        with transaction.atomic("shop"):
            assert run("select 42") == 42
        django_lab.leave("shop")
        go_on.set()
        for thread in threads:
            thread.join()
        go_on.clear()
    assert (failed, len(lost)) == ([], leaks)
    assert run(f"select count(*) from {table}") == 0
    django_lab.leave("shop")
    assert db.snapshot().in_use == 0


def slow_view(_request):
    with transaction.atomic("shop"):
        run("select 1")
        time.sleep(LIMIT * 3)
        run("select 1")
    return HttpResponse("never")


async def slow_async_view(_request):
    await sync_to_async(run)("select 1")
    await sync_to_async(time.sleep)(LIMIT * 3)
    await sync_to_async(run)("select 1")
    return HttpResponse("never")


urlpatterns = [path("slow", slow_view), path("async", slow_async_view)]


def test_a_view_that_waits_elsewhere(db):
    """It gets the error, with its route."""
    middleware = ["guardrails.integrations.django.GuardrailsMiddleware"]
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware):
        with pytest.raises(ConnectionRevokedError) as told:
            Client().get("/slow")
        assert told.value.route == "/slow"
    assert run("select 42") == 42


async def ask(where):
    async with ThreadSensitiveContext():  # as Django's own handler
        return await AsyncClient().get(where)


def test_an_asynchronous_view_that_waits_elsewhere(db):
    """Likewise under ASGI."""
    middleware = ["guardrails.integrations.django.GuardrailsMiddleware"]
    views = override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware)
    with views, pytest.raises(ConnectionRevokedError):
        asyncio.run(ask("/async"))


def test_a_wrong_limit_is_refused(postgres):
    """With the alias, the option and the range."""
    guard = Guard("db", max_concurrent_calls=3)
    options = {"guard": guard, "max_idle_hold": "soon"}
    entry = django_lab.database(postgres, options)
    refused = pytest.raises(ConfigurationError, match=r"'shop'\]: OPTIONS\['max_idle_hold'\] must be")
    with refused, django_lab.configured("shop", entry):
        pass
