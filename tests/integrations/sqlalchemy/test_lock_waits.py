"""A pool that runs out because of a lock: the log and the status name the session that holds it."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import psycopg
import pytest
from sqlalchemy import create_engine, text

from guardrails import BreakerPolicy, CallTimeoutError, ConfigurationError, protect
from guardrails._dbapi import session_question
from guardrails._http.settings import StatusSettings
from guardrails._http.status import Probes
from guardrails._pool import pool_reports
from guardrails.integrations.sqlalchemy import _server_question, pool_status
from guardrails.integrations.sqlalchemy._pool import registry_of
from guardrails.testing.pgbouncer import PgBouncer
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import PostgresServer
from support.mysql_server import MySQLServer
from support.polling import poll

CANARY = "canary-51c8"
"""Stands in the statements, and must not be shown."""

WAIT = f"select id from waited where id = 1 and '{CANARY}' <> '' for update"
THREAD = "guardrails-lock-monitor"

EARLY = BreakerPolicy(slow_call_duration_threshold=0.2, minimum_number_of_calls=1000)
"""The server is asked after 0.2 s, not after a second."""


@pytest.fixture
def slow_machine(monkeypatch):
    """Gives the question more than its second. It comes once in 30 s, too late for a test."""
    for module in (session_question, _server_question):
        monkeypatch.setattr(module, "LIMIT", 4.0)
    limits = _server_question._CONNECT_LIMITS
    for driver, names in list(limits.items()):
        monkeypatch.setitem(limits, driver, dict.fromkeys(names, 4))


@pytest.fixture
def rows(lab, slow_machine):
    """A table with one row to lock, and a user that may see all transactions."""
    with table_in(lab):
        yield


@pytest.fixture
def maria_rows(maria_lab, slow_machine):
    """See `rows`."""
    with table_in(maria_lab):
        yield


@contextlib.contextmanager
def table_in(lab):
    """See `rows`."""
    lab.aside("create table waited (id int primary key)", "insert into waited values (1)")
    if not on_postgres(lab):
        lab.aside("grant process on *.* to lab@'127.0.0.1'")
    if isinstance(lab.server, MySQLServer):
        for table in ("data_lock_waits", "threads"):
            lab.aside(f"grant select on performance_schema.{table} to lab@'127.0.0.1'")
    yield
    lab.dispose()
    lab.aside("drop table waited")


@contextlib.contextmanager
def blocker(lab):
    """Locks the row in a transaction of another application.

    Yields the number of its session, and a function that ends the transaction.
    """
    with lab.backend.connect() as other:
        lab.backend.run(other, "begin")
        pid = lab.backend.run(other, lab.backend.say("select pg_backend_pid()"))
        lab.backend.run(other, "select id from waited where id = 1 for update")
        yield pid, lambda: lab.backend.run(other, "rollback")
        lab.backend.run(other, "rollback")


@contextlib.contextmanager
def exhausted(lab):
    """Two statements that wait for the row and have the pool's two connections; a third caller is refused."""
    with lab.meanwhile(lambda: lab.query(WAIT), count=2):
        lab.until(lambda: lab.guard.snapshot().in_use == 2, "both connections are out")
        with contextlib.suppress(Exception):
            lab.query("select 1")
        yield


def told(caplog):
    """The lines about locks in the log."""
    return [record.getMessage() for record in caplog.records if record.module == "lock_monitor"]


def protect_small(lab, **options):
    """An engine with two connections, whose statements have time to wait."""
    settings = {"timeout": 10.0, "max_wait_duration": 0.02, "breaker": EARLY} | options
    return lab.protect(pool_size=2, max_overflow=0, guard=settings)


def test_the_server_is_asked_while_statements_are_stopped_and_nobody_is_refused(
    lab, rows, caplog, monkeypatch
):
    """At low traffic a pool never runs out, and its users see timeouts alone."""
    monkeypatch.setattr(pool_reports, "_INTERVAL", 0.1)
    lab.protect(pool_size=5, max_overflow=0, guard={"timeout": 1.0, "breaker": EARLY})
    with blocker(lab) as (pid, _):
        end = time.monotonic() + 15
        while not told(caplog) and time.monotonic() < end:
            with lab.meanwhile(lambda: lab.query(WAIT)) as results:
                pass
            assert isinstance(results[0], CallTimeoutError)
    assert f"<- session {pid}" in told(caplog)[0]
    assert lab.guard.snapshot().rejected == {}


def test_log_and_status_name_the_session_that_holds_the_lock(lab, rows, caplog):
    """The lines of the victims and their sessions, the blocker's session, its activity, and how to end it."""
    protect_small(lab)
    with blocker(lab) as (pid, end), exhausted(lab):
        lab.until(lambda: told(caplog), "a line about the lock")
        status = pool_status(lab.engine)
        end()
    (line,), (wait,) = told(caplog), status.lock_waits
    assert line.startswith("pool 'db': 2 x support/sql_lab.py:")
    assert f"<- session {pid}, idle in transaction for" in line
    assert line.endswith(("; if nothing else ends it: " + kill(lab)).format(pid))
    assert status.cause == "locks"
    assert {holder.pid for holder in status.holders} == set(wait.pids)
    assert [each.pid for holder in status.holders for each in holder.blocked_by] == [pid, pid]
    assert CANARY not in line + str(status) + repr(status)
    assert not pool_status(lab.engine).lock_waits, "the wait is over"


def on_postgres(lab):
    """True if the lab's server is PostgreSQL."""
    return lab.backend.say("pg_backend_pid") == "pg_backend_pid"


def kill(lab):
    """The statement that ends a session."""
    return "KILL {}" if not on_postgres(lab) else "SELECT pg_terminate_backend({})"


def test_a_blocker_of_the_same_pool_is_named_with_its_line(lab, rows, caplog):
    """One connection of the pool holds the lock for which the other one waits."""
    protect_small(lab)
    seen = threading.Event()

    def hold(session):
        session.execute("select id from waited where id = 1 for update")
        end = time.monotonic() + 9
        while not seen.is_set() and time.monotonic() < end:
            session.execute("select pg_sleep(0.05)")

    with lab.meanwhile(lambda: lab.run(hold)):
        lab.until(lambda: lab.guard.snapshot().in_use == 1, "the holder has its connection")
        lab.pause(0.1)
        with lab.meanwhile(lambda: lab.query(WAIT)):
            lab.until(lambda: lab.guard.snapshot().in_use == 2, "both connections are out")
            with contextlib.suppress(Exception):
                lab.query("select 1")
            try:
                lab.until(lambda: told(caplog), "a line about the lock")
            finally:
                seen.set()
    (line,) = told(caplog)
    victim, _, holder = line.partition("<-")
    assert "1 x support/sql_lab.py:" in victim
    assert ", held by support/sql_lab.py:" in holder
    assert "if nothing else ends it" not in line, "the own code has to be mended, not killed"


@pytest.mark.parametrize("tells", [True, False], ids=["plugin", "no plugin"])
def test_an_alter_table_leads_to_the_transaction_that_stops_it(maria_lab, maria_rows, caplog, tells):
    """The pool waits behind it. Where the server does not tell who holds the table, the log says "likely"."""
    lab = maria_lab
    protect_small(lab)
    with plugin(lab, tells), blocker(lab) as (pid, end), altering(lab), exhausted(lab):
        lab.until(lambda: told(caplog), "a line about the lock")
        (wait,) = pool_status(lab.engine).lock_waits
        end()
    (line,) = told(caplog)
    assert "2 x support/sql_lab.py:" in line
    (blocked,) = wait.blockers
    assert (blocked.pid, blocked.state, blocked.likely) == (pid, "idle_in_transaction", not tells)
    if tells:
        assert "wait for a lock on 'waited' for up to" in line
        assert f"<- session {pid}, idle in transaction for" in line
        assert line.endswith(f"; if nothing else ends it: KILL {pid}")
    else:
        assert f"<- likely session {pid}, idle in transaction for" in line
        assert "KILL" not in line, "a guess is no reason to end a session"


@contextlib.contextmanager
def plugin(lab, installed):
    """The server with its plugin for metadata locks, or without. MySQL has a table, which takes a right."""
    if not installed:
        yield
        return
    begin, end = "install soname 'metadata_lock_info'", "uninstall soname 'metadata_lock_info'"
    if isinstance(lab.server, MySQLServer):
        right = "select on performance_schema.metadata_locks"
        begin, end = f"grant {right} to lab@'127.0.0.1'", f"revoke {right} from lab@'127.0.0.1'"
    lab.aside(begin)
    try:
        yield
    finally:
        lab.aside(end)


@contextlib.contextmanager
def altering(lab):
    """A migration that waits for the table."""
    with lab.backend.connect() as migration:
        thread = threading.Thread(
            target=lambda: lab.backend.run(migration, "alter table waited add column more int")
        )
        thread.start()
        question = "select count(*) from information_schema.processlist where state like '%metadata lock%'"
        with lab.backend.connect() as other:
            poll(lambda: lab.backend.run(other, question), "the migration waits")
        yield
        thread.join()


# --- on PostgreSQL, through one driver: what is in between must never lead to a wrong name ------------------


@pytest.fixture
def table(postgres):
    """A table with one row."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create table waited (id int primary key)")
        connection.execute("insert into waited values (1)")
        yield
        connection.execute("drop table waited")


@contextlib.contextmanager
def in_want(url, server, *, asks=True, **options):
    """An engine whose two connections wait for a row that another session has locked.

    A third caller is refused, for which the server is asked; not without ``asks``.
    """
    arguments = {"prepare_threshold": None}
    engine = create_engine(url, pool_size=2, max_overflow=0, pool_timeout=0.05, connect_args=arguments)
    settings = {"timeout": 10.0, "max_wait_duration": 0.02, "breaker": EARLY} | options
    guard = protect(engine, name="db", **settings)

    def wait():
        with engine.connect() as connection:
            connection.execute(text(WAIT))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    with psycopg.connect(server.url("")) as other:
        other.execute("select id from waited where id = 1 for update")
        for thread in threads:
            thread.start()
        try:
            poll(lambda: guard.snapshot().in_use == 2 and running(server) == 2, "both wait")
            if asks:
                is_refused(engine)
            yield engine, other.info.backend_pid
        finally:
            other.rollback()
            for thread in threads:
                thread.join()
            engine.dispose()


def is_refused(engine):
    with contextlib.suppress(Exception):
        engine.connect()


def running(server):
    """Counts the statements that wait for a lock."""
    with psycopg.connect(server.url("")) as connection:
        question = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        return connection.execute(question).fetchone()[0]


def quiet(caplog):
    """Waits until the server was asked, or could have been."""
    time.sleep(0.35)
    poll(lambda: THREAD not in {thread.name for thread in threading.enumerate()}, "the question is over")
    return told(caplog) == []


def test_a_proxy_that_changes_ports_does_not_hide_the_blocker(postgres, table, caplog):
    """All of the pool's connections are sessions of the server that was asked."""
    with FaultProxy(postgres.port) as proxy:
        url = postgres.url("psycopg").replace(str(postgres.port), str(proxy.port))
        with in_want(url, postgres) as (_, pid):
            poll(lambda: told(caplog), "a line about the lock")
    assert f"<- session {pid}, idle in transaction" in told(caplog)[0]


def test_nothing_is_blamed_behind_a_pooler(postgres, table, caplog):
    """pgbouncer gives its clients numbers of its own, which may be those of other sessions."""
    if not PgBouncer.installed():
        pytest.skip("pgbouncer is not installed")
    with PgBouncer.start(postgres) as bouncer, in_want(bouncer.url("psycopg"), postgres) as (engine, _):
        assert quiet(caplog)
        status = pool_status(engine)
    assert status.lock_waits == ()
    assert status.cause == "slow_calls"


@pytest.mark.parametrize("options", [{"ask_server": False}, {"mode": "off"}], ids=str)
def test_the_server_is_not_asked_where_that_is_off(postgres, table, caplog, options):
    """No connection is opened, and nothing is said."""
    with in_want(postgres.url("psycopg"), postgres, **options) as (engine, _):
        registry_of(engine.pool).ask_server()
        assert quiet(caplog)


def test_the_server_is_asked_in_shadow(postgres, table, caplog):
    """Nobody is refused there; a pool that would have refused is asked about."""
    with in_want(postgres.url("psycopg"), postgres, mode="shadow") as (engine, pid):
        registry_of(engine.pool).ask_server()
        poll(lambda: told(caplog), "a line about the lock")
    assert f"<- session {pid}" in told(caplog)[0]


def test_the_server_is_asked_once_in_thirty_seconds(postgres, table, caplog):
    """Refused callers by the hundred cause one question."""
    with in_want(postgres.url("psycopg"), postgres) as (engine, _):
        for _ in range(20):
            with contextlib.suppress(Exception):
                engine.connect()
        poll(lambda: told(caplog), "a line about the lock")
        for _ in range(20):
            with contextlib.suppress(Exception):
                engine.connect()
        time.sleep(0.35)
    assert len(told(caplog)) == 1


def test_a_frozen_server_is_not_waited_for(postgres, table, caplog):
    """The thread ends within its second, and nothing is said."""
    with in_want(postgres.url("psycopg"), postgres, asks=False) as (engine, _):
        with engine_frozen(postgres):
            began = time.monotonic()
            is_refused(engine)
            poll(lambda: THREAD in {thread.name for thread in threading.enumerate()}, "the server is asked")
            poll(lambda: THREAD not in {thread.name for thread in threading.enumerate()}, "that is over", 4)
            assert time.monotonic() - began < 3.5  # libpq's shortest limit for a connect is 2 s
        assert pool_status(engine).lock_waits == ()
    assert told(caplog) == []


@contextlib.contextmanager
def engine_frozen(server):
    """Stops the server as a whole."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def test_a_full_server_is_left_alone(caplog):
    """There is no connection for the question: the calls go on, and nothing is said."""
    with PostgresServer.start(max_connections=9, settings={"superuser_reserved_connections": "0"}) as server:
        with psycopg.connect(server.url(""), autocommit=True) as connection:
            connection.execute("create table waited (id int primary key)")
            connection.execute("insert into waited values (1)")
        with in_want(server.url("psycopg"), server) as (_, _), contextlib.ExitStack() as others:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    others.enter_context(psycopg.connect(server.url("")))
            assert quiet(caplog)


@pytest.mark.parametrize("value", [None, 1, "yes", "False"])
def test_ask_server_must_be_a_bool(value):
    """A word or a number is refused by the setting's name."""
    engine = create_engine("postgresql+psycopg://u@h/d")
    with pytest.raises(ConfigurationError, match="ask_server must be True or False"):
        protect(engine, ask_server=value)


# --- the status page ---------------------------------------------------------------------------------------


def test_status_page_names_holders_and_lock_waits(postgres, table, caplog):
    """Cause, the victims with their lines and sessions, and the blocker."""
    with in_want(postgres.url("psycopg"), postgres) as (engine, pid):
        poll(lambda: told(caplog), "a line about the lock")
        body = Probes(StatusSettings(guards=(registry_of(engine.pool).guard,))).status().body
    (shown,) = json.loads(body)["guards"]
    (wait,) = shown["lock_waits"]
    assert shown["cause"] == "locks"
    assert "test_lock_waits.py:" in wait["where"][0]
    assert [each["pid"] for each in wait["blockers"]] == [pid]
    assert [each["state"] for each in wait["blockers"]] == ["idle_in_transaction"]
    assert sorted(each["pid"] for each in shown["holders"]) == wait["pids"]
    assert all(each["blocked_by"] == [pid] and each["doing"] == "statement" for each in shown["holders"])
    assert CANARY.encode() not in body


def test_status_page_of_a_pool_at_rest_has_no_holders(postgres):
    """The keys are there from the beginning."""
    engine = create_engine(postgres.url("psycopg"))
    guard = protect(engine, name="db")
    guard.compartment("reports")
    (shown,) = json.loads(Probes(StatusSettings(guards=(guard,))).status().body)["guards"]
    assert (shown["cause"], shown["lock_waits"], shown["holders"]) == ("free", [], [])
    assert "holders" not in shown["compartments"][0]
