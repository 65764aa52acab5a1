"""Django's own connections to MariaDB behind a guard: slots, deadlines, evidence, and what is MySQL's own.

Everything runs on PyMySQL. `test_the_same_on_mysqlclient` runs all of it again on mysqlclient.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from django.core.signals import request_finished, request_started
from django.db import DatabaseError, IntegrityError, OperationalError, connections, models, transaction
from django.db.models import Func, Value
from django.db.utils import ConnectionHandler

from guardrails import (
    BreakerPolicy,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    CommitUnknownError,
    ConfigurationError,
    ConnectionRevokedError,
    DeadlineSpentError,
    Guard,
    deadline,
    guarded,
)
from guardrails.fleet import Fleet
from guardrails.integrations.sqlalchemy import pool_status
from support import django_lab
from support.mysql_server import skip_on_mysql
from support.paths import ROOT, SUPPORT, python_path
from support.polling import poll
from support.sql_lab import MariaDB

backend = django_lab.load_mysql()

CURSORS = importlib.import_module(f"{backend.base.Database.__name__}.cursors")
"""mysqlclient imports them with its first connection."""

SLOTS = 3
KEPT = {"CONN_MAX_AGE": None}
KINDS = {"a connection for each request": {}, "kept connections": KEPT}


@pytest.fixture
def db():
    """The guard: three slots, and no waiting for them."""
    return Guard("db", max_concurrent_calls=SLOTS, max_wait_duration=0, timeout=5.0)


class Item(models.Model):  # noqa: DJ008
    """A row of the table."""

    n = models.IntegerField()

    class Meta:
        app_label, db_table, managed = "shop", "item", False


class Shop:
    """A database with one table, and a connection past Django."""

    def __init__(self, connection, plain, server):
        self.connection = connection
        self.plain = plain
        self.server = server

    def ask(self, sql="select 1", parameters=None):
        """The first column of what Django's connection says."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return [row[0] for row in cursor.fetchall()] if cursor.description else None

    def aside(self, sql):
        """The first value of what another connection says."""
        return MariaDB.run(self.plain, sql)

    def items(self):
        """The table, as another connection sees it."""
        with self.plain.cursor() as cursor:
            cursor.execute("select id from item order by id")
            return [row[0] for row in cursor.fetchall()]

    def sessions(self, where="true"):
        """The sessions of Django."""
        return self.aside(
            f"select count(*) from information_schema.processlist where user = 'lab' and {where}"
        )

    def listed(self, database):
        """The sessions of Django in a database, one by one."""
        with self.plain.cursor() as cursor:
            cursor.execute(
                "select id, command, time_ms, state, info "
                "from information_schema.processlist where user = 'lab' and db = %s",
                [database],
            )
            return cursor.fetchall()


@contextlib.contextmanager
def shop_behind(mariadb, options, **more):
    """The database ``shop``."""
    with MariaDB(mariadb).connect() as plain:
        MariaDB.run(plain, "create table if not exists item (id int primary key, n int) engine=innodb")
        MariaDB.run(plain, "truncate item")
        entry = django_lab.mysql_database(mariadb, options, **more)
        with django_lab.configured("shop", entry) as connection:
            shop = Shop(connection, plain, mariadb)
            yield shop
        gc.collect()  # threads that have ended with their connection open
        poll(lambda: shop.sessions() == 0, "no connection is left at the server")


@pytest.fixture(params=KINDS)
def shop(request, mariadb, db):
    """The database in each of the ways in which Django can keep connections."""
    with shop_behind(mariadb, {"guard": db}, **KINDS[request.param]) as shop:
        yield shop


@pytest.fixture
def kept(mariadb, db):
    """A connection that is kept, idle between two requests, and holds no slot."""
    with shop_behind(mariadb, {"guard": db}, **KEPT) as shop:
        shop.ask()
        end_of_request()
        assert (shop.connection.connection is not None, db.snapshot().in_use) == (True, 0)
        yield shop


def end_of_request():
    """What Django says when a response was closed."""
    request_finished.send(sender=None)


# --- slots -------------------------------------------------------------------------------------------


def test_a_slot_is_held_from_the_first_query_to_the_end_of_the_request(shop, db):
    for _ in range(2):
        assert db.snapshot().in_use == 0
        assert [shop.ask() for _ in range(3)] == [[1]] * 3
        assert db.snapshot().in_use == 1
        end_of_request()
    assert (db.snapshot().in_use, db.snapshot().admitted) == (0, 2)


def test_one_too_many_is_refused_at_once(shop, db):
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
    with pytest.raises(BulkheadFullError):
        shop.ask()
    assert pool_status("shop").in_use == SLOTS
    leave.set()
    for thread in threads:
        thread.join()
    assert shop.ask() == [1]


def test_a_thread_that_ends_with_its_connection_open_leaves_no_slot_behind(shop, db):
    def forget():
        with connections["shop"].cursor() as cursor:
            cursor.execute("select 1")

    thread = threading.Thread(target=forget)
    thread.start()
    thread.join()
    gc.collect()  # Django's connections and their parts know each other
    assert db.snapshot().in_use == 0


def test_a_compartment_holds_what_is_asked_inside(shop, db):
    reports = db.compartment("reports")

    @guarded(reports)
    def report():
        shop.ask()
        return reports.snapshot().in_use, db.snapshot().in_use

    assert report() == (1, 1)


def test_looking_after_a_kept_connection_needs_no_slot(kept, db):
    """A request without a query begins and ends while the guard refuses everybody."""
    db.force_open()
    request_started.send(sender=None)
    assert kept.connection.get_autocommit()
    assert kept.connection.is_usable()
    end_of_request()
    with pytest.raises(CircuitOpenError):
        kept.ask()
    kept.connection.close()
    db.reset()


def test_to_begin_a_transaction_takes_the_slot(kept, db):
    """MySQL is told of it, and a refusal leaves no transaction behind."""
    with transaction.atomic(using="shop"):
        assert db.snapshot().in_use == 1
    end_of_request()
    db.force_open()
    with pytest.raises(CircuitOpenError), transaction.atomic(using="shop"):
        pass
    db.reset()
    assert (kept.connection.in_atomic_block, kept.connection.get_autocommit()) == (False, True)
    with transaction.atomic(using="shop"):
        kept.ask("insert into item values (1, 0)")
    assert kept.items() == [1]


def test_figures_and_holders(shop, db):
    """The alias finds them, and a connection is counted once from its opening to its end."""
    shop.ask()
    pool = db.snapshot().pool
    assert (pool.system, pool.open, pool.in_use, pool.opened) == ("mysql", 1, 1, 1)
    assert "test_mysql.py:" in str(pool_status("shop"))
    shop.connection.close()
    pool = db.snapshot().pool
    assert (pool.open, pool.in_use, pool.opened, pool.closed) == (0, 0, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fleets_budget_is_kept_whatever_threads_keep(mariadb, tmp_path, kind):
    """Four threads take turns on a lease of two; a connection that waits for its next request makes room.

    They have a database of their own. A guard of another test may still ask the server who held a lock.
    """
    with MariaDB(mariadb).connect() as plain:
        MariaDB.run(plain, "create database if not exists budget")
        MariaDB.run(plain, "grant all on budget.* to lab@'127.0.0.1'")
    with contextlib.closing(Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")) as fleet:
        budget = fleet.budget("shop-db", connections=2, minimum=2)
        guard = Guard("db", max_concurrent_calls=2, max_wait_duration=0, fleet=budget)
        served, failed, seen = [], [], []

        def run():
            while time.monotonic() < over:
                try:
                    with transaction.atomic("shop"), connections["shop"].cursor() as cursor:
                        cursor.execute("select sleep(0.005)")
                    served.append(None)
                except BulkheadFullError:
                    time.sleep(0.002)
                except Exception as error:
                    failed.append(error)
                finally:
                    connections["shop"].close_if_unusable_or_obsolete()
            connections["shop"].close()

        options = {"guard": guard, "ask_server": False}
        with shop_behind(mariadb, options, NAME="budget", **KINDS[kind]) as shop:
            poll(lambda: shop.listed("budget") == (), "the sessions of the case before have ended")
            over = time.monotonic() + 1.5
            threads = [threading.Thread(target=run) for _ in range(4)]
            for thread in threads:
                thread.start()
            while time.monotonic() < over:
                seen.append(shop.listed("budget"))
            for thread in threads:
                thread.join(30)
            assert guard.snapshot().pool.lease.budget == "shop-db"
        assert not failed
        assert [sessions for sessions in seen if len(sessions) > 2] == []
        assert max(map(len, seen)) == 2
        assert len(served) > 10


# --- deadlines ---------------------------------------------------------------------------------------


def test_a_statement_is_stopped_at_its_deadline(shop, db):
    """On the server too; the next one is none the worse for it."""

    @guarded(db.compartment("quick", timeout=0.3))
    def slow():
        shop.ask("select sleep(30)")

    with pytest.raises(CallTimeoutError):
        slow()
    poll(lambda: shop.sessions("info like 'select sleep%'") == 0, "the statement is gone from the server")
    assert db.snapshot().failed == 1
    assert shop.ask() == [1]


READS = {
    "list": list,
    "get": lambda rows: rows.get(pk=1),
    "iterator": lambda rows: list(rows.iterator()),
    "for update": lambda rows: transaction.atomic(using="shop")(list)(rows.select_for_update()),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("cursors", ["Cursor", "SSCursor"])
def test_query_of_a_model_that_is_stopped_raises_the_guards_error(mariadb, db, cursors, read):
    """Django closes the cursor of a failed query before it raises, and its connection is closed by then."""
    options = {"guard": db, "cursorclass": getattr(CURSORS, cursors)}
    with shop_behind(mariadb, options, **KEPT) as shop:
        shop.ask("insert into item values (1, 0)")
        slowly = Item.objects.using("shop").annotate(slept=Func(Value(30), function="sleep"))
        with pytest.raises(CallTimeoutError), deadline(0.3):
            read(slowly)
        assert db.snapshot().failed == 0, "the end of the cursor is no evidence"
        assert read(Item.objects.using("shop"))
        end_of_request()


def test_a_callers_deadline_is_no_evidence(shop, db):
    with deadline(0.3):
        with pytest.raises(CallTimeoutError):
            shop.ask("select sleep(30)")
        time.sleep(0.3)
        with pytest.raises(DeadlineSpentError):
            shop.ask()
    assert db.snapshot().failed == 0
    assert shop.ask() == [1]


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_transaction_that_is_stopped_is_rolled_back(shop, savepoint):
    with pytest.raises(CallTimeoutError), transaction.atomic(using="shop"):
        shop.ask("insert into item values (1, 0)")
        inner = transaction.atomic(using="shop") if savepoint else contextlib.nullcontext()
        with inner, deadline(0.3):
            shop.ask("select sleep(30)")
    assert shop.items() == []
    with transaction.atomic(using="shop"):
        shop.ask("insert into item values (2, 0)")
    assert shop.items() == [2]


def test_the_end_of_a_savepoint_is_given_time_when_there_is_none(kept):
    with transaction.atomic(using="shop"):
        with pytest.raises(LookupError), deadline(0.1), transaction.atomic(using="shop"):
            kept.ask("insert into item values (1, 0)")
            time.sleep(0.15)
            with pytest.raises(DeadlineSpentError):
                kept.ask()
            raise LookupError
        kept.ask("insert into item values (2, 0)")
    assert kept.items() == [2]


def test_a_refused_commit_is_rolled_back(kept):
    with pytest.raises(DeadlineSpentError), deadline(0.2), transaction.atomic(using="shop"):
        kept.ask("insert into item values (1, 0)")
        time.sleep(0.25)
    with transaction.atomic(using="shop"):
        kept.ask("insert into item values (2, 0)")
    assert kept.items() == [2]


def test_a_commit_that_is_stopped_is_unknown(shop):
    """Here it waits for somebody who allows no writes."""
    outer = deadline(0.5)
    with MariaDB(shop.server).connect() as other:
        with pytest.raises(CommitUnknownError), transaction.atomic(using="shop"):
            shop.ask("insert into item values (1, 0)")
            MariaDB.run(other, "flush tables with read lock")
            outer.__enter__()
        outer.__exit__(None, None, None)
    assert shop.ask() == [1]


def test_what_waits_for_a_commit_is_done_even_if_the_connection_is_lost_then(kept, monkeypatch):
    """After the COMMIT the server is told that the transaction mode ends."""
    done = []
    plain = backend.base.DatabaseWrapper._set_autocommit

    def stuck(wrapper, autocommit):
        if autocommit and done == []:
            with wrapper.connection.cursor() as cursor:
                cursor.execute("select sleep(30)")
        plain(wrapper, autocommit)

    with monkeypatch.context() as patch, deadline(0.5), transaction.atomic(using="shop"):
        kept.ask("insert into item values (1, 0)")
        transaction.on_commit(lambda: done.append(kept.items()), using="shop")
        patch.setattr(backend.base.DatabaseWrapper, "_set_autocommit", stuck)
    assert done == [[1]]
    assert kept.ask() == [1]


def test_a_transaction_by_hand_is_not_lost_without_an_error(kept):
    """Its COMMIT is the change of the mode, if the program makes no other."""
    kept.connection.set_autocommit(False)
    kept.ask("insert into item values (1, 0)")
    kept.connection.set_autocommit(True)
    assert kept.items() == [1]
    kept.connection.set_autocommit(False)
    kept.ask("insert into item values (2, 0)")
    with MariaDB(kept.server).connect() as other:
        MariaDB.run(other, "flush tables with read lock")
        with pytest.raises(CommitUnknownError), deadline(0.5):
            kept.connection.set_autocommit(True)
    assert kept.items() == [1]


def test_a_transaction_by_hand_whose_connection_was_taken_back_fails(mariadb):
    """With its own COMMIT, and with the one that MySQL makes when the mode changes."""
    guard = Guard("impatient", max_concurrent_calls=1)
    entry = django_lab.mysql_database(mariadb, {"guard": guard, "max_idle_hold": 0.1}, **KEPT)
    with django_lab.configured("impatient", entry) as connection:
        for end in (connection.commit, lambda: connection.set_autocommit(True)):
            connection.set_autocommit(False)
            with connection.cursor() as cursor:
                cursor.execute("select 1")
            poll(lambda: guard.snapshot().in_use == 0, "the connection is taken back")
            with pytest.raises(ConnectionRevokedError):
                end()
            connection.close()
    guard.detach()


@pytest.mark.sampled(1)
def test_a_frozen_server_costs_no_more_than_the_deadline(shop, db):
    """To open a connection included; then the circuit opens, and refuses without asking."""
    shop.ask()
    shop.server.freeze()
    try:
        began = time.monotonic()
        for _ in range(20):
            with deadline(0.2), pytest.raises((CallTimeoutError, CircuitOpenError)):
                shop.ask()
        assert time.monotonic() - began < 20
    finally:
        shop.server.thaw()
    assert db.snapshot().in_use == 0
    poll(lambda: answers(shop), "it works again")


def answers(shop):
    """Whether the database answers."""
    with contextlib.suppress(CallTimeoutError, CircuitOpenError), deadline(1.0):
        return shop.ask() == [1]
    return False


def test_a_longer_statement_is_not_ended_by_the_servers_own_limit(mariadb):
    """The session has a limit for statements whose KILL is lost: four timeouts of the guard."""
    skip_on_mysql(mariadb, "has no limit for every statement, as max_statement_time is")
    calm = BreakerPolicy(slow_call_duration_threshold=20)
    hasty = Guard("hasty", max_concurrent_calls=2, timeout=0.5, breaker=calm)
    patient = hasty.compartment("patient", timeout=None)
    with shop_behind(mariadb, {"guard": hasty}, **KEPT) as shop:
        poll(lambda: answers(shop), "a connection that was opened in time")
        assert float(shop.ask("select @@max_statement_time")[0]) == 2.0
        end_of_request()
        with patient.call():
            assert shop.ask("select sleep(2.5)") == [0]
            with transaction.atomic(using="shop"), transaction.atomic(using="shop"):
                shop.ask("set foreign_key_checks = 0")
                with shop.connection.cursor() as cursor:
                    cursor.executemany("insert into item values (%s, %s)", [(n, n) for n in range(5)])
                    cursor.executemany("update item set n = 7 where id = %s", [(n,) for n in range(5)])
            assert shop.ask("select distinct n from item") == [7]
        end_of_request()
        assert float(shop.ask("select @@max_statement_time")[0]) == 2.0


# --- evidence ----------------------------------------------------------------------------------------


def test_an_answer_is_a_sign_of_life(shop, db):
    """Django's own error, and a success to the circuit."""
    shop.ask("insert into item values (1, 0)")
    with pytest.raises(IntegrityError):
        shop.ask("insert into item values (1, 0)")
    with pytest.raises(DatabaseError):
        shop.ask("select no_such_column")
    assert db.snapshot().failed == 0
    assert shop.ask() == [1]


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_the_circuit_opens_when_every_statement_fails(mariadb, settings):
    """To connect, to set a session up, to begin or end a transaction and to ping prove nothing."""
    judge = BreakerPolicy(minimum_number_of_calls=10, wait_duration_in_open_state=60)
    sick = Guard("sick", max_concurrent_calls=2, breaker=judge)
    refused = 0
    with shop_behind(mariadb, {"guard": sick}, CONN_HEALTH_CHECKS=True, **settings) as shop:
        for _ in range(40):
            try:
                with transaction.atomic(using="shop"), transaction.atomic(using="shop"):
                    shop.ask("signal sqlstate 'HY000' set mysql_errno = 1041, message_text = 'out of memory'")
            except OperationalError:
                end_of_request()
            except CircuitOpenError:
                refused += 1
        snapshot = sick.snapshot()
        assert snapshot.state == "open", snapshot
        assert (snapshot.failed, refused) == (10, 30)


def test_a_connection_that_died_while_it_was_idle_is_replaced(mariadb, db):
    """By a health check, as without a guard."""
    with shop_behind(mariadb, {"guard": db}, CONN_HEALTH_CHECKS=True, **KEPT) as shop:
        (number,) = shop.ask("select connection_id()")
        end_of_request()
        shop.aside(f"kill {number}")
        assert shop.ask("select connection_id()") != [number]
        assert (db.snapshot().in_use, db.snapshot().failed) == (1, 1)


def test_a_write_that_finds_the_server_read_only_replaces_the_connection(mariadb, db):
    """As after a fail-over."""
    with shop_behind(mariadb, {"guard": db}, **KEPT) as shop:
        before = shop.ask("select connection_id()")
        shop.aside("set global read_only = 1")
        try:
            with pytest.raises(OperationalError, match="read-only"):
                shop.ask("insert into item values (1, 0)")
        finally:
            shop.aside("set global read_only = 0")
        assert db.snapshot().failure_cause == "the server is read-only"
        end_of_request()
        assert shop.ask("select connection_id()") != before


def test_log_names_the_session_that_holds_the_lock(mariadb, caplog):
    early = BreakerPolicy(slow_call_duration_threshold=0.2, minimum_number_of_calls=1000)
    guard = Guard("django", max_concurrent_calls=2, max_wait_duration=0.02, timeout=10.0, breaker=early)

    def wait_for_the_row():
        try:
            with connections["shop"].cursor() as cursor:
                cursor.execute("select id from item for update")
        finally:
            connections["shop"].close()

    def told():
        return [line for line in caplog.messages if "for a lock" in line]

    # Only a user with the privilege PROCESS is told who waits for whom.
    with shop_behind(mariadb, {"guard": guard}, USER="root") as shop, MariaDB(mariadb).connect() as other:
        MariaDB.run(other, "insert into item values (1, 0)")
        MariaDB.run(other, "begin")
        MariaDB.run(other, "select id from item for update")
        threads = [threading.Thread(target=wait_for_the_row) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            poll(lambda: guard.snapshot().in_use == 2, "both connections are out")
            with contextlib.suppress(Exception):
                shop.ask()
            poll(told, "a line about the lock")
        finally:
            other.rollback()
            for thread in threads:
                thread.join()
        assert f"<- session {other.thread_id()}" in told()[0]


# --- idle holds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_an_idle_transaction_is_rolled_back_and_its_commit_raises(mariadb, db, settings):
    """Its slot is free at once; the thread goes on with a new connection."""
    with shop_behind(mariadb, {"guard": db, "max_idle_hold": 0.1}, **settings) as shop:
        for then in (bool, shop.ask):
            with pytest.raises(ConnectionRevokedError), transaction.atomic(using="shop"):
                shop.ask("insert into item values (1, 0)")
                poll(lambda: db.snapshot().in_use == 0, "the connection is taken back")
                then()
            poll(lambda: shop.items() == [], "it was rolled back")
            assert shop.ask() == [1]
        end_of_request()


def test_a_refused_commit_by_hand_is_rolled_back(kept):
    kept.connection.set_autocommit(False)
    with pytest.raises(DeadlineSpentError), deadline(0.2):
        kept.ask("insert into item values (1, 0)")
        time.sleep(0.25)
        kept.connection.set_autocommit(True)
    kept.connection.set_autocommit(True)
    assert kept.items() == []


# --- cursors -----------------------------------------------------------------------------------------


def test_one_call_is_one_piece_of_work(kept, db):
    """However many statements the driver makes of it."""
    with kept.connection.cursor() as cursor:
        cursor.execute("select 1")
        before = db.snapshot().succeeded
        cursor.executemany("insert into item values (%s, %s)", [(n, 0) for n in range(10)])
        cursor.executemany("update item set n = %s where id = %s", [(n, n) for n in range(10)])
        assert db.snapshot().succeeded == before + 2
    assert kept.items() == [*range(10)]
    assert isinstance(kept.connection.cursor().cursor.cursor, CURSORS.Cursor)


def test_results_of_a_procedure_are_read_in_time(shop):
    """It works on while the client reads, and closing the cursor reads the rest."""
    shop.aside("drop procedure if exists two")
    shop.aside("create procedure two() begin select 1; select sleep(30); end")
    with pytest.raises(CallTimeoutError), deadline(0.5), shop.connection.cursor() as cursor:
        cursor.callproc("two")
        assert cursor.fetchall() == ((1,),)
        cursor.nextset()
    assert shop.ask() == [1]
    with pytest.raises(CallTimeoutError), deadline(0.5), shop.connection.cursor() as cursor:
        cursor.callproc("two")
    assert shop.ask() == [1]


def numbers(first, last):
    """A table of these numbers. MySQL has no table for each sequence, as MariaDB has."""
    rows = f"select {first} union all select seq + 1 from s where seq < {last}"
    return f"(with recursive s(seq) as ({rows}) select seq from s) numbers"


def test_rows_that_come_slowly_are_stopped(mariadb, db):
    """With a cursor that leaves the rows at the server; closed half-read it reads the rest in time."""
    options = {"guard": db, "cursorclass": CURSORS.SSCursor}
    slowly = f"select seq, sleep(seq / 5) from {numbers(0, 100)}"
    with shop_behind(mariadb, options, **KEPT) as shop:
        with pytest.raises(CallTimeoutError), deadline(0.7), shop.connection.cursor() as cursor:
            cursor.execute(slowly)
            cursor.fetchmany(50)
        assert shop.ask() == [1]
        with pytest.raises(CallTimeoutError), deadline(0.7), shop.connection.cursor() as cursor:
            cursor.execute(slowly)
        assert shop.ask() == [1]
        with shop.connection.cursor() as cursor:
            cursor.execute(f"select seq from {numbers(1, 250)}")
            assert cursor.fetchone() == (1,)
            assert [row[0] for row in cursor] == [*range(2, 251)]


# --- settings ----------------------------------------------------------------------------------------


def test_detached_it_is_djangos_own(shop, db):
    shop.ask()
    db.detach()
    end_of_request()
    db.force_open()
    assert shop.ask() == [1]
    with transaction.atomic(using="shop"):
        shop.ask("insert into item values (1, 0)")
    assert shop.items() == [1]


def test_one_guard_protects_one_kind_of_database(shop, postgres, db):
    """Their errors and their drivers differ."""
    entry = django_lab.database(postgres, {"guard": db})
    with pytest.raises(ConfigurationError, match=r"\['other'\]: guard 'db' protects something else already"):
        _ = ConnectionHandler({"default": {}, "other": entry})["other"]


def test_wrong_settings_are_named(mariadb):
    entry = django_lab.mysql_database(mariadb, {"guard": 7, "max_idle_hold": "soon"})
    with pytest.raises(
        ConfigurationError, match=r"'wrong'\].*OPTIONS\['guard'\].*OPTIONS\['max_idle_hold'\]"
    ):
        _ = ConnectionHandler({"default": {}, "wrong": entry})["wrong"]


def test_shadow_changes_nothing(mariadb):
    """It counts what it would have done."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.2, mode="shadow")
    with shop_behind(mariadb, {"guard": guard}) as shop:
        assert shop.ask("select sleep(0.5)") == [0]
        assert guard.snapshot().would_stop == 1


def test_the_test_runner_reaches_no_other_database(mariadb):
    """It makes, fills and drops databases of its own; the connection that makes them has no guard."""
    guards = {"production": "shop.guards.db", "production_two": "shop.guards.second"}
    with MariaDB(mariadb).connect() as plain:
        for name in guards:
            MariaDB.run(plain, f"create database {name}")
            MariaDB.run(plain, f"create table {name}.shop_item (id bigint primary key, name varchar(40))")
            MariaDB.run(plain, f"insert into {name}.shop_item values (1, 'first')")
        try:
            databases = {
                alias: django_lab.mysql_database(mariadb, {"guard": guard}, NAME=name, USER="root")
                for alias, (name, guard) in zip(("default", "second"), guards.items(), strict=True)
            }
            driver = {} if "DJANGO_MYSQL" in os.environ else {"SITE_DRIVER": "pymysql"}
            environ = {"SITE_DATABASES": json.dumps(databases), "PYTHONPATH": python_path(), **driver}
            done = subprocess.run(
                [sys.executable, "manage.py", "test", "--noinput"],
                env=os.environ | environ,
                cwd=SUPPORT / "django_site",
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert "Ran 12 tests" in done.stderr
            for name in guards:
                with plain.cursor() as cursor:
                    cursor.execute(f"select id, name from {name}.shop_item")
                    assert cursor.fetchall() == ((1, "first"),)
        finally:
            for name in guards:
                MariaDB.run(plain, f"drop database {name}")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("MySQLdb") is None, reason="mysqlclient is not installed")
@pytest.mark.skipif("DJANGO_MYSQL" in os.environ, reason="this is that run")
def test_the_same_on_mysqlclient():
    """In a process of its own, because Django imports one of the two."""
    words = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", __file__]
    environ = os.environ | {"DJANGO_MYSQL": "mysqlclient"}
    done = subprocess.run(
        words, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
