"""Django behind real servers while its guard is full, its circuit open, or its database frozen.

Requests that need no database go on, and those that need it are refused or stopped: no kind of keeping
connections makes a 500 of either.
"""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from support.django_servers import SERVERS, get, project_behind
from support.http_client import GET, Client
from support.polling import wait_until

KEEPS = {"CONN_MAX_AGE 0": "0", "CONN_MAX_AGE 60": "60", "pool": "pool"}


@pytest.fixture(scope="module", params=KEEPS)
def keeps(request):
    """How connections are kept."""
    return KEEPS[request.param]


@pytest.fixture(scope="module", params=SERVERS)
def project(request, keeps, postgres, tmp_path_factory):
    """The project behind each of the servers, with each way of keeping connections."""
    environ = {"DATABASE_KEEPS": keeps, "DATABASE_COMPARTMENTS": "declared"}
    folder = tmp_path_factory.mktemp("django")
    with project_behind(request.param, postgres, folder, **environ) as server:
        yield server


def at_once(project, paths):
    """The statuses of several requests that are sent before any is answered."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(project.address)) for _ in paths]
        for client, path in zip(clients, paths, strict=True):
            client.send(GET % path)
        return [client.response()[0] for client in clients]


@contextlib.contextmanager
def full(project, postgres):
    """Every slot is taken by a query that waits for a lock."""
    with psycopg.connect(postgres.url(""), autocommit=True) as plain, contextlib.ExitStack() as stack:
        plain.execute("select pg_advisory_lock(7)")
        clients = [stack.enter_context(Client(project.address)) for _ in range(3)]
        for client in clients:
            client.send(GET % b"/wait")
        wait_until(lambda: project.figures()["in_use"] == 3)
        yield
        plain.execute("select pg_advisory_unlock(7)")
        assert [client.response()[0] for client in clients] == [200] * 3


@contextlib.contextmanager
def circuit_open(project, _postgres):
    """Opened by hand."""
    assert get(project, b"/circuit/open") == (200, b"open")
    yield
    assert get(project, b"/circuit/reset") == (200, b"reset")


@contextlib.contextmanager
def frozen(_project, postgres):
    """The server takes packets and answers nothing."""
    postgres.freeze()
    try:
        yield
    finally:
        postgres.thaw()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("trouble", [full, circuit_open, frozen], ids=lambda trouble: trouble.__name__)
def test_who_needs_no_database_is_served_and_the_rest_is_refused(project, postgres, trouble):
    """200 for the one, 503 or 504 for the other, and never 500; afterwards all is as it was."""
    # Connections in as many threads as possible, for whoever keeps them.
    assert set(at_once(project, [b"/ask"] * 8)) <= {200, 503}
    wait_until(lambda: project.figures()["in_use"] == 0)
    with trouble(project, postgres):
        for _ in range(3):
            statuses = at_once(project, [b"/ask", b"/ping"] * 6)
            assert set(statuses[0::2]) <= {503, 504}, statuses
            assert set(statuses[1::2]) == {200}, statuses
    wait_until(lambda: get(project, b"/ask") == (200, b"1"), seconds=30)
    wait_until(lambda: project.figures()["in_use"] == 0)
