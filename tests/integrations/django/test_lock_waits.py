"""Django's connections that run out because of a lock: the log names the session that holds it."""

from __future__ import annotations

import contextlib
import threading

import psycopg
import pytest
from django.db import connections

from guardrails import BreakerPolicy, ConfigurationError, Guard
from guardrails.integrations.django._database.registry import protect
from guardrails.integrations.django.postgresql import base
from support import django_lab
from support.polling import poll

CANARY = "canary-77fe"

EARLY = BreakerPolicy(slow_call_duration_threshold=0.2, minimum_number_of_calls=1000)
"""The server is asked after 0.2 s, not after a second."""

POOLS = {"without a pool": {}, "with a pool": {"pool": {"min_size": 1, "max_size": 2}}}


def load_order():
    """Waits for the row on a connection of this thread's own."""
    try:
        with connections["shop"].cursor() as cursor:
            cursor.execute(f"select id from waited where '{CANARY}' <> '' for update")
    finally:
        connections["shop"].close()


def told(caplog):
    """The lines about locks in the log."""
    return [line for line in caplog.messages if "for a lock" in line]


@pytest.fixture
def table(postgres):
    """A table with a row to lock."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create table waited (id int)")
        connection.execute("insert into waited values (1)")
        yield
        connection.execute("drop table waited")


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_log_names_the_session_that_holds_the_lock(postgres, table, caplog, options):
    """The lines of the threads that wait, and the blocker."""
    guard = Guard("django", max_concurrent_calls=2, max_wait_duration=0.02, timeout=10.0, breaker=EARLY)
    entry = django_lab.database(postgres, {"guard": guard, **options})
    threads = [threading.Thread(target=load_order) for _ in range(2)]
    with django_lab.configured("shop", entry) as connection, psycopg.connect(postgres.url("")) as other:
        other.execute("select id from waited for update")
        for thread in threads:
            thread.start()
        try:
            poll(lambda: guard.snapshot().in_use == 2, "both connections are out")
            with contextlib.suppress(Exception):
                connection.ensure_connection()
            poll(lambda: told(caplog), "a line about the lock")
        finally:
            other.rollback()
            for thread in threads:
                thread.join()
        pid = other.info.backend_pid
    (line,) = told(caplog)
    assert line.startswith("pool 'django': 2 x ")
    assert "test_lock_waits.py:" in line.partition("<-")[0]
    assert f"<- session {pid}, idle in transaction for" in line
    assert CANARY not in line


def test_ask_server_must_be_a_bool(postgres):
    """A word is refused by the setting's name."""
    guard = Guard("django", max_concurrent_calls=2)
    with pytest.raises(ConfigurationError, match=r"OPTIONS\['ask_server'\] must be True or False"):
        protect(base.DatabaseWrapper.kind, "shop", {"OPTIONS": {"guard": guard, "ask_server": "no"}})
