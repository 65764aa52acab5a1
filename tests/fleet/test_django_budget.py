"""Django's database under a fleet's budget: the guard in the settings has a part of it."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from django.db import InterfaceError, connections, transaction

from guardrails import BulkheadFullError, CallTimeoutError, ConfigurationError, Guard
from guardrails.fleet import Fleet
from guardrails.integrations.sqlalchemy import pool_status
from support import django_lab
from support.polling import wait_until

QUERY = "select count(*) from pg_stat_activity where application_name = 'django-fleet'"


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    yield fleet
    fleet.close()


def entry(postgres, guard, options=(), **more):
    """Without the connection of its own over which a guard asks who holds a lock: that is in no budget."""
    options = {"guard": guard, "application_name": "django-fleet", "ask_server": False, **dict(options)}
    return django_lab.database(postgres, options, **more)


@pytest.fixture
def guard(fleet):
    """A guard of two slots that waits for none; its lease is for two, too."""
    return Guard(
        "d", max_concurrent_calls=2, max_wait_duration=0, fleet=fleet.budget("db", connections=2, minimum=2)
    )


KEEPS = {
    "CONN_MAX_AGE 0": ({}, {}),
    "CONN_MAX_AGE None": ({}, {"CONN_MAX_AGE": None}),
    "CONN_MAX_AGE None, checks": ({}, {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}),
    "pool": ({"pool": {"min_size": 0, "max_size": 6}}, {}),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("keeps", KEEPS)
def test_threads_of_two_workers_share_one_budget(postgres, fleet, tmp_path, keeps):
    """The second worker has a guard of its own, as another process has; the server has six at most."""
    options, more = KEEPS[keeps]
    other = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    guards = [
        Guard(
            f"d{number}",
            max_concurrent_calls=6,
            max_wait_duration=0.1,
            timeout=20.0,
            fleet=each.budget("orders-db", connections=6),
        )
        for number, each in enumerate((fleet, other))
    ]
    over = threading.Event()
    failed = []

    def work(alias):
        while not over.is_set():
            try:
                with connections[alias].cursor() as cursor:
                    cursor.execute("select pg_sleep(0.05)")
            except BulkheadFullError:
                over.wait(0.01)
            except Exception as error:
                failed.append(error)
            finally:
                connections[alias].close_if_unusable_or_obsolete()
        connections[alias].close()

    with (
        psycopg.connect(postgres.url(""), autocommit=True) as watch,
        django_lab.known("first", entry(postgres, guards[0], options, **more)),
        django_lab.known("second", entry(postgres, guards[1], options, **more)),
    ):
        threads = [threading.Thread(target=work, args=("first",)) for _ in range(8)]
        threads.append(threading.Thread(target=work, args=("second",)))
        for thread in threads:
            thread.start()
        most, until = 0, None

        def is_shared():
            nonlocal most, until
            most = max(most, watch.execute(QUERY).fetchone()[0])
            if until is None and most >= 5 and guards[0].snapshot().max_concurrent_calls >= 4:
                until = time.monotonic() + 0.5  # and it stays so
            return until is not None and time.monotonic() >= until

        try:
            wait_until(is_shared)
            lease = guards[0].snapshot().pool.lease
        finally:
            over.set()
            for thread in threads:
                thread.join(20)
        for alias in ("first", "second") if "pool" in options else ():
            connections[alias].close_pool()
    assert most <= 6
    assert not failed
    assert (lease.budget, lease.connections, lease.in_contact) == ("orders-db", 6, True)
    other.close()


@pytest.mark.parametrize(("pool", "least"), [(True, 4), ({"max_size": 8}, 4), ({"min_size": 1}, 1)])
def test_a_pool_that_keeps_connections_in_any_case_is_refused(postgres, fleet, pool, least):
    guard = Guard("kept", max_concurrent_calls=1, fleet=fleet.budget("orders-db", connections=6))
    database = django_lab.database(postgres, {"guard": guard, "pool": pool})
    named = rf"DATABASES\['kept'\]: OPTIONS\['pool'\]\['min_size'\] must be 0, got {least}"
    with pytest.raises(ConfigurationError, match=named), django_lab.configured("kept", database):
        pass
    without = Guard("kept", max_concurrent_calls=1, fleet=fleet.verdict("orders-db"))
    database = django_lab.database(postgres, {"guard": without, "pool": pool})
    with django_lab.configured("kept", database) as connection, connection.cursor() as cursor:
        cursor.execute("select 1")
        assert pool_status("kept").in_use == 1


# --- connections that threads keep -----------------------------------------------------------------------


class Thread:
    """A thread that serves one request after another."""

    def __init__(self):
        self._runs = ThreadPoolExecutor(1)

    def begin(self, work, *args):
        return self._runs.submit(work, *args)

    def request(self, sql="select pg_backend_pid()"):
        """Runs one request, and returns the first column of its first row."""
        return self.begin(request, sql).result(30)

    def end(self):
        self._runs.shutdown()


def ask(sql="select pg_backend_pid()"):
    with connections["shop"].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def request(sql):
    connections["shop"].close_if_unusable_or_obsolete()
    try:
        return ask(sql)
    finally:
        connections["shop"].close_if_unusable_or_obsolete()


@pytest.fixture
def threads():
    made = [Thread() for _ in range(4)]
    yield made
    for thread in made:
        thread.end()


@pytest.fixture
def kept(postgres, guard, threads):
    """A database whose threads keep their connections; the number of them that the server has."""
    with (
        psycopg.connect(postgres.url(""), autocommit=True) as watch,
        django_lab.known("shop", entry(postgres, guard, CONN_MAX_AGE=None)),
    ):
        yield lambda: watch.execute(QUERY).fetchone()[0]
        for thread in threads:
            thread.begin(close).result(30)


def test_a_thread_keeps_its_connection_while_there_is_room(kept, threads):
    first, second = threads[0].request(), threads[1].request()
    assert first != second
    assert (threads[0].request(), threads[1].request()) == (first, second)
    assert kept() == 2


def test_the_connection_that_is_idle_for_longest_makes_room(kept, threads, guard):
    """Its thread opens another one; nobody sees an error."""
    first, second = threads[0].request(), threads[1].request()
    assert threads[0].request() == first
    third = threads[2].request()
    assert kept() == 2
    assert threads[0].request() == first
    assert threads[1].request() not in {first, second, third}
    assert kept() == 2
    assert guard.snapshot().failed == 0


def test_a_connection_in_use_makes_no_room(kept, threads):
    """Neither in a transaction nor between two statements of one request."""
    release, begun = threading.Event(), [threading.Event(), threading.Event()]

    def in_a_transaction():
        with transaction.atomic("shop"):
            begun[0].set()
            release.wait(30)
            first = ask()
            return first == ask()

    def in_a_request():
        first = ask()
        begun[1].set()
        release.wait(30)
        return first == ask()

    held = [threads[0].begin(in_a_transaction), threads[1].begin(in_a_request)]
    for event in begun:
        event.wait(30)
    with pytest.raises(BulkheadFullError):
        threads[2].request()
    release.set()
    assert [future.result(30) for future in held] == [True, True]


def lose(threads):
    """Lets others take the connection of the first thread."""
    threads[0].request()
    threads[1].request()
    threads[2].request()


def is_usable():
    return connections["shop"].is_usable()


def commit():
    connections["shop"].commit()


def rollback():
    connections["shop"].rollback()


def close():
    connections["shop"].close()


def look():
    return connections["shop"].get_autocommit()


def in_block():
    with transaction.atomic("shop"):
        return ask("select 7")


def in_empty_block():
    with transaction.atomic("shop"):
        pass


@pytest.mark.parametrize(
    "work", [is_usable, commit, rollback, close, look, in_block, in_empty_block, partial(ask, "select 7")]
)
def test_whatever_a_thread_does_first_after_it_has_lost_its_connection_works(kept, threads, guard, work):
    lose(threads)
    threads[0].begin(work).result(30)
    assert threads[0].request("select 8") == 8
    assert kept() <= 2
    assert guard.snapshot().failed == 0
    assert guard.snapshot().in_use == 0


def test_a_cursor_of_a_connection_that_was_lost_says_so(kept, threads, guard):
    """One that is kept over the end of its request. It says nothing about the database."""

    def open_cursor():
        cursor = connections["shop"].cursor()
        cursor.execute("select 1")
        connections["shop"].close_if_unusable_or_obsolete()
        return cursor

    cursor = threads[0].begin(open_cursor).result(30)
    threads[1].request()
    threads[2].request()

    def use():
        try:
            cursor.execute("select 1")
        except InterfaceError as error:
            return str(error)
        finally:
            connections["shop"].close_if_unusable_or_obsolete()

    assert threads[0].begin(use).result(30) == "this connection was closed between two requests"
    assert threads[0].request("select 1") == 1
    assert guard.snapshot().failed == 0


def test_a_smaller_limit_closes_idle_connections_at_once_and_others_when_they_come_back(kept, threads, guard):
    release, begun = threading.Event(), threading.Event()

    def hold():
        ask()
        begun.set()
        release.wait(30)
        connections["shop"].close_if_unusable_or_obsolete()

    held = threads[0].begin(hold)
    threads[1].request()
    begun.wait(30)
    assert kept() == 2
    guard.resize(1)
    wait_until(lambda: kept() == 1)
    release.set()
    held.result(30)
    assert kept() == 1
    assert threads[1].request("select 1") == 1
    assert kept() == 1
    assert pool_status("shop").open == 1


def test_a_transaction_that_django_did_not_begin_ends_with_its_request(postgres, guard, threads):
    """With AUTOCOMMIT off a connection is not kept: another thread must not decide when it is rolled back."""
    with (
        psycopg.connect(postgres.url(""), autocommit=True) as watch,
        django_lab.known("shop", entry(postgres, guard, CONN_MAX_AGE=None, AUTOCOMMIT=False)),
    ):
        threads[0].request()
        wait_until(lambda: watch.execute(QUERY).fetchone()[0] == 0)


@pytest.mark.parametrize("keeps", ["CONN_MAX_AGE None", "pool"])
def test_a_connection_that_is_taken_back_makes_room(postgres, fleet, threads, keeps):
    """Its holder still has it, closed. The same for one whose statement was stopped."""
    options, more = KEEPS[keeps]
    budget = fleet.budget("db", connections=1)
    guard = Guard("d", max_concurrent_calls=1, max_wait_duration=0, timeout=5.0, fleet=budget)
    options = {**options, "max_idle_hold": 0.2}
    with django_lab.known("shop", entry(postgres, guard, options, **more)):
        release, begun = threading.Event(), threading.Event()

        def hold():
            ask()
            begun.set()
            release.wait(30)

        def stopped():
            with pytest.raises(CallTimeoutError), guard.call(timeout=0.2):
                ask("select pg_sleep(30)")
            return ask("select 1")

        held = threads[0].begin(hold)
        begun.wait(30)
        wait_until(lambda: not guard.snapshot().in_use)
        assert threads[1].request("select 1") == 1
        assert threads[2].begin(stopped).result(30) == 1
        release.set()
        held.result(30)
        for thread in threads:
            thread.begin(close).result(30)
        if "pool" in options:
            connections["shop"].close_pool()


def test_after_a_detach_a_thread_notices_its_loss_and_its_transactions_are_kept(kept, threads, guard):
    lose(threads)
    guard.detach()

    def run(sql):
        with transaction.atomic("shop"), connections["shop"].cursor() as cursor:
            cursor.execute(sql)

    threads[0].begin(run, "create table detached (n int)").result(30)
    assert threads[1].request("select count(*) from detached") == 0
    threads[0].begin(run, "drop table detached").result(30)


@pytest.mark.filterwarnings("ignore:.*deleted while still open:ResourceWarning")
def test_the_place_of_a_thread_that_has_ended_is_free(kept, threads):
    thread = threading.Thread(target=request, args=("select 1",))
    thread.start()
    thread.join()
    gc.collect()
    wait_until(lambda: kept() == 0)
    threads[0].request()
    threads[1].request()
    assert kept() == 2


def test_threads_beyond_the_lease_take_turns(kept, threads, guard):
    """Each thread's connection is closed again and again while others need its place."""
    over = time.monotonic() + 1.5
    served, most, failed = [], 0, []

    def run():
        while time.monotonic() < over:
            try:
                served.append(request("select pg_sleep(0.005)"))
            except BulkheadFullError:
                time.sleep(0.002)
            except Exception as error:
                failed.append(error)

    running = [thread.begin(run) for thread in threads]
    while time.monotonic() < over:
        most = max(most, kept())
    for each in running:
        each.result(30)
    assert not failed
    assert most == 2
    assert len(served) > 10
