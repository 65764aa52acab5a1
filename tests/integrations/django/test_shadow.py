"""Django and Flask with a guard in shadow or off: nothing is refused or stopped, and shadow counts."""

from __future__ import annotations

import contextlib

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.http import HttpResponse
from django.test import override_settings
from django.test.client import RequestFactory
from django.urls import path
from flask import Flask

from guardrails import Guard
from guardrails.integrations.flask import Guardrails
from support import django_lab

POOL = {"pool": {"min_size": 1, "max_size": 3}}


def ask(sql="select 42"):
    with connections["shop"].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def order(_request, number):
    return HttpResponse(str(ask()))


urlpatterns = [path("orders/<int:number>", order)]


def shadowed():
    return Guard("db", max_concurrent_calls=2, max_wait_duration=0, mode="shadow")


def open_circuit(guard, mode):
    """Opens the circuit of a guard by hand: an attached guard has no evidence but its statements."""
    guard.force_open()
    guard.set_mode(mode)


@contextlib.contextmanager
def shop(postgres, guard, pool):
    """Django behind the guard, with the middleware; gives what sends a request."""
    entry = django_lab.database(postgres, {"guard": guard, **(POOL if pool else {})})
    settings = {"guards": [guard], "requires": [guard], "max_in_flight": 1, "request_timeout": 0.001}
    middleware = ["guardrails.integrations.django.GuardrailsMiddleware"]
    with (
        override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware, GUARDRAILS=settings),
        django_lab.configured("shop", entry),
    ):
        handler = WSGIHandler()

        def send(where):
            response = handler(RequestFactory().get(where).environ, lambda *_: None)
            try:
                return response.status_code, b"".join(response)
            finally:
                response.close()

        yield send


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("mode", "counted"), [("shadow", {"circuit_open": 3}), ("off", {})])
def test_a_request_of_django_that_would_be_refused_is_served(postgres, pool, mode, counted):
    guard = shadowed()
    with shop(postgres, guard, pool) as send:
        open_circuit(guard, mode)
        for number in range(3):
            assert send(f"/orders/{number}") == (200, b"42")
    seen = guard.snapshot()
    assert (seen.rejected, seen.would_reject, seen.in_use) == ({}, counted, 0)
    routes = guard._gate.report.sums.report()["routes"]
    assert routes == ({"GET /orders/<int:number>": counted} if counted else {})


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("mode", "counted"), [("shadow", 1), ("off", 0)])
def test_a_statement_of_django_past_its_limit_runs_to_its_end(postgres, pool, mode, counted):
    guard = Guard("db", max_concurrent_calls=2, timeout=0.1, mode="off")
    entry = django_lab.database(postgres, {"guard": guard, **(POOL if pool else {})})
    with django_lab.configured("shop", entry):
        ask()
        django_lab.leave("shop")
        guard.set_mode(mode)
        assert ask("select 42 from pg_sleep(0.4)") == 42
        assert guard.snapshot().would_stop == counted
        django_lab.leave("shop")
    assert guard.snapshot().in_use == 0


@pytest.mark.parametrize(("mode", "counted"), [("shadow", {"circuit_open": 3}), ("off", {})])
def test_a_request_of_flask_that_would_be_refused_is_served(mode, counted):
    guard = shadowed()
    open_circuit(guard, mode)
    app = Flask(__name__)

    @app.get("/orders/<int:number>")
    def order(number):
        return str(guard.run(lambda: 42))

    Guardrails(app, guards=[guard], requires=[guard], max_in_flight=1, request_timeout=0.001)
    client = app.test_client()
    for number in range(3):
        answer = client.get(f"/orders/{number}")
        assert (answer.status_code, answer.data) == (200, b"42")
    seen = guard.snapshot()
    assert (seen.rejected, seen.would_reject, seen.in_use) == ({}, counted, 0)
    routes = guard._gate.report.sums.report()["routes"]
    assert routes == ({"GET /orders/<int:number>": counted} if counted else {})
