"""Errors of real servers: the server's fault, or an answer that proves it healthy."""

from __future__ import annotations

import contextlib

import asyncpg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from guardrails import BreakerPolicy, CallTimeoutError, CircuitOpenError, protect
from guardrails._dbapi.drivers import postgres
from guardrails.events import StateChanged
from support.polling import poll
from support.sql_lab import drivers, lab_with

ANSWERS = {
    "unique violation": "23505",
    "foreign key violation": "23503",
    "division by zero": "22012",
    "syntax error": "42601",
    "undefined table": "42P01",
    "missing right": "42501",
    "read-only transaction": "25006",
    "serialization failure": "40001",
    "deadlock": "40P01",
    "lock not available": "55P03",
    "a session's own limit": "53400",
    "raised by a function": "P0001",
}
FAULTS = {
    "disk full": "53100",
    "out of memory": "53200",
    "too many connections": "53300",
    "cancelled by an administrator": "57014",
    "input or output": "58030",
    "internal": "XX000",
    "corrupted data": "XX001",
}


lab = lab_with(drivers("postgres"))


def failures(lab, work):
    """How many failures the guard counts while ``work`` raises a driver's error."""
    before = lab.guard.snapshot().failed
    # Of a connection that is not to be had, SQLAlchemy 2.0 passes asyncpg's own errors on.
    with pytest.raises((DBAPIError, OSError, asyncpg.PostgresError)):
        work()
    assert lab.guard.snapshot().in_use == 0
    return lab.guard.snapshot().failed - before


@pytest.mark.parametrize(("states", "failed"), [(ANSWERS, 0), (FAULTS, 1)], ids=["answers", "faults"])
def test_the_sqlstate_decides_the_outcome(lab, states, failed):
    """Every row of the table, as it arrives through the driver."""
    lab.protect(guard={"breaker": BreakerPolicy(minimum_number_of_calls=1000)})
    counted = {}
    for what, state in states.items():
        raising = f"do $$ begin raise exception 'no' using errcode = '{state}'; end $$"
        counted[what] = failures(lab, lambda raising=raising: lab.query(raising))
    assert counted == dict.fromkeys(states, failed)


def test_constraint_and_syntax_are_answers(lab, table):
    """An error in the data or the statement is no failure."""
    lab.protect()

    def twice(session):
        session.execute(f"create unique index on {table} (id)")
        session.execute(f"insert into {table} values (1), (1)")

    assert failures(lab, lambda: lab.run(twice)) == 0
    assert failures(lab, lambda: lab.query("selekt 1")) == 0


def test_deadlock_is_an_answer(lab, table):
    """The server that breaks a deadlock is well; the one it chose may try again."""
    lab.protect()
    lab.aside(f"insert into {table} values (1), (2)")

    def crossing(first, second):
        def work(session):
            session.execute("set local deadlock_timeout = '100ms'")
            session.execute(f"update {table} set id = id where id = {first}")
            session.execute("select pg_sleep(0.3)")
            session.execute(f"update {table} set id = id where id = {second}")

        return lambda: lab.run(work)

    results = lab.all([crossing(1, 2), crossing(2, 1)])
    assert sum(isinstance(result, DBAPIError) for result in results) == 1
    assert lab.guard.snapshot().failed == 0


def test_servers_own_lock_timeout_is_an_answer(lab, table):
    """A lock of another session is no outage; the guard's deadline bounds an endless wait."""
    lab.protect()

    def impatient(session):
        session.execute("set local lock_timeout = '50ms'")
        session.execute(f"select count(*) from {table}")

    with lab.locked(table):
        assert failures(lab, lambda: lab.run(impatient)) == 0


def test_write_in_a_read_only_transaction_is_an_answer(lab, table):
    """The transaction was made so by its own code."""
    lab.protect()

    def write(session):
        session.execute("set transaction read only")
        session.execute(f"insert into {table} values (1)")

    assert failures(lab, lambda: lab.run(write)) == 0


@pytest.mark.parametrize("order", ["pg_cancel_backend", "pg_terminate_backend"])
def test_administrators_orders_are_failures(lab, order):
    """A statement or a session that is ended from outside did not get its answer."""
    lab.protect(guard={"timeout": 20})
    with lab.meanwhile(lambda: lab.query("select pg_sleep(10)")) as results:
        for _ in range(500):
            lab.pause(0.01)
            if lab.server_side("wait_event = 'PgSleep'"):
                break
        lab.aside(f"select {order}(pid) from pg_stat_activity where application_name = 'lab'")
    assert isinstance(results[0], DBAPIError)
    assert lab.guard.snapshot().failed == 1


@pytest.mark.parametrize("role", ["login connection limit 0", "nologin"], ids=["too many", "no right"])
def test_connections_that_cannot_be_had_are_failures(lab, role):
    """A failure to connect is a failure, whatever its cause."""
    lab.aside(f"create role crowded {role}")
    try:
        url = lab.url().replace("postgres@", "crowded@")
        lab.url = lambda port=None: url
        lab.protect()
        assert failures(lab, lambda: lab.query("select 1")) == 1
    finally:
        lab.aside("drop role crowded")


def test_sqlstates_are_distinguished():
    """No state, no verdict; a state that is no text is none."""
    assert postgres.server_failed(None) is None
    assert postgres.server_failed("") is None
    assert postgres.server_failed("57P05") is False
    assert postgres.server_failed("57P01") is True


@pytest.mark.parametrize(
    ("statement", "failed"),
    [
        ("insert into t select randomblob(4000) from t a, t b, t c", 1),  # the disk, as far as SQLite knows
        ("insert into t values (1)", 0),  # a unique violation
        ("selekt", 0),
    ],
)
def test_sqlite_tells_a_full_disk_from_a_wrong_statement(tmp_path, statement, failed):
    """SQLite's result codes, from SQLite."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine)
    with engine.begin() as connection:
        connection.execute(text("create table t (id unique)"))
        connection.execute(text("insert into t values (1), (2), (3)"))
    with engine.connect() as connection:
        connection.execute(text("pragma max_page_count = 4"))
        with pytest.raises(DBAPIError):
            connection.execute(text(statement))
    assert db.snapshot().failed == failed
    engine.dispose()


def test_file_that_is_no_database_is_a_failure(tmp_path):
    """Likewise."""
    (tmp_path / "db").write_text("this is no database, however long one looks at it" * 100)
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine)
    with contextlib.closing(engine.raw_connection()) as raw, pytest.raises(Exception, match="not a database"):
        raw.cursor().execute("select * from t")
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(text("select * from sqlite_master"))
    assert db.snapshot().failed == 2  # a raw cursor is asked, too
    engine.dispose()


@pytest.fixture
def table(lab):
    """A table nobody else uses."""
    lab.aside("create table evidence (id int)")
    yield "evidence"
    poll(lambda: lab.running() == 0, "nothing of the test runs on the server")
    lab.aside("drop table evidence")


@pytest.mark.parametrize("quick", [0, 1, 3])
def test_a_circuit_opens_and_stays_open_whatever_quick_statements_come_before_the_lock(lab, quick):
    """A session and a user are read first, and then the table that is locked."""
    policy = BreakerPolicy(slow_call_duration_threshold=0.05, wait_duration_in_open_state=0.1, open_jitter=0)
    states = []
    lab.protect(
        guard={
            "breaker": policy,
            "timeout": 0.1,
            "listeners": [lambda event: isinstance(event, StateChanged) and states.append(event.new)],
        }
    )
    lab.aside("create table quick_before_lock (id int)")

    def work(session):
        for _ in range(quick):
            session.execute("select 1")
        session.execute("select count(*) from quick_before_lock")

    def ask(times):
        for _ in range(times):
            with contextlib.suppress(CallTimeoutError, CircuitOpenError, DBAPIError):
                lab.run(work)
            lab.pause(0.01)

    try:
        lab.run(lambda session: session.execute("select 1"))
        with lab.locked("quick_before_lock"):
            ask(60)
            assert "closed" not in states
            assert states[:3] == ["open", "half_open", "open"]
        poll(lambda: ask(1) or lab.guard.state == "closed", "the circuit to close")
    finally:
        lab.aside("drop table quick_before_lock")
