"""mysqlclient: its connections are asked by the thread that uses them alone."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import create_engine, text

from guardrails import CallTimeoutError, protect
from guardrails.integrations.sqlalchemy import pool_status
from support.polling import poll
from support.sql_lab import those

pytest.importorskip("MySQLdb", reason="mysqlclient is not installed")

from guardrails._dbapi.drivers.mysqldb import MySQLdb

SLOW = "select 1 from pg_sleep(20)"


@those("mysqldb")
def test_a_connection_from_before_the_guard_is_stopped(lab):
    """Also on the server: what must be known of it is read before its first guarded statement."""
    lab.engine = lab.make_engine(pool_size=1, max_overflow=0)
    lab.query("select 1")
    lab.guard = protect(lab.engine, name="db", timeout=0.3)
    with pytest.raises(CallTimeoutError):
        lab.query(SLOW)
    poll(lambda: lab.running() == 0, "the statement was cancelled on the server")
    assert pool_status(lab.engine).failed_cancels == 0


@those("mysqldb")
def test_the_first_command_is_not_run_on_the_second_connection(lab):
    """It belongs to the work of the pool's connections."""
    arguments = {"init_command": "insert into first_commands values (1)"}
    lab.aside("create table if not exists first_commands (n int)")
    lab.engine = create_engine(lab.url(), connect_args=arguments)
    lab.guard = protect(lab.engine, name="db", timeout=0.5, max_concurrent_calls=2)
    with lab.engine.connect() as connection, pytest.raises(CallTimeoutError):
        connection.execute(text(lab.backend.say(SLOW)))
    poll(lambda: lab.running() == 0, "the statement was cancelled on the server")
    assert pool_status(lab.engine).failed_cancels == 0
    lab.dispose()
    lab.aside("drop table first_commands")


@those("mysqldb")
def test_a_connection_in_use_is_not_asked_by_other_threads(lab):
    """mysqlclient would raise an error in one of the two threads."""
    lab.engine = lab.make_engine(pool_size=1, max_overflow=0)
    driver, over = MySQLdb(), threading.Event()

    def work(session):
        own = session.connection.connection.driver_connection
        driver.note(own)
        number = own.thread_id()

        def ask():
            while not over.is_set():
                assert driver.session_of(own).pid == number
                assert driver.cancel_target(own).session.target.number == number
                assert driver.endpoint(own)[1] == "127.0.0.1"

        with lab.meanwhile(ask) as failed:
            try:
                for each in range(300):
                    assert session.execute(f"select {each}") == each
            finally:
                over.set()
        assert failed == [None]

    lab.run(work)


@those("mysqldb")
def test_nothing_is_known_of_a_connection_that_was_not_noted(lab):
    """The driver then knows no session, and shuts no socket."""
    lab.engine = lab.make_engine(pool_size=1, max_overflow=0)
    driver = MySQLdb()

    def work(session):
        own = session.connection.connection.driver_connection
        assert (driver.session_of(own), driver.endpoint(own)) == (None, (None, None))
        driver.kill(own)
        assert session.execute("select 42") == 42

    lab.run(work)
