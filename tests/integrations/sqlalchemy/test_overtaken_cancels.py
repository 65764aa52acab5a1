"""An order to stop that is there before its statement finds nothing to stop; it must not be the last one."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
import time

import psycopg2
import pytest

from guardrails import CallTimeoutError
from guardrails._dbapi import loop_watch, watchdog
from guardrails._dbapi.drivers import find_driver
from guardrails._dbapi.drivers.psycopg2 import Psycopg2
from support.lateness import LATE
from support.polling import poll
from support.sql_lab import those

LIMIT = 0.2
NAP = "select pg_sleep(cast(current_setting('lab.nap') as float))"


@pytest.fixture
def patience(monkeypatch):
    """Seconds until the second order: more than usual, for what must happen before it on a busy machine."""
    for module in (watchdog, loop_watch):
        monkeypatch.setattr(module, "AGAIN", 1.5)
        monkeypatch.setattr(module, "GRACE", 3.0)
    return 1.5


def interrupted(pid):
    """Whether a SIGINT waits for a process, which is how PostgreSQL hands on an order to stop."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    masks = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(int(mask, 16) & 1 << signal.SIGINT - 1 for mask in masks)


@contextlib.contextmanager
def busy_elsewhere(pid):
    """A server process that begins its statement only after it got the cancel request."""
    os.kill(pid, signal.SIGSTOP)

    def go_on():
        end = time.monotonic() + 10
        while not interrupted(pid) and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(pid, signal.SIGCONT)

    going_on = threading.Thread(target=go_on)
    going_on.start()
    try:
        yield
    finally:
        going_on.join()


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="asks Linux for pending signals")
@pytest.mark.parametrize("lab", ["psycopg", "psycopg_async", "asyncpg"], indirect=True)
def test_a_cancel_request_that_overtakes_its_statement(lab, patience):
    """PostgreSQL forgets an order that finds no statement; the next one ends what came after it."""
    lab.protect(pool_size=1, max_overflow=0, guard={"breaker": None})
    pid = lab.query("select pg_backend_pid()")

    def work(session):
        session.execute("set lab.nap = 0")
        session.execute(NAP)  # begun and prepared, so that the next time it is one message
        session.execute("set lab.nap = 30")
        with busy_elsewhere(pid):
            session.execute(NAP, timeout=LIMIT)

    start = time.monotonic()
    with pytest.raises(CallTimeoutError):
        lab.run(work)
    poll(lambda: lab.pause(0.01) or lab.running() == 0, "the statement has ended on the server", 3.0)
    assert time.monotonic() - start > LIMIT + patience / 2, "the first order was not lost"
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.query("select pg_backend_pid()") != pid


@those("psycopg", "psycopg_async", "psycopg2", "pg8000", "pymysql", "mysqldb", "aiomysql", "asyncmy")
def test_a_cancel_request_that_is_lost(lab, monkeypatch):
    """Whatever became of the first order, the statement has ended on the server a second later."""
    lab.protect(pool_size=1, max_overflow=0, guard={"breaker": None})
    number = lab.query("select pg_backend_pid()")
    driver = type(find_driver(lab.engine.dialect.driver, is_async=lab.engine.dialect.is_async))
    cancel, orders = driver.cancel, []

    def lose_the_first(self, connection, within):
        orders.append(within)
        if len(orders) > 1:
            cancel(self, connection, within)

    monkeypatch.setattr(driver, "cancel", lose_the_first)
    start = time.monotonic()
    with pytest.raises(CallTimeoutError):
        lab.query("select pg_sleep(30)", timeout=LIMIT)
    assert time.monotonic() - start < LIMIT + LATE
    poll(lambda: lab.pause(0.01) or lab.running() == 0, "the statement has ended on the server", 1.0 + LATE)
    assert len(orders) == 2
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.query("select pg_backend_pid()") != number


class Closable:
    """A psycopg2 connection that another thread closes; using it from then on may crash the process."""

    def __init__(self, connection):
        self.connection = connection
        self.closed = threading.Event()
        self.touched = []

    def __getattr__(self, name):
        if self.closed.is_set():
            self.touched.append(name)
        return getattr(self.connection, name)


def test_a_cancel_request_reads_nothing_of_a_connection_that_may_be_closed(postgres):
    """The call ends and its connection is closed while the second connection logs in."""
    url = postgres.url("").replace("+", "")
    sent = threading.Event()

    class Driver(Psycopg2):
        def cancel(self, target, within):
            own.closed.wait(5)
            super().cancel(target, within)
            sent.set()

    driver = Driver()
    own = Closable(psycopg2.connect(url))
    call = watchdog.watch(driver, own, 0.0)
    poll(lambda: call.cancels_sent, "the watchdog has sent the request")
    assert call.end()
    own.closed.set()
    own.connection.close()
    assert sent.wait(5)
    assert (own.touched, driver.failed_cancels) == ([], 0)


def test_the_session_is_read_where_a_closed_connection_is_noticed(postgres):
    """Any thread asks for it: ``info`` would read memory that the owner has freed."""
    with contextlib.closing(psycopg2.connect(postgres.url(""))) as connection:
        own = Closable(connection)
        own.closed.set()
        session = Psycopg2().session_of(own)
        assert session.pid == connection.info.backend_pid
        assert "info" not in own.touched
    with pytest.raises(psycopg2.InterfaceError):
        Psycopg2().session_of(own)


def test_the_watchdog_reads_a_connection_only_while_its_call_cannot_end():
    """``end()`` waits until the request is prepared, so the caller cannot close the connection before."""
    aiming, ended, seen = threading.Event(), threading.Event(), []

    class Stop:
        def cancel_target(self, connection):
            aiming.set()
            seen.append(ended.wait(0.1))
            return connection

        def cancel(self, target, within):
            """Takes no time."""

        cancel_again = cancel

        def retire(self, connection):
            """Nothing to close."""

    call = watchdog.watch(Stop(), "connection", 0.0)
    assert aiming.wait(5)
    assert call.end()
    ended.set()
    assert seen == [False]
