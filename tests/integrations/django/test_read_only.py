"""A primary that has become read-only, behind Django's guarded backend."""

from __future__ import annotations

import psycopg
import pytest
from django.db import transaction
from django.db.utils import InternalError

from guardrails import Guard
from guardrails.testing.servers import PostgresServer
from support.django_lab import configured, database, leave
from support.polling import poll


@pytest.fixture(scope="module")
def primary():
    """A server of these tests' own."""
    with PostgresServer.start() as server:
        yield server


@pytest.fixture(params=[None, {"min_size": 1, "max_size": 2}], ids=["no pool", "a pool"])
def connection(request, primary):
    """Django's connection, with a kept connection or from psycopg's pool."""
    guard = Guard("db", max_concurrent_calls=2)
    options = {"guard": guard} | ({"pool": request.param} if request.param else {})
    with configured("shop", database(primary, options)) as connection:
        connection.guard = guard
        yield connection


def ask(connection, sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


@pytest.fixture
def read_only(primary, connection):
    """The server is read-only for the session that is open, too, until the test ends."""
    ask(connection, "select 1")
    with psycopg.connect(primary.url(""), autocommit=True) as aside:
        aside.execute("alter system set default_transaction_read_only = on")
        aside.execute("select pg_reload_conf()")
        poll(
            lambda: ask(connection, "show default_transaction_read_only") == "on",
            "the session knows",
        )
        yield
        aside.execute("set default_transaction_read_only = off")
        aside.execute("alter system reset default_transaction_read_only")
        aside.execute("select pg_reload_conf()")


@pytest.mark.parametrize("atomic", [False, True], ids=["autocommit", "atomic"])
def test_connection_to_a_read_only_server_is_replaced(connection, read_only, atomic):
    """The failed write is a failure, and the next request has another connection."""
    before = ask(connection, "select pg_backend_pid()")
    failed = connection.guard.snapshot().failed
    with pytest.raises(InternalError, match="read-only transaction"):
        if atomic:
            with transaction.atomic("shop"):
                ask(connection, "create table never (n int)")
        else:
            ask(connection, "create table never (n int)")
    snapshot = connection.guard.snapshot()
    assert (snapshot.failed, snapshot.failure_cause) == (failed + 1, "the server is read-only")
    leave("shop")
    assert ask(connection, "select pg_backend_pid()") != before


def test_transaction_that_asked_to_be_read_only_is_answered(connection):
    with pytest.raises(InternalError, match="read-only transaction"), transaction.atomic("shop"):
        ask(connection, "set transaction read only")
        before = ask(connection, "select pg_backend_pid()")
        ask(connection, "create table never (n int)")
    assert connection.guard.snapshot().failed == 0
    assert ask(connection, "select pg_backend_pid()") == before
