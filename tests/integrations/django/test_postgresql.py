"""Django's own connections to PostgreSQL behind a guard: slots, deadlines, evidence, settings."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from django.core.signals import request_finished
from django.db import IntegrityError, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.utils import ConnectionHandler

from guardrails import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineSpentError,
    Guard,
    deadline,
    guarded,
)
from support import django_lab
from support.polling import poll

SLOTS = 3
POOL = {"min_size": 1, "max_size": SLOTS}

KINDS = {
    "a pool": ({"pool": POOL}, {}),
    "a connection for each request": ({}, {}),
    "persistent connections": ({}, {"CONN_MAX_AGE": None}),
}


@pytest.fixture
def db():
    """The guard: three slots, and no waiting for them."""
    return Guard("db", max_concurrent_calls=SLOTS, max_wait_duration=0, timeout=5.0)


@pytest.fixture(params=KINDS)
def shop(request, postgres, db):
    """The database ``shop`` in each of the ways in which Django can keep connections."""
    options, more = KINDS[request.param]
    with (
        psycopg.connect(postgres.url(""), autocommit=True) as plain,
        contextlib.closing(plain),
    ):
        plain.execute("create table if not exists item (id int primary key)")
        plain.execute("truncate item")
        entry = django_lab.database(postgres, {"guard": db, **options}, **more)
        with django_lab.configured("shop", entry) as connection:
            yield Shop(connection, plain)
        poll(lambda: Shop(None, plain).others() == 0, "no connection is left at the server")


class Shop:
    """A database with one table."""

    def __init__(self, connection, plain):
        self.connection = connection
        self.plain = plain

    def ask(self, sql="select 1", parameters=None):
        """The first column of what Django's connection says."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return [row[0] for row in cursor.fetchall()] if cursor.description else None

    def items(self):
        """The table, as another connection sees it."""
        return [row[0] for row in self.plain.execute("select id from item order by id")]

    def others(self, where="true"):
        """The connections and statements of clients besides our own."""
        question = (
            "select count(*) from pg_stat_activity where backend_type = 'client backend' "
            f"and pid <> pg_backend_pid() and {where}"
        )
        return self.plain.execute(question).fetchone()[0]

    def sleeping(self):
        """Statements that sleep at the server."""
        return self.others("state = 'active' and query like '%pg_sleep%'")


def end_of_request():
    """What Django says when a response was closed."""
    request_finished.send(sender=None)


# --- slots -------------------------------------------------------------------------------------------


def test_a_slot_is_held_from_the_first_query_to_the_end_of_the_request(shop, db):
    """As long as Django keeps the connection from everybody else; and again in the next request."""
    for _ in range(2):
        assert db.snapshot().in_use == 0
        assert [shop.ask() for _ in range(5)] == [[1]] * 5
        assert db.snapshot().in_use == 1
        end_of_request()
    assert db.snapshot().in_use == 0
    assert db.snapshot().admitted == 2


def test_one_too_many_is_refused_at_once(shop, db):
    """Not after the thirty seconds that a pool would let it wait."""
    inside, leave = threading.Barrier(SLOTS + 1), threading.Event()

    def work():
        with connections["shop"].cursor() as cursor:
            cursor.execute("select 1")
            inside.wait(20)
            leave.wait(20)
        django_lab.leave("shop")

    threads = [threading.Thread(target=work) for _ in range(SLOTS)]
    for thread in threads:
        thread.start()
    inside.wait(20)
    began = time.monotonic()
    with pytest.raises(BulkheadFullError):
        shop.ask()
    assert time.monotonic() - began < 5
    leave.set()
    for thread in threads:
        thread.join()
    assert shop.ask() == [1]


def test_a_thread_that_ends_with_its_connection_open_leaves_no_slot_behind(shop, db):
    """Nobody sends the signal outside of requests."""

    def forget():
        with connections["shop"].cursor() as cursor:
            cursor.execute("select 1")
        connections["shop"].connection.close()  # or psycopg complains of it, as it should

    thread = threading.Thread(target=forget)
    thread.start()
    thread.join()
    gc.collect()  # Django's connections and their parts know each other
    assert db.snapshot().in_use == 0


def test_a_compartment_holds_what_is_asked_inside(shop, db):
    """A decorated function takes no slot of its own; its connection takes one of the compartment's."""
    reports = db.compartment("reports")

    @guarded(reports)
    def report():
        assert (reports.snapshot().in_use, db.snapshot().in_use) == (0, 0)
        shop.ask()
        return reports.snapshot().in_use, db.snapshot().in_use

    assert report() == (1, 1)


# --- deadlines -----------------------------------------------------------------------------------------


def test_a_statement_is_stopped_at_its_deadline(shop, db):
    """On the server too; the next one is none the worse for it."""
    db.compartment("quick", timeout=0.3)

    @guarded(db.compartment("quick"))
    def slow():
        shop.ask("select pg_sleep(30)")

    began = time.monotonic()
    with pytest.raises(CallTimeoutError):
        slow()
    assert 0.2 < time.monotonic() - began < 5
    poll(lambda: shop.sleeping() == 0, "the statement is gone from the server")
    assert db.snapshot().failed == 1
    assert shop.ask() == [1]


def test_a_callers_deadline_is_no_evidence(shop, db):
    """It stops the statement all the same, and one that is spent starts none."""
    with deadline(0.3):
        with pytest.raises(CallTimeoutError):
            shop.ask("select pg_sleep(30)")
        time.sleep(0.3)
        with pytest.raises(DeadlineSpentError):
            shop.ask()
    assert db.snapshot().failed == 0
    assert shop.ask() == [1]


def test_a_transaction_that_is_stopped_is_rolled_back(shop):
    """And its error is what the block raises."""
    with pytest.raises(CallTimeoutError), transaction.atomic(using="shop"):
        shop.ask("insert into item values (1)")
        with deadline(0.3):
            shop.ask("select pg_sleep(30)")
    assert shop.items() == []
    with transaction.atomic(using="shop"):
        shop.ask("insert into item values (2)")
    assert shop.items() == [2]


def test_a_savepoint_that_is_stopped_ends_the_transaction(shop):
    """Its connection is gone, so that the block around it can ask for nothing more."""
    with pytest.raises(CallTimeoutError), transaction.atomic(using="shop"):
        shop.ask("insert into item values (1)")
        with transaction.atomic(using="shop"), deadline(0.3):
            shop.ask("select pg_sleep(30)")
    assert shop.items() == []
    assert shop.ask() == [1]


def test_rows_that_come_slowly_are_stopped(shop):
    """A server-side cursor makes the server work for each chunk."""
    with transaction.atomic(using="shop"), shop.connection.chunked_cursor() as cursor:
        cursor.execute("select n, pg_sleep(0.2 * n) from generate_series(0, 100) n")
        with deadline(0.3):
            assert cursor.fetchmany(1)[0][0] == 0
            with pytest.raises(CallTimeoutError):
                cursor.fetchmany(50)
    assert shop.ask() == [1]


def test_a_block_that_goes_on_after_a_timeout_is_told_so(shop, db):
    """Django refuses what comes after a lost transaction, and no slot is taken for it."""
    with pytest.raises(Exception, match=r"atomic|transaction|closed"), transaction.atomic(using="shop"):
        with deadline(0.3), contextlib.suppress(CallTimeoutError):
            shop.ask("select pg_sleep(30)")
        assert db.snapshot().in_use == 0
        shop.ask("insert into item values (1)")
    assert (shop.items(), db.snapshot().in_use) == ([], 0)
    assert shop.ask() == [1]


def test_migrations_may_take_their_time(postgres):
    """In a compartment that has no timeout."""
    hasty = Guard("hasty", max_concurrent_calls=2, timeout=0.3)
    entry = django_lab.database(postgres, {"guard": hasty})
    with django_lab.configured("shop", entry) as connection:
        shop = Shop(connection, None)
        with hasty.compartment("migrations", timeout=None).call():
            shop.ask("select pg_sleep(0.6)")
        end_of_request()
        with pytest.raises(CallTimeoutError):
            shop.ask("select pg_sleep(30)")


@pytest.mark.sampled(1)
def test_a_frozen_server_costs_no_more_than_the_deadline(shop, db, postgres):
    """A COMMIT says that nobody knows; then the circuit opens, and refuses without asking."""
    with pytest.raises(CommitUnknownError), transaction.atomic(using="shop"):
        shop.ask("insert into item values (1)")
        postgres.freeze()
        outer = deadline(0.5)
        outer.__enter__()
    outer.__exit__(None, None, None)
    try:
        began = time.monotonic()
        for _ in range(20):
            with deadline(0.2), pytest.raises((CallTimeoutError, CircuitOpenError)):
                shop.ask()
        assert time.monotonic() - began < 20
    finally:
        postgres.thaw()
    assert db.snapshot().in_use == 0
    poll(lambda: answers(shop), "it works again", seconds=20)


def answers(shop):
    """Whether the database answers; a pool that was frozen connects anew in its own time."""
    try:
        with deadline(1.0):
            return shop.ask() == [1]
    except CallTimeoutError:
        return False


# --- evidence ------------------------------------------------------------------------------------------


def test_an_answer_is_a_sign_of_life(shop, db):
    """Django's own error, and a success to the circuit."""
    shop.ask("insert into item values (1)")
    with pytest.raises(IntegrityError):
        shop.ask("insert into item values (1)")
    assert db.snapshot().failed == 0
    assert shop.ask() == [1]


def test_an_open_circuit_refuses_the_first_query(shop, db):
    """Nothing is opened, and nothing is kept."""
    db.force_open()
    with pytest.raises(CircuitOpenError):
        shop.ask()
    assert shop.connection.connection is None or shop.connection._checkout is None
    db.reset()
    assert shop.ask() == [1]


def test_detached_it_is_djangos_own(shop, db):
    """What is out comes back as if nothing had been."""
    shop.ask()
    db.detach()
    end_of_request()
    db.force_open()
    assert shop.ask() == [1]
    with transaction.atomic(using="shop"):
        shop.ask("insert into item values (1)")
    assert shop.items() == [1]


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"DATABASES\['wrong'\].*OPTIONS\['guard'\] must be a Guard or its dotted name, got None"),
        ({"guard": 7}, "must be a Guard or its dotted name, got 7"),
        ({"guard": "no_such_shop.db"}, r"OPTIONS\['guard'\]: 'no_such_shop.db' cannot be imported"),
        (
            {"guard": Guard("x", max_concurrent_calls=4), "pool": POOL},
            "guard 'x' has 4 slots, and the pool 3 connections: .* max_size of 4 or more, .*_calls=3",
        ),
        (
            {"guard": Guard("x", max_concurrent_calls=5), "pool": True},
            "guard 'x' has 5 slots, and the pool 4 connections: .* max_size of 5 or more, .*_calls=4",
        ),
        (
            {"guard": Guard("x", max_concurrent_calls=4), "timeout": 2},
            r"OPTIONS\['timeout'\] is a setting of the guard: Guard\(",
        ),
        ({"guard": Guard("x", max_concurrent_calls=4), "compartments": "all"}, "'declared' or 'none'"),
    ],
    ids=[
        "no guard",
        "no guard either",
        "nothing of that name",
        "more slots than connections",
        "more slots than connections of a pool without sizes",
        "a setting of the guard",
        "unknown compartments",
    ],
)
def test_wrong_settings_are_named(options, words):
    """When the database is first used."""
    entry = {"ENGINE": django_lab.ENGINE, "NAME": "shop", "OPTIONS": options}
    with pytest.raises(ConfigurationError, match=words):
        ConnectionHandler({"default": {}, "wrong": entry})["wrong"]
    DatabaseWrapper._connection_pools.pop("wrong", None)  # Django keeps them for the process


named = Guard("named", max_concurrent_calls=2)


def test_a_guard_may_be_named(postgres):
    """As settings do it; a compartment for each route, if asked for."""
    options = {"guard": f"{__name__}.named", "compartments": "auto"}
    with django_lab.configured("shop", django_lab.database(postgres, options)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
        assert [part.name for part in named.compartments] == ["default"]


def test_django_needs_no_sqlalchemy():
    """What stops statements is shared; who asks for the other half is told what to install."""
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_SQLALCHEMY],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (told.stdout, told.stderr) == (
        "SQLAlchemy is missing: pip install 'guardrails-db[sqlalchemy]'\n",
        "",
    )


WITHOUT_SQLALCHEMY = """
import sys
sys.modules["sqlalchemy"] = None
import guardrails.integrations.django.postgresql.base
try:
    from guardrails.integrations.sqlalchemy import guard_engine
except ImportError as error:
    print(error)
"""


def test_a_connection_that_psycopg_left_in_pipeline_mode_is_replaced(shop, db, monkeypatch):
    """Ctrl-C inside executemany() does that: the next statement on the connection would get no rows."""
    enter = psycopg.Pipeline.__enter__

    def interrupted(pipeline):
        enter(pipeline)
        raise KeyboardInterrupt

    assert shop.ask() == [1]
    with monkeypatch.context() as patch, shop.connection.cursor() as cursor:
        patch.setattr(psycopg.Pipeline, "__enter__", interrupted)
        with pytest.raises(BaseException) as caught:
            cursor.executemany("insert into item values (%s)", [(1,), (2,)])
        assert isinstance(caught.value.__context__ or caught.value, KeyboardInterrupt)
    end_of_request()
    assert shop.ask() == [1]
    assert shop.items() == []
    end_of_request()
    assert db.snapshot().in_use == 0
