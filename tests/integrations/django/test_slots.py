"""Who holds a slot from when to when, as docs/guides/django.md says, through Django's own handler."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.db import connections
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.test.client import RequestFactory
from django.urls import path

from guardrails import Guard
from guardrails.integrations.django import GuardrailsMiddleware
from support import django_lab
from support.polling import poll

KEPT = {"CONN_MAX_AGE": None}
POOL = {"pool": {"min_size": 1, "max_size": 3}}

db = Guard("db", max_concurrent_calls=3, max_wait_duration=0)
replica = Guard("replica", max_concurrent_calls=3, max_wait_duration=0)
seen = []


def busy():
    """Slots of both guards in use."""
    return db.snapshot().in_use, replica.snapshot().in_use


def ask(alias="shop"):
    """One query."""
    with connections[alias].cursor() as cursor:
        cursor.execute("select 1")


def idle(_request):
    seen.append(busy())
    return HttpResponse("idle")


def query(_request):
    seen.append(busy())
    ask()
    seen.append(busy())
    return HttpResponse("query")


def both(_request):
    ask("shop")
    ask("replica")
    seen.append(busy())
    return HttpResponse("both")


def stream(_request):
    def rows():
        ask()
        seen.append(busy())
        yield b"one"
        seen.append(busy())
        yield b"two"

    return StreamingHttpResponse(rows())


def failing(_request):
    def rows():
        ask()
        raise KeyError("of the application")
        yield b"never"

    return StreamingHttpResponse(rows())


urlpatterns = [
    path("idle", idle),
    path("query", query),
    path("both", both),
    path("stream", stream),
    path("failing", failing),
    path("empty", lambda _request: StreamingHttpResponse(())),
]


@pytest.fixture
def project(postgres, request):
    """Two aliases, each with a guard of its own; gives what sends a request."""
    options, more = request.param
    handler = None
    primary = django_lab.database(postgres, {"guard": db, **options}, **more)
    second = django_lab.database(postgres, {"guard": replica, **options})
    with (
        override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[]),
        django_lab.configured("shop", primary),
        django_lab.configured("replica", second),
    ):
        handler = WSGIHandler()

        def send(where):
            seen.clear()
            response = handler(RequestFactory().get(where).environ, lambda *_: None)
            body = b"".join(response)
            response.close()
            assert response.status_code == 200, body
            assert busy() == (0, 0), "the request is over"
            return [*seen]

        yield send


kept = pytest.mark.parametrize("project", [({}, KEPT)], indirect=True)
every = pytest.mark.parametrize("project", [({}, {}), ({}, KEPT), (POOL, {})], indirect=True)


@every
def test_from_the_first_query_to_the_end_of_the_request(project):
    """The first request opens the connection, the second finds it or not; the slot is held alike."""
    assert project("/query") == [(0, 0), (1, 0)]
    assert project("/query") == [(0, 0), (1, 0)]
    assert project("/idle") == [(0, 0)]


@every
def test_a_streamed_response_holds_it_to_its_last_byte(project):
    """Django closes the response then."""
    assert project("/stream") == [(1, 0), (1, 0)]


@pytest.fixture
def handler(project):
    """Django's handler with the middleware in it."""
    with override_settings(
        MIDDLEWARE=["guardrails.integrations.django.GuardrailsMiddleware"],
        GUARDRAILS={"guards": [db], "max_in_flight": 1, "exempt": ["/idle"]},
    ):
        yield WSGIHandler()


def answer(handler, where):
    """Status and body; closes the response whatever happens."""
    response = handler(RequestFactory().get(where).environ, lambda *_: None)
    try:
        return response.status_code, b"".join(response)
    finally:
        response.close()


@pytest.mark.parametrize("project", [({}, {}), ({}, KEPT), (POOL, {})], indirect=True)
@pytest.mark.parametrize("how", ["open", "full"])
def test_stream_whose_first_piece_is_refused_is_503(handler, project, how):
    """The server has sent nothing yet; it would make a 500 of the error."""
    assert answer(handler, "/stream") == (200, b"onetwo")
    with contextlib.ExitStack() as taken:
        if how == "open":
            db.force_open()
            taken.callback(db.reset)
        else:
            gate = db.call_settings.gates[0]
            for _ in range(3):
                taken.callback(gate.check_in, gate.check_out_now())
        for _ in range(2):  # the second finds that the first has given back its place in flight
            status, body = answer(handler, "/stream")
            assert (status, b'"title"' in body) == (503, True), body
        assert answer(handler, "/idle") == (200, b"idle")
    assert answer(handler, "/stream") == (200, b"onetwo")
    assert busy() == (0, 0)


@pytest.mark.parametrize("project", [({}, {})], indirect=True)
def test_error_of_the_application_in_the_first_piece_is_left_to_the_server(handler, project):
    """It comes out where the server asks for the piece, as without the middleware."""
    for _ in range(2):
        with pytest.raises(KeyError, match="of the application"):
            answer(handler, "/failing")
        assert busy() == (0, 0)
    assert answer(handler, "/empty") == (200, b"")


@every
def test_each_alias_has_its_slot_in_its_own_guard(project):
    """Of those that the request uses."""
    assert project("/both") == [(1, 1)]


@pytest.mark.parametrize(
    "project", [({}, {"ATOMIC_REQUESTS": True}), (POOL, {"ATOMIC_REQUESTS": True})], indirect=True
)
def test_atomic_requests_hold_it_for_the_whole_view(project):
    """Django opens a connection before it calls the view."""
    assert project("/idle") == [(1, 0)]
    assert project("/query") == [(1, 0), (1, 0)]


@pytest.mark.parametrize("project", [({}, {"ATOMIC_REQUESTS": True, **KEPT})], indirect=True)
def test_atomic_requests_on_a_kept_connection_hold_it_from_the_first_query(project):
    """To begin a transaction says nothing to the server yet."""
    assert project("/query") == [(1, 0), (1, 0)]  # opens it
    assert project("/idle") == [(0, 0)]
    assert project("/query") == [(0, 0), (1, 0)]


@kept
def test_a_connection_that_was_lost_between_requests_costs_one_request(project, postgres):
    """As without a guard; its slot comes back with it."""
    project("/query")
    pid = connections["shop"].connection.info.backend_pid
    with psycopg.connect(postgres.url(""), autocommit=True) as aside:
        aside.execute("select pg_terminate_backend(%s)", (pid,))
        left = "select count(*) from pg_stat_activity where pid = %s"
        poll(lambda: aside.execute(left, (pid,)).fetchone()[0] == 0, "it is gone")
    with pytest.raises(AssertionError):
        project("/query")
    request_finished.send(sender=None)
    assert busy() == (0, 0)
    assert project("/query") == [(0, 0), (1, 0)]


def test_the_middleware_attaches_the_guards_of_all_databases(postgres):
    """Before the first request: a guarded view and its first query then need one slot, not two."""
    narrow = Guard("narrow", max_concurrent_calls=1, max_wait_duration=0)
    entry = django_lab.database(postgres, {"guard": narrow})
    with django_lab.known("narrow", entry):
        GuardrailsMiddleware(lambda request: request)
        with narrow.call():
            ask("narrow")
            assert narrow.snapshot().in_use == 1


@every
def test_a_celery_task_holds_it_to_its_end(project):
    """Celery's own support of Django looks after connections before and after each task."""
    django_fixup = pytest.importorskip("celery.fixups.django")
    celery = pytest.importorskip("celery")
    fixup = django_fixup.DjangoWorkerFixup(celery.Celery("shop", set_as_current=False))
    fixup._close_database()
    ask()
    assert busy() == (1, 0)
    fixup._close_database()
    assert busy() == (0, 0)
