"""The connection over which a statement is cancelled: the engine's own way of connecting makes it."""

from __future__ import annotations

import contextlib
import time

import pymysql
import pytest
from sqlalchemy import create_engine, event, text

from guardrails import CallTimeoutError, protect
from guardrails.integrations.sqlalchemy import pool_status
from guardrails.testing.servers import PostgresServer
from support.polling import poll
from support.sql_lab import DRIVERS, laboratory

NEED_A_LOGIN = [name for name in ("psycopg2", "pymysql", "mysqldb", "aiomysql", "asyncmy") if name in DRIVERS]
"""Drivers that log in a second time to cancel; the others send a cancel request."""


@pytest.fixture(scope="module")
def guarded_house():
    """A PostgreSQL that asks one role for its password."""
    with PostgresServer.start(max_connections=20) as server:
        rules = server.home / "data" / "pg_hba.conf"
        rules.write_text(f"host all tenant 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        yield server


@pytest.fixture(params=NEED_A_LOGIN)
def rotating(request):
    """A lab whose user has a password, and what changes it."""
    name = request.param
    server = request.getfixturevalue("guarded_house" if name == "psycopg2" else "mariadb")
    with laboratory(name, server) as lab, contextlib.ExitStack() as stack:
        if name == "psycopg2":
            lab.aside(
                "select pg_reload_conf()",
                "drop role if exists tenant",
                "create role tenant login password 'first'",
                "grant pg_signal_backend to tenant",
            )
            user, change = "tenant", "alter role tenant password 'second'"
            terminate = (
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'tenant'"
            )
            stack.callback(lab.aside, terminate)
            lab.url = lambda port=None: f"postgresql+psycopg2://tenant:first@127.0.0.1:{server.port}/postgres"
        else:
            lab.aside(
                "drop user if exists tenant@'127.0.0.1'",
                "create user tenant@'127.0.0.1' identified by 'first'",
                "grant all on guardrails.* to tenant@'127.0.0.1'",
            )
            stack.callback(lab.aside, "drop user tenant@'127.0.0.1'")
            stack.callback(end_sessions, lab)
            user, change = "tenant", "alter user tenant@'127.0.0.1' identified by 'second'"
            lab.url = lambda port=None: f"mysql+{name}://tenant:first@127.0.0.1:{server.port}/guardrails"
        yield lab, user, change


def end_sessions(lab):
    """Ends the tenant's sessions; MySQL has no KILL for all of a user."""
    with lab.backend.connect() as connection, connection.cursor() as cursor:
        cursor.execute("select id from information_schema.processlist where user = 'tenant'")
        for (number,) in cursor.fetchall():
            with contextlib.suppress(pymysql.Error):  # it has ended meanwhile
                cursor.execute(f"kill {number}")


def statements_of(lab, user):
    """Statements the user runs on the server now."""
    if lab.driver == "psycopg2":
        return lab.aside(
            f"select count(*) from pg_stat_activity where usename = '{user}' and query like '%sleep(12%'"
            " and state = 'active'"
        )
    processes = f"information_schema.processlist where user = '{user}'"
    return lab.aside(f"select count(*) from {processes} and info like '%sleep(12%'")


def sync_engine(lab):
    return getattr(lab.engine, "sync_engine", lab.engine)


def hang(lab, meanwhile):
    """Runs a long statement on a connection that was opened before ``meanwhile``; it ends at its deadline."""

    def work(session):
        session.execute("select 1")
        meanwhile()
        with pytest.raises(CallTimeoutError):
            session.execute("select 1 from pg_sleep(12)", 0.5)

    with contextlib.suppress(CallTimeoutError):
        lab.run(work)


def test_statement_is_cancelled_after_the_password_has_changed(rotating):
    """The token listener, and not the first connection, knows the password of today."""
    lab, user, change = rotating
    passwords = ["first"]
    lab.protect()

    @event.listens_for(sync_engine(lab), "do_connect")
    def log_in(dialect, record, cargs, cparams):
        assert record.info == {}
        cparams["passwd" if "passwd" in cparams else "password"] = passwords[-1]

    def rotate():
        lab.aside(change)
        passwords.append("second")

    hang(lab, rotate)
    poll(lambda: statements_of(lab, user) == 0, "the statement was cancelled on the server", 3.0)


def test_failed_cancel_is_logged_once_with_its_cause_and_no_secret(rotating, caplog):
    """No second connection can be opened: the log has it once, and the driver counts each."""
    lab, user, change = rotating
    lab.protect()
    assert pool_status(lab.engine).failed_cancels == 0
    hang(lab, lambda: lab.aside(change))
    poll(lambda: warnings(caplog), "the failed cancel was logged")
    time.sleep(0.3)  # the order is given twice
    (said,) = warnings(caplog)
    assert "OperationalError" in said
    assert ("password authentication failed" if lab.driver == "psycopg2" else "1045") in said
    assert not any(secret in said for secret in ("first", "second", user, "127.0.0.1"))
    status = pool_status(lab.engine)
    assert 1 <= status.failed_cancels <= 2
    assert str(status).endswith(f"orders to cancel that did not reach the server: {status.failed_cancels}")


def test_the_server_ends_a_statement_that_cannot_be_cancelled(rotating):
    """Without a second connection: PostgreSQL notices that its client is gone, MariaDB has its backstop."""
    lab, user, change = rotating
    lab.skip_on_mysql("has no limit for every statement, as max_statement_time is")
    lab.protect(guard={"timeout": 0.5})
    hang(lab, lambda: lab.aside(change))
    poll(lambda: statements_of(lab, user) == 0, "the server has ended the statement", 3.0)


def warnings(caplog):
    return [
        record.getMessage() for record in caplog.records if "could not be cancelled" in record.getMessage()
    ]


def test_the_users_creator_opens_the_second_connection(guarded_house):
    """A creator knows the password of today as well; where it leads is checked."""
    import psycopg2  # noqa: PLC0415

    with laboratory("psycopg2", guarded_house) as lab:
        lab.aside(
            "select pg_reload_conf()",
            "drop role if exists tenant",
            "create role tenant login password 'first'",
        )
        passwords = ["first"]
        address = {"host": "127.0.0.1", "port": guarded_house.port, "dbname": "postgres", "user": "tenant"}
        lab.engine = create_engine(
            "postgresql+psycopg2://", creator=lambda: psycopg2.connect(**address, password=passwords[-1])
        )
        lab.guard = protect(lab.engine, name="db")

        def rotate():
            lab.aside("alter role tenant password 'second'")
            passwords.append("second")

        hang(lab, rotate)
        poll(lambda: statements_of(lab, "tenant") == 0, "the statement was cancelled on the server", 3.0)


@pytest.mark.parametrize("balance", ["disable", "random"])
def test_psycopg2_cancels_on_the_host_it_is_connected_to(postgres, guarded_house, balance):
    """Of several hosts, whichever the first connection came to."""
    hosts = f"host=127.0.0.1:{postgres.port}&host=127.0.0.1:{guarded_house.port}"
    for _ in range(4):
        engine = create_engine(
            f"postgresql+psycopg2://postgres@/postgres?{hosts}&load_balance_hosts={balance}"
        )
        protect(engine, timeout=0.5)
        with contextlib.suppress(CallTimeoutError), engine.connect() as connection:
            pid = connection.scalar(text("select pg_backend_pid()"))
            port = connection.connection.dbapi_connection.info.port
            server = {s.port: s for s in (postgres, guarded_house)}[port]
            connection.execute(text("select pg_sleep(12)"))
        with laboratory("psycopg2", server) as lab:
            running = f"select count(*) from pg_stat_activity where pid = {pid} and state = 'active'"
            poll(lambda lab=lab, q=running: lab.aside(q) == 0, "the statement was cancelled", 3.0)
        engine.dispose()
