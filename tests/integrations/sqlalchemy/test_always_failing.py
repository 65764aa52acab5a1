"""A server that fails at every statement, and answers every ROLLBACK, ping and login: the circuit opens."""

from __future__ import annotations

import contextlib

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from guardrails import BreakerPolicy, CircuitOpenError, protect
from support.sql_lab import drivers, in_threads, lab_with, on_postgres

lab = lab_with(drivers())

FULL = "do $$ begin raise exception 'disk full' using errcode = '53100'; end $$"
FULL_MARIADB = "signal sqlstate 'HY000' set mysql_errno = 1021"

UNHURRIED = BreakerPolicy(sliding_window_size=60)


def fails(lab):
    return FULL if lab.backend.server.__class__.__name__ == "PostgresServer" else FULL_MARIADB


@pytest.mark.parametrize("good", [0, 1], ids=["failing at once", "after one that works"])
@pytest.mark.parametrize("options", [{}, {"pool_pre_ping": True}], ids=["plain", "pre-ping"])
def test_circuit_opens_when_every_statement_fails(lab, options, good):
    """A good statement before it does not lower the rate."""
    guard = lab.protect(guard={"breaker": UNHURRIED}, **options)

    def work(session):
        for _ in range(good):
            session.execute("select 1")
        session.execute(fails(lab))

    for _ in range(20):
        with pytest.raises((DBAPIError, CircuitOpenError)):
            lab.run(work)
    assert guard.state == "open"
    assert guard.snapshot().failure_rate == 1


def test_successes_of_transaction_ends_are_counted_and_no_evidence(lab):
    """A statement and the ROLLBACK after it: two that succeeded, one call for the verdict."""
    guard = lab.protect(guard={"breaker": BreakerPolicy(minimum_number_of_calls=100)})
    lab.query("select 1")
    before = guard.snapshot()
    lab.run(lambda session: (session.execute("select 1"), session.commit()))
    after = guard.snapshot()
    assert after.succeeded - before.succeeded >= 2
    assert after.calls - before.calls == 1
    assert after.abandoned == 0


@on_postgres
def test_savepoints_that_work_prove_nothing(lab):
    """SAVEPOINT, a statement that fails, ROLLBACK TO SAVEPOINT: one failure of one."""
    guard = lab.protect(guard={"breaker": BreakerPolicy(minimum_number_of_calls=100)})

    def work(session):
        for _ in range(5):
            with pytest.raises(DBAPIError), session.connection.begin_nested():
                session.execute(FULL)

    lab.run(work)
    assert (guard.snapshot().calls, guard.snapshot().failures) == (5, 5)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_circuit_opens_for_an_orm_session_whose_statements_all_time_out(postgres, driver):
    """The server's own statement_timeout ends each; the session rolls back twice."""
    engine = create_engine(postgres.url(driver), connect_args={"options": "-c statement_timeout=20"})
    guard = protect(engine, breaker=UNHURRIED)
    for _ in range(12):
        with pytest.raises((DBAPIError, CircuitOpenError)), Session(engine) as session:
            session.execute(text("select pg_sleep(9)"))
    assert guard.state == "open"
    engine.dispose()


@in_threads  # tasks have no raw cursors
@pytest.mark.parametrize("fetch", ["fetchall", "fetchone", "fetchmany"])
def test_circuit_opens_for_raw_cursors_that_fetch_between_failures(lab, fetch):
    """The good statement and its fetches are one call with the one that fails."""
    guard = lab.protect(guard={"breaker": UNHURRIED})
    for _ in range(20):
        with contextlib.suppress(Exception), contextlib.closing(lab.engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute("select 1 union all select 2 union all select 3")
            while getattr(cursor, fetch)():
                pass
            cursor.execute(fails(lab))
    assert guard.state == "open"
    assert guard.snapshot().failure_rate == 1


@pytest.mark.parametrize("driver", ["psycopg"])
def test_blocks_of_a_copy_and_rows_of_a_stream_are_one_call_with_their_checkout(postgres, driver):
    """Each is counted as succeeded; the circuit sees one call."""
    engine = create_engine(postgres.url(driver))
    guard = protect(engine, breaker=BreakerPolicy(minimum_number_of_calls=1000))
    with contextlib.closing(engine.raw_connection()) as connection:
        before = guard.snapshot()
        assert len(list(connection.cursor().stream("select generate_series(1, 50)"))) == 50
        with connection.cursor().copy("copy (select generate_series(1, 50)) to stdout") as copy:
            assert len(list(copy)) == 50
        after = guard.snapshot()
        assert after.succeeded - before.succeeded >= 3  # the stream, the beginning of the COPY and its end
        assert after.calls == before.calls
    assert guard.snapshot().calls - before.calls == 1
    engine.dispose()


def test_circuit_opens_when_every_statement_is_slow(lab):
    """Likewise."""
    slow = BreakerPolicy(slow_call_duration_threshold=0.02, sliding_window_size=60)
    guard = lab.protect(guard={"breaker": slow}, pool_pre_ping=True)
    lab.query("select 1")
    guard.reset()
    for _ in range(12):
        try:
            lab.query("select pg_sleep(0.04)")
        except CircuitOpenError:
            break
    assert guard.state == "open"


def test_a_ping_is_no_probe(lab):
    """Half-open: what a probe's checkout asks for itself closes nothing; its first statement is the probe."""
    policy = BreakerPolicy(permitted_calls_in_half_open_state=1, max_wait_duration_in_half_open_state=30)
    guard = lab.protect(guard={"breaker": policy}, pool_pre_ping=True)
    lab.query("select 1")
    guard.call_settings.gates[0].step(guard.call_settings.gates[0].core.set_state, "half_open")
    lab.run(lambda session: None)
    assert guard.state == "half_open"
    lab.query("select 1")
    assert guard.state == "closed"


def test_a_refused_connect_is_a_failed_probe(lab):
    """Half-open, and the server refuses new connections: the circuit opens again."""
    policy = BreakerPolicy(permitted_calls_in_half_open_state=1, minimum_number_of_calls=1000)
    guard = protect(create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none"), breaker=policy)
    gate = guard.call_settings.gates[0]
    gate.step(gate.core.set_state, "half_open")
    with pytest.raises(DBAPIError):
        guard._attachment._engine.connect()
    assert guard.state == "open"
