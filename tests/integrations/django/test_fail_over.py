"""A primary that has become read-only, and the way to the next one, behind Django's guarded backend."""

from __future__ import annotations

import contextlib
import threading
import time

import psycopg
import pytest
from django.db import connections

from guardrails import BreakerPolicy, Guard
from guardrails._pool import addresses
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import PostgresServer
from support.django_lab import database, known, leave
from support.polling import poll

LIMIT = 5.0
"""Seconds from the move of the name to the first write."""

SIZE = 6


@pytest.fixture
def two():
    """The primary, the next one, and a name that leads to the first: open connections stay where they are."""
    with PostgresServer.start() as first, PostgresServer.start() as second, FaultProxy(first.port) as proxy:
        for server in (first, second):
            aside(server, "create table orders (n int)")
        yield first, second, proxy


def aside(server, sql):
    with psycopg.connect(server.url(""), autocommit=True) as connection:
        return connection.execute(sql)


def demote(server):
    """Makes a server read-only, for the sessions that are open as well."""
    aside(server, "alter system set default_transaction_read_only = on")
    aside(server, "select pg_reload_conf()")


def request(sql="insert into orders values (1)"):
    """One request of this thread; True if its statement succeeded."""
    connections["shop"].close_if_unusable_or_obsolete()
    try:
        with connections["shop"].cursor() as cursor:
            cursor.execute(sql)
        return True
    except Exception:  # whatever the old primary or the guard says
        return False
    finally:
        connections["shop"].close_if_unusable_or_obsolete()
        if connections["shop"].settings_dict["OPTIONS"].get("pool"):
            connections["shop"].close()


def in_threads(count, work):
    """Runs work in several threads, each of them with its connection at the same time."""
    together = threading.Barrier(count)

    def run():
        together.wait()
        work()
        together.wait()
        connections["shop"].close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_a_pool_finds_the_next_primary_within_five_seconds(two):
    """One write fails; the idle connections are replaced without another one, the rest on their return."""
    first, second, proxy = two
    guard = Guard("db", max_concurrent_calls=SIZE, breaker=BreakerPolicy(wait_duration_in_open_state=0.3))
    options = {"guard": guard, "pool": {"min_size": SIZE, "max_size": SIZE, "timeout": 5}}
    with known("shop", database(first, options, PORT=proxy.port)):
        in_threads(SIZE, lambda: request("select pg_sleep(0.1)"))
        pool = connections["shop"].pool
        poll(lambda: pool.get_stats()["pool_available"] == SIZE, "the pool is full")
        out = connections["shop"]
        out.ensure_connection()
        old = out.connection.info.backend_pid
        demote(first)
        proxy._relay._upstream = ("127.0.0.1", second.port)
        moved = time.monotonic()
        assert not in_one(request)
        assert guard.snapshot().failure_cause == "the server is read-only"
        poll(lambda: not sessions(first, but=old), "the idle connections to the old primary end", LIMIT)
        assert all(in_one(request) for _ in range(2 * SIZE))
        assert time.monotonic() - moved < LIMIT + 2
        assert out.connection.info.backend_pid == old, "a connection that is out is not touched"
        out.close()
        poll(lambda: not sessions(first), "it ends after its return")
        poll(lambda: pool.get_stats()["pool_available"] == SIZE, "the pool is full again")
        assert all(request() for _ in range(2 * SIZE)), "no connection to the old primary is left"


@pytest.mark.slow
def test_a_name_that_leads_to_another_address_renews_the_pool(two, monkeypatch):
    """No write has to fail first."""
    first, second, proxy = two
    answer = {"127.0.0.1"}
    monkeypatch.setattr(addresses, "resolve", lambda _: frozenset(answer))
    monkeypatch.setattr(addresses, "_INTERVAL", 0.3)
    monkeypatch.setattr(addresses, "_CONFIRM", 0.05)
    guard = Guard("db", max_concurrent_calls=2)
    options = {"guard": guard, "hostaddr": "127.0.0.1", "pool": {"min_size": 2, "max_size": 2}}
    with known("shop", database(first, options, HOST="primary.shop.test", PORT=proxy.port)):
        in_threads(2, lambda: request("select pg_sleep(0.1)"))
        assert sessions(first) == 2
        proxy._relay._upstream = ("127.0.0.1", second.port)
        answer.symmetric_difference_update({"127.0.0.1", "127.0.0.2"})
        poll(lambda: not sessions(first), "the connections to the old address end", LIMIT)
        assert in_one(request)
        assert guard.snapshot().failed == 0


def in_one(work):
    """Runs work in a thread of its own; returns its result."""
    results = []
    in_threads(1, lambda: results.append(work()))
    return results[0]


def sessions(server, but=0):
    """Counts the sessions of the application on a server."""
    with psycopg.connect(server.url("")) as connection:
        question = (
            "select count(*) from pg_stat_activity where backend_type = 'client backend'"
            f" and pid not in (pg_backend_pid(), {but})"
        )
        return connection.execute(question).fetchone()[0]


@pytest.mark.slow
def test_threads_that_keep_their_connections_find_the_next_primary(two):
    """One of them has met the read-only server; the others get another connection with their next request."""
    first, second, proxy = two
    guard = Guard("db", max_concurrent_calls=SIZE, breaker=BreakerPolicy(wait_duration_in_open_state=0.3))
    with known("shop", database(first, {"guard": guard}, PORT=proxy.port, CONN_MAX_AGE=None)):
        steps, failed = threading.Barrier(SIZE + 1), []

        def serve():
            assert request()
            steps.wait()
            steps.wait()
            failed.append(not request())
            connections["shop"].close()

        threads = [threading.Thread(target=serve) for _ in range(SIZE)]
        for thread in threads:
            thread.start()
        assert request()
        steps.wait()
        demote(first)
        proxy._relay._upstream = ("127.0.0.1", second.port)
        poll(lambda: not request(), "a write has failed")
        poll(lambda: guard.state == "closed" and request(), "the next primary is found", 5)
        time.sleep(2)  # for so long a renewal is spread
        with contextlib.suppress(threading.BrokenBarrierError):
            steps.wait()
        for thread in threads:
            thread.join()
        assert failed == [False] * SIZE
        leave("shop")
