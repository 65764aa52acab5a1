"""Which database, which pool and which slot a connection of Django's gets, whatever was done to its alias."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
import time
from functools import partial

import psycopg
import pytest
from django.core.signals import request_finished, request_started
from django.db import OperationalError, connections, transaction
from django.db.backends.postgresql.base import Cursor, DatabaseWrapper
from django.db.utils import ConnectionHandler
from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests

from guardrails import (
    BreakerPolicy,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    DeadlineSpentError,
    Guard,
    deadline,
)
from guardrails._dbapi.connecting import InThread, Openings, StoppedError
from support import django_lab
from support.polling import poll

KEPT = {"CONN_MAX_AGE": None}


@pytest.fixture
def db():
    """A guard of two slots that waits for none."""
    return Guard("db", max_concurrent_calls=2, max_wait_duration=0, timeout=5.0)


@pytest.fixture
def databases(postgres):
    """Two databases, ``one`` and ``two``."""
    with psycopg.connect(postgres.url(""), autocommit=True) as plain:
        for name in ("one", "two"):
            plain.execute(f"create database {name}")
        yield
        for name in ("one", "two"):
            plain.execute(f"drop database {name} with (force)")


def ask(connection, sql="select current_database()"):
    """The first column of the first row."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def in_a_thread(work):
    """Runs something in a thread of its own, which leaves no connection behind."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


# --- the database --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [None, {"min_size": 1, "max_size": 2}], ids=["no pool", "a pool"])
def test_a_renamed_database_is_the_one_that_is_used(postgres, databases, db, pool):
    """As test runners do it: the wrapper is there first, then its database gets another name."""
    entry = django_lab.database(postgres, {"guard": db, "pool": pool}, NAME="one")
    with django_lab.configured("shop", entry) as connection:
        connection.settings_dict["NAME"] = "two"
        assert ask(connection) == "two"
        connection.close()
        if pool:
            connection.close_pool()
        connection.settings_dict["NAME"] = "one"
        assert ask(connection) == "one"
        assert in_a_thread(lambda: ask(connections["shop"])) == "one"


@pytest.mark.parametrize("pooled_first", [True, False])
def test_each_alias_of_a_guard_has_its_own_parameters(postgres, databases, db, monkeypatch, pooled_first):
    """Whether the first one has a pool or the second."""
    for word in ("PGHOST", "PGDATABASE", "PGUSER"):
        monkeypatch.setenv(word, "nowhere.invalid")
    pooled = django_lab.database(postgres, {"guard": db, "pool": {"min_size": 1, "max_size": 2}}, NAME="one")
    plain = django_lab.database(postgres, {"guard": db}, NAME="two")
    entries = [("pooled", pooled, "one"), ("plain", plain, "two")]
    with contextlib.ExitStack() as stack:
        for alias, entry, name in entries if pooled_first else entries[::-1]:
            assert ask(stack.enter_context(django_lab.configured(alias, entry))) == name
        assert db.snapshot().in_use == 2


def test_looking_at_an_alias_makes_no_pool(postgres, db):
    """Neither constructing the wrapper nor closing, detaching or copying it does."""
    entry = django_lab.database(postgres, {"guard": db, "pool": {"min_size": 1, "max_size": 2}})
    connection = ConnectionHandler({"default": {}, "shop": entry})["shop"]
    connection.copy()
    connection.close()
    connection.close_if_unusable_or_obsolete()
    db.detach()
    assert "shop" not in DatabaseWrapper._connection_pools


def test_a_copy_is_a_connection_of_its_own_behind_the_same_guard(postgres, db):
    """Also where the settings hold the guard itself, which cannot be copied."""
    with django_lab.configured("shop", django_lab.database(postgres, {"guard": db})) as connection:
        ask(connection)
        other = connection.copy()
        assert ask(other, "select pg_backend_pid()") != ask(connection, "select pg_backend_pid()")
        assert db.snapshot().in_use == 2
        other.close()
        assert db.snapshot().in_use == 1


def test_the_connection_that_makes_test_databases_is_not_guarded(postgres, db):
    """It may take long, and must work whatever the circuit says."""
    with django_lab.configured("shop", django_lab.database(postgres, {"guard": db})) as connection:
        db.force_open()
        with connection._nodb_cursor() as cursor:
            cursor.execute("select current_database()")
            assert cursor.fetchone() == ("postgres",)
            assert db.snapshot().in_use == 0
        db.reset()


# --- pools -----------------------------------------------------------------------------------------------


def test_a_smaller_pool_behind_the_same_guard_is_refused_by_name(postgres, db):
    """Of several aliases each pool must have a connection for each slot."""
    first = django_lab.database(postgres, {"guard": db, "pool": {"min_size": 1, "max_size": 2}})
    second = django_lab.database(postgres, {"guard": db, "pool": {"min_size": 1, "max_size": 1}})
    with django_lab.configured("shop", first) as connection:
        ask(connection)
        handler = ConnectionHandler({"default": {}, "replica": second})
        with pytest.raises(
            ConfigurationError,
            match=r"DATABASES\['replica'\].*guard 'db' has 2 slots, and the pool 1 connections",
        ):
            _ = handler["replica"]


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("max_idle_hold", 5, "None"),
        ("leak_after", None, "60.0"),
        ("compartments", "none", "'auto'"),
        ("ask_server", False, "True"),
    ],
)
def test_databases_behind_one_guard_have_the_same_options(postgres, db, option, value, known):
    """Which of them is used first must make no difference."""
    first = django_lab.database(postgres, {"guard": db})
    handler = ConnectionHandler(
        {
            "default": first,
            "equal": django_lab.database(postgres, {"guard": db, "leak_after": 60}),
            "other": django_lab.database(postgres, {"guard": db, option: value}),
        }
    )
    assert handler["default"]._protection is handler["equal"]._protection
    words = rf"DATABASES\['other'\]: OPTIONS\['{option}'\] must be {known}, .* guard 'db', got {value!r}"
    with pytest.raises(ConfigurationError, match=words):
        _ = handler["other"]


def test_a_pool_that_became_smaller_is_refused_when_it_is_opened(postgres, db):
    """Settings may change after the wrapper was made; nothing is asked of the server then."""
    with django_lab.configured("shop", django_lab.database(postgres, {"guard": db})) as connection:
        connection.settings_dict["OPTIONS"]["pool"] = {"min_size": 0, "max_size": 1}
        with pytest.raises(
            ConfigurationError,
            match=r"DATABASES\['shop'\].*guard 'db' has 2 slots, and the pool 1 connections",
        ):
            ask(connection)
        assert db.snapshot().in_use == 0


def test_a_guard_grows_no_further_than_its_smallest_pool(postgres, db):
    """Of those that were opened."""
    with contextlib.ExitStack() as stack:
        for alias, size in (("large", 5), ("small", 3)):
            options = {"guard": db, "pool": {"min_size": 0, "max_size": size}}
            ask(stack.enter_context(django_lab.configured(alias, django_lab.database(postgres, options))))
        db.resize(3)
        with pytest.raises(ConfigurationError, match="1 to 3"):
            db.resize(4)


def test_a_guard_of_an_engine_cannot_be_djangos_too(postgres, db):
    """Its slots would be counted twice."""

    class Elsewhere:
        most = upkeep = None

        def detach(self):
            pass

    from guardrails._guard.guard import attach  # noqa: PLC0415

    attach(db, Elsewhere())
    with pytest.raises(ConfigurationError, match=r"DATABASES\['shop'\]: guard 'db' protects something else"):
        _ = ConnectionHandler({"default": {}, "shop": django_lab.database(postgres, {"guard": db})})["shop"]


@pytest.fixture
def busy(postgres):
    """A pool of one behind a guard of one, whose connection somebody else has taken past the guard."""
    narrow = Guard("narrow", max_concurrent_calls=1, max_wait_duration=0, timeout=0.3)
    options = {"guard": narrow, "pool": {"min_size": 1, "max_size": 1}}
    with django_lab.configured("shop", django_lab.database(postgres, options)) as connection:
        pool = connection.pool
        pool.open(wait=True)
        held = [pool.getconn()]
        yield connection, pool, narrow, held
        while held:
            pool.putconn(held.pop())


def test_a_wait_that_was_given_up_costs_the_pool_no_connection(busy):
    """Ten waits that end at the guard's time or the caller's, and then the connection is there as before."""
    connection, pool, narrow, held = busy
    for number in range(4):
        with contextlib.ExitStack() as stack:
            if number % 2:
                stack.enter_context(deadline(0.1))
            with pytest.raises(CallTimeoutError):
                ask(connection)
        assert narrow.snapshot().in_use == 0
    narrow.reset()
    pool.putconn(held.pop())
    assert pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"] == 1
    assert ask(connection, "select 1") == 1


def test_a_wait_abandoned_in_another_thread_would_cost_one(postgres):
    """Why the pool is asked in the caller's thread: the connection comes, is closed, and counts as out."""
    with ConnectionPool(postgres.url(""), min_size=1, max_size=1, open=True) as pool:
        pool.wait()
        held = pool.getconn()
        with pytest.raises(StoppedError):
            Openings(lambda: 1).open(InThread(partial(pool.getconn, 10), None, 0.1))
        pool.putconn(held)
        poll(lambda: pool.get_stats()["requests_waiting"] == 0, "the abandoned wait has got it")
        for thread in threading.enumerate():
            if thread.name == "guardrails-connect":
                thread.join(5)
        assert (pool.get_stats()["pool_size"], pool.get_stats()["pool_available"]) == (1, 0)
        with pytest.raises(PoolTimeout):
            pool.getconn(0.2)


@pytest.mark.parametrize("limit", ["the pool's", "the guard's", "the caller's"])
def test_a_wait_in_vain_is_a_timeout_to_everybody(busy, limit):
    """To the middleware, to code that knows psycopg's pool, and to code that knows Django's errors."""
    connection, pool, narrow, _ = busy
    if limit == "the pool's":
        pool.timeout = 0.1
    within = deadline(0.1) if limit == "the caller's" else contextlib.nullcontext()
    with within, pytest.raises(PoolTimeout) as raised:
        ask(connection)
    error = raised.value
    assert isinstance(error, CallTimeoutError)
    assert isinstance(error, OperationalError)
    assert isinstance(error.__cause__, PoolTimeout)
    assert error.diag.sqlstate is None
    assert error.guard == "narrow"
    assert error.timeout == pytest.approx({"the guard's": 0.3}.get(limit, 0.1), abs=0.05)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(twin), str(twin), twin.guard) == (type(error), str(error), "narrow")
    assert narrow.snapshot().failed == (0 if limit == "the caller's" else 1)


def test_a_pool_whose_queue_is_full_refuses_as_a_guard_does(busy):
    """503 and not 500."""
    connection, pool, _, _ = busy
    pool.max_waiting = 1

    def wait():
        with pytest.raises(PoolTimeout):
            pool.getconn(2)

    waiting = threading.Thread(target=wait)
    waiting.start()
    poll(lambda: pool.get_stats().get("requests_waiting"), "somebody waits in the pool")
    with pytest.raises(BulkheadFullError) as raised:
        ask(connection)
    assert isinstance(raised.value.__cause__, TooManyRequests)
    waiting.join()


# --- connections that are kept between requests ----------------------------------------------------------


@pytest.fixture
def kept(postgres, db):
    """A connection that is kept, idle between two requests, and holds no slot."""
    entry = django_lab.database(postgres, {"guard": db}, **KEPT)
    with django_lab.configured("shop", entry) as connection:
        ask(connection)
        request_finished.send(sender=None)
        assert connection.connection is not None
        assert db.snapshot().in_use == 0
        yield connection


@contextlib.contextmanager
def refusing(guard, how):
    """A guard that refuses everybody."""
    if how == "open":
        guard.force_open()
        yield
        guard.reset()
        return
    gates = guard.call_settings.gates[0]
    slots = [gates.check_out(None) for _ in range(2)]
    yield
    for slot in slots:
        gates.check_in(slot)


@pytest.mark.parametrize("how", ["open", "full"])
def test_looking_after_a_kept_connection_needs_no_slot(kept, db, how):
    """A request that has no use for the database begins and ends while the guard refuses everybody."""
    with refusing(db, how):
        used = db.snapshot().in_use
        request_started.send(sender=None)
        assert kept.get_autocommit()
        assert kept.is_usable()
        kept.ensure_connection()
        assert db.snapshot().in_use == used
        request_finished.send(sender=None)
        with pytest.raises(CircuitOpenError if how == "open" else BulkheadFullError):
            ask(kept)
        kept.close()
    assert db.snapshot().in_use == 0


def test_the_first_statement_takes_the_slot(kept, db):
    """An empty transaction does not: nothing is said to the server before."""
    with transaction.atomic(using="shop"):
        assert db.snapshot().in_use == 0
    cursor = kept.cursor()
    assert db.snapshot().in_use == 0
    cursor.execute("select 1")
    assert db.snapshot().in_use == 1
    request_finished.send(sender=None)
    assert db.snapshot().in_use == 0
    cursor.execute("select 1")  # one that was kept longer than it should be
    assert db.snapshot().in_use == 1


@pytest.mark.parametrize("work", ["executemany", "copy", "stream", "chunks"])
def test_every_kind_of_work_takes_the_slot(kept, db, work):
    """Also what has no deadline."""
    if work == "chunks":
        with transaction.atomic(using="shop"), kept.chunked_cursor() as cursor:
            cursor.execute("select generate_series(1, 500)")
            assert [row[0] for row in cursor] == list(range(1, 501))
            assert db.snapshot().in_use == 1
        return
    with kept.cursor() as cursor:
        if work == "executemany":
            cursor.executemany("select %s", [(1,), (2,)])
        elif work == "copy":
            with cursor.copy("copy (select 1) to stdout") as rows:
                assert [bytes(row) for row in rows] == [b"1\n"]
        else:
            assert [*cursor.stream("select 1")] == [(1,)]
        assert db.snapshot().in_use == 1


def test_a_health_check_takes_the_slot_first(postgres, db):
    """It asks the server, and is done only for the sake of what comes next."""
    entry = django_lab.database(postgres, {"guard": db}, CONN_HEALTH_CHECKS=True, **KEPT)
    with django_lab.configured("shop", entry) as connection:
        ask(connection)
        request_finished.send(sender=None)
        with refusing(db, "open"), pytest.raises(CircuitOpenError):
            connection.cursor()
        connection.cursor().close()
        assert db.snapshot().in_use == 1


def test_a_connection_that_died_while_it_was_idle_is_replaced(postgres, db):
    """By a health check, as without a guard."""
    entry = django_lab.database(postgres, {"guard": db}, CONN_HEALTH_CHECKS=True, **KEPT)
    with django_lab.configured("shop", entry) as connection:
        pid = ask(connection, "select pg_backend_pid()")
        request_finished.send(sender=None)
        failed = db.snapshot().failed
        with psycopg.connect(postgres.url(""), autocommit=True) as plain:
            plain.execute("select pg_terminate_backend(%s)", (pid,))
        poll(lambda: ask(connection, "select pg_backend_pid()") != pid, "another connection")
        assert db.snapshot().in_use == 1
        assert db.snapshot().failed == failed + 1


# --- cursors and transactions ------------------------------------------------------------------------------


def test_cursors_are_psycopgs_own_kind(postgres, db):
    """By class, by name, and where a class has no room for attributes."""
    for alias, options, cls in (
        ("shop", {}, Cursor),
        ("slotted", {"cursor_factory": psycopg.Cursor}, psycopg.Cursor),
    ):
        entry = django_lab.database(postgres, {"guard": db, **options})
        with django_lab.configured(alias, entry) as connection, connection.cursor() as cursor:
            cursor.execute("select %s::int", [7])
            assert cursor.fetchone() == (7,)
            assert isinstance(cursor.cursor, cls)
            assert type(cursor.cursor).__name__ == "Cursor"


def test_pages_of_a_server_side_cursor_are_read_once(kept):
    """Who stops in the middle of a page and goes on gets the rest of it."""
    with transaction.atomic(using="shop"), kept.chunked_cursor() as cursor:
        cursor.cursor.itersize = 10
        cursor.execute("select generate_series(1, 25)")
        assert next(iter(cursor.cursor)) == (1,)
        assert [row[0] for row in cursor.cursor] == list(range(2, 26))


def test_a_refused_commit_is_rolled_back(kept):
    """Else the next COMMIT on the connection would be for its rows, too."""
    with kept.cursor() as cursor:
        cursor.execute("create temporary table refused (n int)")
    with pytest.raises(DeadlineSpentError), deadline(0.2), transaction.atomic(using="shop"):
        ask(kept, "insert into refused values (1) returning n")
        time.sleep(0.25)
    with transaction.atomic(using="shop"):
        ask(kept, "insert into refused values (2) returning n")
    assert ask(kept, "select sum(n) from refused") == 2


def test_the_end_of_a_savepoint_is_given_time_when_there_is_none(kept, db):
    """So that the body's own error comes out, and the outer block can go on."""
    ask(kept, "select 1")
    with transaction.atomic(using="shop"):
        with pytest.raises(LookupError), deadline(0.1), transaction.atomic(using="shop"):
            ask(kept, "select 1")
            time.sleep(0.15)
            with pytest.raises(DeadlineSpentError):
                ask(kept, "select 1")
            raise LookupError
        assert ask(kept, "select 1") == 1


@pytest.mark.parametrize("settings", [{}, KEPT], ids=["no pool", "kept"])
def test_the_circuit_opens_when_every_statement_fails(postgres, settings):
    """Connecting, savepoints, ROLLBACK and pings prove nothing: they work without memory."""
    judge = BreakerPolicy(minimum_number_of_calls=10, wait_duration_in_open_state=60)
    sick = Guard("sick", max_concurrent_calls=2, breaker=judge)
    entry = django_lab.database(postgres, {"guard": sick}, CONN_HEALTH_CHECKS=True, **settings)
    fail = "do $$ begin raise exception using errcode = '53100'; end $$"
    with django_lab.configured("shop", entry) as connection:
        refused = 0
        for _ in range(40):
            try:
                with transaction.atomic(using="shop"), transaction.atomic(using="shop"):
                    ask(connection, fail)
            except OperationalError:
                request_finished.send(sender=None)
            except CircuitOpenError:
                refused += 1
        snapshot = sick.snapshot()
        assert snapshot.state == "open", snapshot
        assert snapshot.failed <= 11
        assert refused >= 29


def test_a_new_connection_that_cannot_be_set_up_in_time_is_dropped(postgres):
    """The next one is whole: a half-made connection is never used."""
    calm = BreakerPolicy(slow_call_duration_threshold=20)
    hasty = Guard("hasty", max_concurrent_calls=1, max_wait_duration=0, timeout=1.0, breaker=calm)
    with psycopg.connect(postgres.url(""), autocommit=True) as plain:
        plain.execute("create role helper")
        entry = django_lab.database(postgres, {"guard": hasty, "assume_role": "helper"})
        try:
            with django_lab.configured("shop", entry) as connection:
                plain.execute("begin")
                plain.execute("lock table pg_authid in access exclusive mode")
                with pytest.raises(CallTimeoutError):
                    ask(connection)
                plain.execute("rollback")
                assert hasty.snapshot().in_use == 0
                assert ask(connection, "select current_user") == "helper"
        finally:
            plain.execute("rollback")
            plain.execute("drop role helper")


def test_a_connection_is_given_back_in_time_in_the_middle_of_a_transaction(postgres):
    """A pool asks the server to roll back first; a frozen one does not answer."""
    hasty = Guard("hasty", max_concurrent_calls=1, max_wait_duration=0, timeout=1.0)
    entry = django_lab.database(postgres, {"guard": hasty, "pool": {"min_size": 1, "max_size": 1}})
    with django_lab.configured("shop", entry) as connection:
        connection.set_autocommit(False)
        ask(connection)
        postgres.freeze()
        try:
            began = time.monotonic()
            connection.close()
            assert 0.9 < time.monotonic() - began < 6
        finally:
            postgres.thaw()
        assert hasty.snapshot().in_use == 0
        poll(lambda: answers(connection), "the pool has another connection", seconds=20)


def answers(connection):
    """Whether the database answers."""
    try:
        return ask(connection, "select 1") == 1
    except (CallTimeoutError, CircuitOpenError):
        return False
    finally:
        connection.rollback()
