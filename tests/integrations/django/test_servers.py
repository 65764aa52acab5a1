"""A whole Django project behind real servers and in front of a real PostgreSQL."""

from __future__ import annotations

import contextlib
import json
from collections import Counter

import pytest

from support.django_servers import SERVERS, get, project_behind
from support.http_client import GET, Client
from support.polling import wait_until


@pytest.fixture(scope="module", params=SERVERS)
def project(request, postgres, tmp_path_factory):
    """The project behind each of the servers."""
    with project_behind(request.param, postgres, tmp_path_factory.mktemp("django")) as server:
        yield server


def test_requests_are_served_and_give_their_connection_back(project):
    """Views of both kinds, more of them than there are slots; each route is a workload."""
    for number in range(5):
        assert get(project, b"/items/%d" % number) == (200, b"%d" % number)
        assert get(project, b"/async") == (200, b"1")
    wait_until(lambda: project.figures()["in_use"] == 0)
    assert {"GET /async", "GET /items/{number:int}"} <= set(project.figures()["compartments"])


def test_a_query_that_is_not_done_in_time_is_504(project):
    """And it is the database's fault."""
    failed = project.figures()["failed"]
    status, body = get(project, b"/slow")
    assert (status, json.loads(body)["code"]) == (504, "timeout")
    assert project.figures()["failed"] == failed + 1
    assert get(project, b"/items/7") == (200, b"7")


def test_more_than_the_slots_is_503_and_the_rest_goes_on(project):
    """Nobody waits for a connection, and who needs none is served."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(project.address)) for _ in range(7)]
        for client in clients:
            client.send(GET % b"/hold")
        # Two of three slots are this route's share where others were active lately.
        wait_until(lambda: project.figures()["in_use"] >= 2)
        assert get(project, b"/ping") == (200, b"fine")
        answers = [client.response() for client in clients]
    counted = Counter(status for status, _, _ in answers)
    assert set(counted) == {200, 503}
    assert counted[200] >= 2, "the slots are served"
    assert {json.loads(body)["code"] for status, _, body in answers if status == 503} == {"bulkhead_full"}
    wait_until(lambda: project.figures()["in_use"] == 0)


@pytest.mark.sampled(1)
def test_a_client_that_leaves_takes_no_slot_along(project):
    """The query runs to its end, and its slot comes back."""
    for _ in range(3):
        with Client(project.address) as client:
            client.send(GET % b"/hold")
            wait_until(lambda: project.figures()["in_use"] == 1)
        wait_until(lambda: project.figures()["in_use"] == 0, seconds=30)
    assert get(project, b"/items/7") == (200, b"7")
