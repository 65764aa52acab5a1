"""A call returns by its deadline, the server stops working on it, and its connection is never used again."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import sqlalchemy
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from guardrails import CallTimeoutError, CommitUnknownError, ConfigurationError, DeadlineSpentError, deadline
from support.lateness import LATE
from support.polling import poll
from support.sql_lab import on_loops


class Stopwatch:
    def __enter__(self):
        self.start = time.monotonic()
        return self

    def __exit__(self, *exc):
        self.seconds = time.monotonic() - self.start


def warm(lab, count=2):
    """Fills the pool with idle connections."""
    assert lab.all([lambda: lab.query("select pg_sleep(0.05), 1")] * count)


@pytest.mark.every_driver
def test_slow_query_is_cancelled_on_the_server(lab):
    """At the deadline the statement ends on the server too, and only its own connection is lost."""
    lab.protect()
    warm(lab)
    with Stopwatch() as watch, pytest.raises(CallTimeoutError) as caught:
        # MySQL answers 1 to a cancelled `select sleep(30)`: only inside another expression is it an error.
        lab.query("select 1 from pg_sleep(30)", timeout=0.3)
    assert 0.3 <= watch.seconds < 0.3 + LATE
    assert caught.value.guard == "db"
    assert caught.value.__cause__ is not None
    poll(lambda: lab.running() == 0, "the statement has ended on the server", LATE)
    assert lab.pool.checkedout() == 0
    assert lab.guard.snapshot().in_use == 0
    # MariaDB lists a session for a moment after its end.
    lab.until(lambda: lab.server_side("true") == 1, "the other idle connection lives on, and no more")
    assert lab.query("select 42") == 42


def test_statement_option_is_the_limit_of_that_statement_alone(lab):
    """guardrails_timeout bounds one statement; the next has the guard's own timeout again."""
    lab.protect()

    def work(session):
        assert session.execute("select 1", timeout=0.2) == 1
        return session.execute("select 7 from pg_sleep(0.4)")

    assert lab.run(work) == 7


@pytest.mark.every_driver
def test_lock_wait_ends_at_the_deadline(lab, table):
    """A statement that waits for a lock is stopped like any other."""
    lab.protect(guard={"timeout": 0.3})
    with lab.locked(table), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        lab.query(f"select count(*) from {table}")
    assert 0.3 <= watch.seconds < 0.3 + LATE
    poll(lambda: lab.running() == 0, "nothing waits for the lock any more", LATE)
    assert lab.query(f"select count(*) from {table}") == 0


@pytest.mark.every_driver
def test_frozen_server_does_not_hold_the_caller(lab):
    """From a server that takes packets and answers nothing a call is back a grace after its deadline."""
    lab.protect(guard={"timeout": 0.3})
    warm(lab)
    with lab.frozen(), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        lab.query("select 1")
    assert watch.seconds < 0.3 + LATE
    assert lab.pool.checkedout() == 0
    assert lab.query("select 5") == 5


def test_connecting_to_a_frozen_server_is_bounded(lab):
    """A cold pool has no connection to cancel; opening one has the same deadline."""
    lab.protect(guard={"timeout": 0.3})
    with lab.frozen(), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        lab.query("select 1")
    assert watch.seconds < 0.3 + LATE
    assert lab.pool.checkedout() == 0
    assert lab.guard.snapshot().in_use == 0
    assert lab.query("select 5") == 5


def test_pre_ping_is_bounded(lab):
    """A pre-ping that gets no answer ends at the deadline."""
    lab.protect(guard={"timeout": 0.3}, pool_pre_ping=True)
    warm(lab)
    with lab.frozen(), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        lab.query("select 1")
    assert watch.seconds < 0.3 + LATE
    assert lab.query("select 5") == 5


@pytest.mark.every_driver
def test_commit_that_hangs_leaves_the_outcome_unknown(lab, table):
    """A COMMIT that is stopped raises an error of its own, and is not retried."""
    lab.protect(guard={"timeout": 0.3})
    with lab.backend.slow_commits(table) as hang:

        def work(session):
            session.execute(f"insert into {table} values (1)")
            hang()
            session.commit()

        with Stopwatch() as watch, pytest.raises(CommitUnknownError):
            lab.run(work)
        assert 0.3 <= watch.seconds < 0.3 + LATE
        poll(lambda: lab.running() == 0, "the COMMIT has ended on the server", LATE)
        assert lab.pool.checkedout() == 0


def test_ambient_deadline_bounds_every_statement(lab):
    """Statements take the smaller of their own limit and what is left of the ambient budget."""
    lab.protect()

    def work(session):
        with deadline(0.3):
            session.execute("select pg_sleep(0.2)")
            session.execute("select pg_sleep(30)")

    with Stopwatch() as watch, pytest.raises(CallTimeoutError):
        lab.run(work)
    assert 0.3 <= watch.seconds < 0.3 + LATE


def test_spent_budget_starts_nothing_but_the_rollback(lab):
    """With no time left no statement starts, yet the transaction is rolled back and the connection kept."""
    lab.protect()
    warm(lab, 1)

    def work(session):
        session.execute("select 1")
        with deadline(0), pytest.raises(DeadlineSpentError):
            session.execute("select 2")
        with deadline(0):
            session.rollback()
        return session.execute("select pg_backend_pid()")

    pid = lab.run(work)
    assert lab.query("select pg_backend_pid()") == pid
    with deadline(0), pytest.raises(DeadlineSpentError):
        lab.query("select 1")
    assert lab.guard.snapshot().rejected == {"deadline_spent": 2}


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_savepoint_ends_even_when_the_budget_is_spent(lab, end):
    """RELEASE and ROLLBACK TO end something that has begun; they get a little time of their own."""
    lab.protect()

    def work(session):
        pid = session.execute("select pg_backend_pid()")
        savepoint = session.connection.begin_nested()
        session.execute("select 1")
        with deadline(0):
            with pytest.raises(DeadlineSpentError):
                session.connection.begin_nested()
            getattr(savepoint, end)()
        session.rollback()
        return pid

    assert lab.run(work) == lab.query("select pg_backend_pid()")


def test_transaction_ends_pass_whatever_the_guard_refuses(lab):
    """With the circuit forced open and every slot taken, what has begun still ends and closes."""
    lab.protect(pool_size=1, max_overflow=0)

    def work(session):
        session.execute("select 1")
        lab.guard.force_open()
        savepoint = session.connection.begin_nested()
        savepoint.rollback()
        session.connection.begin_nested().commit()
        session.commit()
        session.execute("select 2")
        session.rollback()
        session.execute("select 3")  # and the close rolls back

    lab.run(work)
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    lab.guard.reset()
    assert lab.query("select 42") == 42


def test_a_stopped_connection_is_dropped_without_error_events(lab):
    """A user's own error listener that keeps a connection cannot keep one that was stopped."""
    if sqlalchemy.__version__.startswith("2.0.") and lab.driver.startswith("psycopg"):
        pytest.skip("SQLAlchemy 2.0 keeps a connection whose rollback raised until it is collected")
    lab.protect(pool_size=1, max_overflow=0)

    def keep(context):
        context.is_disconnect = False

    event.listen(getattr(lab.engine, "sync_engine", lab.engine), "handle_error", keep)
    pid = lab.query("select pg_backend_pid()")

    def work(session):
        with pytest.raises(CallTimeoutError):
            session.execute("select pg_sleep(30)", timeout=0.1)

    # The rollback finds a broken connection or an aborted transaction; either way it must not come back.
    with contextlib.suppress(Exception):
        lab.run(work)
    assert lab.query("select pg_backend_pid()") != pid


def test_own_timeouts_are_failures_and_inherited_ones_are_not(lab):
    """The guard's timeout is evidence about the server; a caller's smaller deadline is not."""
    lab.protect()
    with pytest.raises(CallTimeoutError):
        lab.query("select pg_sleep(30)", timeout=0.2)
    assert lab.guard.snapshot().failed == 1
    with deadline(0.2), pytest.raises(CallTimeoutError):
        lab.query("select pg_sleep(30)")
    assert (lab.guard.snapshot().failed, lab.guard.snapshot().abandoned) == (1, 1)


@pytest.mark.parametrize("tiny", [0.0004, 1e-9])
def test_tiny_limit_is_a_limit(lab, tiny):
    """Less than a millisecond is never rounded to no limit at all."""
    lab.protect()
    with Stopwatch() as watch, pytest.raises(CallTimeoutError):
        lab.query("select pg_sleep(30)", timeout=tiny)
    assert watch.seconds < LATE + 0.25
    poll(lambda: lab.running() == 0, "the statement has ended on the server", 1.0 + LATE)
    assert lab.query("select 42") == 42


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "5", True])
def test_wrong_statement_option_is_refused_by_name(lab, wrong):
    """A limit that is no positive number of seconds never reaches a driver."""
    lab.protect()
    with pytest.raises(ConfigurationError, match="guardrails_timeout"):
        lab.query("select 1", timeout=wrong)
    assert lab.pool.checkedout() == 0


@pytest.mark.parametrize("name", ["guardrails_timeot", "guardrails_mode", "guardrail_timeout"])
def test_unknown_statement_option_is_refused_by_name(lab, name):
    """An option that nothing reads would leave the statement with the guard's own limit."""
    lab.protect()
    said = f"execution_options has no option '{name}'; .*'guardrails_timeout'|{name}.*are guardrails_timeout"
    with pytest.raises(ConfigurationError, match=said):
        lab.run(lambda session: session.connection.execute(text("select 1"), execution_options={name: 5}))
    assert lab.pool.checkedout() == 0
    assert lab.query("select 42") == 42


def test_session_settings_are_untouched(lab):
    """Deadlines set nothing on the session that the next user of the connection could find."""
    lab.protect(pool_size=1, max_overflow=0)
    before = lab.query("show statement_timeout"), lab.query("select pg_backend_pid()")
    lab.query("select 1", timeout=0.5)
    with deadline(2), pytest.raises(DBAPIError):
        lab.query("select 1/0")
    with deadline(1):
        lab.run(lambda session: (session.execute("select 2"), session.commit()))
    assert (lab.query("show statement_timeout"), lab.query("select pg_backend_pid()")) == before
    with pytest.raises(CallTimeoutError):
        lab.query("select pg_sleep(30)", timeout=0.1)
    assert lab.query("show statement_timeout") == before[0]


@on_loops
def test_cancellation_from_outside_stays_a_cancellation(lab):
    """A task its owner cancels raises CancelledError, is no evidence, and frees everything."""
    lab.protect()

    async def main():
        async def dawdle():
            async with lab.engine.connect() as connection:
                await connection.execute(text(lab.backend.say("select pg_sleep(30)")))

        async with lab.engine.connect():  # a first connection is asked this and that, which may look like it
            pass
        task = asyncio.create_task(dawdle())
        while not await asyncio.to_thread(lab.running):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    lab.runner.run(main())
    assert lab.pool.checkedout() == 0
    snapshot = lab.guard.snapshot()
    assert (snapshot.in_use, snapshot.failed) == (0, 0)
    assert snapshot.abandoned >= 1
    # The pause lets the loop go on, as an application's would.
    poll(lambda: lab.pause(0.01) or lab.running() == 0, "the statement has ended on the server", LATE)


@pytest.fixture
def table(lab):
    """A table nobody else uses."""
    lab.aside("drop table if exists vault", "create table vault (id int)")
    yield "vault"
    lab.aside("drop table vault")
