"""What a worker says when its server has more connections of its role than the budget, or has none left."""

from __future__ import annotations

import contextlib
import logging
import threading

import psycopg
import pymysql
import pytest
from sqlalchemy import create_engine, text

from guardrails import BreakerPolicy, protect
from guardrails._runtime.guard_log import NO_ROOM
from guardrails.fleet import Fleet
from support.polling import wait_until
from support.sql_lab import DRIVERS, MariaDB, drivers

ROLE = "fleet_counted"


@pytest.fixture
def as_role(postgres):
    """Makes a role with these attributes; returns a URL's text as that role."""
    with psycopg.connect(postgres.url(""), autocommit=True) as admin:

        def make(attributes=""):
            admin.execute(f"create role {ROLE} login {attributes}")
            return lambda driver: postgres.url(driver).replace("postgres@", f"{ROLE}@")

        yield make
        admin.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'")
        admin.execute(f"drop role if exists {ROLE}")


def test_a_worker_that_asks_its_server_warns_of_connections_beyond_the_budget(as_role, tmp_path, caplog):
    """It asks when its pool runs out, to find locks; the answer has all connections of its role."""
    caplog.set_level(logging.WARNING)
    url = as_role()
    engine = create_engine(url("psycopg"), pool_size=2, max_overflow=0)
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    guard = protect(
        engine, name="db", fleet=fleet.budget("db", connections=2, minimum=2), max_wait_duration=0.05
    )

    def work():
        with contextlib.suppress(Exception), engine.connect() as connection:
            connection.execute(text("select pg_sleep(3)"))

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(psycopg.connect(url("")))
        engine.connect().close()

        callers = [threading.Thread(target=work) for _ in range(3)]
        for caller in callers:
            caller.start()
        wait_until(lambda: any("fleet budget" in line for line in caplog.messages))
        for caller in callers:
            caller.join(30)
    (line,) = [line for line in caplog.messages if "fleet budget" in line]
    assert line.startswith(
        "fleet budget 'db': the server has 5 connections of this role, more than the budget of 2"
    )
    guard.detach()
    engine.dispose()
    fleet.close()


@pytest.mark.parametrize("driver", drivers("postgres", is_async=False))
def test_a_server_without_a_connection_left_is_the_named_cause(driver, as_role):
    url = as_role("connection limit 1")
    with psycopg.connect(url("")):
        assert cause_of_refusals(url(DRIVERS[driver][1])) == NO_ROOM


def test_a_mariadb_without_a_connection_left_is_the_named_cause(mariadb):
    lab = MariaDB(mariadb)
    address = {"host": "127.0.0.1", "port": mariadb.port, "user": ROLE, "ssl_disabled": True}
    with lab.connect() as admin:
        lab.run(admin, f"create user {ROLE}@'127.0.0.1' with max_user_connections 1")
        with pymysql.connect(**address):
            url = f"mysql+pymysql://{ROLE}@127.0.0.1:{mariadb.port}/?ssl_disabled=true"
            assert cause_of_refusals(url) == NO_ROOM
        lab.run(admin, f"drop user {ROLE}@'127.0.0.1'")


def cause_of_refusals(url):
    """The cause that a guard names for three connects that failed."""
    engine = create_engine(url, pool_size=4, max_overflow=0)
    guard = protect(engine, breaker=BreakerPolicy(minimum_number_of_calls=3))
    for _ in range(3):
        with contextlib.suppress(Exception):
            engine.connect()
    assert guard.state == "open"
    cause = guard.snapshot().failure_cause
    guard.detach()
    engine.dispose()
    return cause
