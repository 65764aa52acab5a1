"""Django under ASGI: what becomes of the statement of a view whose client has left."""

from __future__ import annotations

import json
import time

import psycopg
import pytest

from support.django_servers import get, project_behind
from support.http_client import GET, Client
from support.polling import poll

SECONDS = 2.0
"""Time in which a statement ends after its client. The guard's timeout is 10 s."""


@pytest.fixture
def locked(postgres):
    """A connection that holds the lock for which the views wait."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(7)")
        yield connection


def waiting(connection):
    """The number of sessions that wait for the lock."""
    sql = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    return connection.execute(sql).fetchone()[0]


def leave(server, path, locked):
    """Asks for a path and leaves when its statement waits."""
    with Client(server.address) as client:
        client.send(GET % path)
        poll(lambda: waiting(locked) == 1, "the statement waits for the lock")
        time.sleep(0.3)


@pytest.mark.parametrize("path", [b"/wait", b"/async-wait"])
def test_a_statement_ends_with_its_client(postgres, tmp_path, locked, path):
    with project_behind("uvicorn", postgres, tmp_path, CANCEL_ON_DISCONNECT="yes") as server:
        leave(server, path, locked)
        poll(lambda: waiting(locked) == 0, "the statement is gone from the server", SECONDS)
        figures = lambda: json.loads(get(server, b"/figures")[1])
        poll(lambda: figures()["in_use"] == 0, "the slot is back", SECONDS)
        assert figures()["failed"] == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("path", [b"/wait", b"/async-wait"])
def test_django_alone_lets_the_statement_go_on(postgres, tmp_path, locked, path):
    """It cancels the task of the view, and the query runs in a thread."""
    with project_behind("uvicorn", postgres, tmp_path) as server:
        leave(server, path, locked)
        time.sleep(1.0)
        assert waiting(locked) == 1
        locked.execute("select pg_advisory_unlock(7)")
        poll(lambda: json.loads(get(server, b"/figures")[1])["in_use"] == 0, "the slot is back")
