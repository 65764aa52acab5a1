"""Django and Flask with a guard in shadow or off: nothing is refused or stopped, and shadow counts."""

from __future__ import annotations

import contextlib
import time
from collections import Counter

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.http import HttpResponse
from django.test import override_settings
from django.test.client import RequestFactory
from django.urls import path
from flask import Flask

from guardrails import Guard
from guardrails.integrations.flask import Guardrails, requires
from support import asgi_client, django_lab

POOL = {"pool": {"min_size": 1, "max_size": 3}}


def ask(sql="select 42"):
    with connections["shop"].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def order(_request, number):
    return HttpResponse(str(ask()))


def slow(_request, number):
    return HttpResponse(f"{ask('select 42 from pg_sleep(0.6)')} {ask()}")


urlpatterns = [path("orders/<int:number>", order), path("slow/<int:number>", slow)]


def shadowed():
    return Guard("db", max_concurrent_calls=2, max_wait_duration=0, mode="shadow")


def open_circuit(guard, mode):
    """Opens the circuit of a guard by hand: an attached guard has no evidence but its statements."""
    guard.force_open()
    guard.set_mode(mode)


@contextlib.contextmanager
def shop(postgres, guard, pool, *, requires=True, server="wsgi", request_timeout=30):
    """Django behind the guard, with the middleware; gives what sends a request."""
    entry = django_lab.database(postgres, {"guard": guard, **(POOL if pool else {})})
    settings = {"guards": [guard], "max_in_flight": 1, "request_timeout": request_timeout}
    settings |= {"requires": [guard]} if requires else {}
    middleware = ["guardrails.integrations.django.GuardrailsMiddleware"]
    with (
        override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware, GUARDRAILS=settings),
        django_lab.configured("shop", entry),
    ):
        handler = WSGIHandler() if server == "wsgi" else ASGIHandler()

        def send(where):
            if server == "asgi":
                seen = asgi_client.ask(handler, asgi_client.http(where))
                return seen.status, seen.body
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
    assert routes == ({"GET /orders/{number:int}": counted} if counted else {})


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

    Guardrails(app, guards=[guard], requires=[guard], max_in_flight=1, request_timeout=30)
    client = app.test_client()
    for number in range(3):
        with client.get(f"/orders/{number}") as answer:
            assert (answer.status_code, answer.data) == (200, b"42")
    seen = guard.snapshot()
    assert (seen.rejected, seen.would_reject, seen.in_use) == ({}, counted, 0)
    routes = guard._gate.report.sums.report()["routes"]
    assert routes == ({"GET /orders/{number:int}": counted} if counted else {})


# --- a full guard ----------------------------------------------------------------------------------

ROUTE = "GET /orders/{number:int}"


@contextlib.contextmanager
def holding(guard, mode):
    """Every slot of the guard is held, for the block, and was held before the mode was set."""
    guard.set_mode("enforce")
    slots = [guard._gate.check_out(None) for _ in range(guard.snapshot().max_concurrent_calls)]
    guard.set_mode(mode)
    yield
    for slot in slots:
        guard._gate.check_in(slot)


def looks_served(guard, mode, requests):
    """Nobody waits; each request would have been refused once, by the guard or the route's compartment."""
    counted = Counter({"bulkhead_full": requests} if mode == "shadow" else {})
    seen = [each.snapshot() for each in (guard, *guard.compartments)]
    assert sum((Counter(each.would_reject) for each in seen), Counter()) == counted
    assert [(each.rejected, each.waiting) for each in seen] == [({}, 0)] * len(seen)
    routes = guard._gate.report.sums.report()["routes"]
    assert routes == ({ROUTE: counted} if counted else {})


@pytest.mark.parametrize("requires", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("mode", ["shadow", "off"])
@pytest.mark.parametrize("server", ["wsgi", "asgi"])
def test_a_request_of_django_at_a_full_guard_is_served_at_once(postgres, server, mode, pool, requires):
    """Enforcing, each would be refused; and a wait for a slot would be a minute long."""
    guard = Guard("db", max_concurrent_calls=2, max_wait_duration=60, max_waiting=0, mode=mode)
    with shop(postgres, guard, pool, requires=requires, server=server) as send, holding(guard, mode):
        for number in range(3):
            assert send(f"/orders/{number}") == (200, b"42")
        looks_served(guard, mode, 3)
    assert guard.snapshot().in_use == 0


@pytest.mark.parametrize("mode", ["shadow", "off"])
@pytest.mark.parametrize("server", ["wsgi", "asgi"])
def test_a_request_of_django_past_its_timeout_is_served(postgres, server, mode):
    """It would have been stopped in its first statement; of the others nothing is counted."""
    guard = Guard("db", max_concurrent_calls=2, timeout=60, mode=mode)
    with shop(postgres, guard, pool=False, server=server, request_timeout=0.2) as send:
        ask()
        django_lab.leave("shop")
        assert send("/slow/1") == (200, b"42 42")
    seen = guard.snapshot()
    assert (seen.would_stop, seen.would_reject, seen.rejected) == (int(mode == "shadow"), {}, {})
    assert seen.in_use == 0


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_request_of_flask_at_a_full_guard_is_served_at_once(mode):
    guard = Guard("db", max_concurrent_calls=2, max_wait_duration=60, max_waiting=0, mode=mode)
    app = Flask(__name__)

    @app.get("/orders/<int:number>")
    @requires(guard)
    def order(number):
        return str(guard.run(lambda: 42) + guard.run(int))

    Guardrails(app, guards=[guard])
    with holding(guard, mode):
        for number in range(3):
            with app.test_client().get(f"/orders/{number}") as answer:
                assert (answer.status_code, answer.data) == (200, b"42")
        looks_served(guard, mode, 3)
    assert guard.snapshot().in_use == 0


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_call_of_flask_after_the_request_s_timeout_is_made(mode):
    guard = Guard("db", max_concurrent_calls=2, mode=mode)
    app = Flask(__name__)

    @app.get("/orders/<int:number>")
    def order(number):
        time.sleep(0.1)
        return str(guard.run(lambda: 42) + guard.run(int))

    Guardrails(app, guards=[guard], request_timeout=0.05)
    with app.test_client().get("/orders/1") as answer:
        assert (answer.status_code, answer.data) == (200, b"42")
    counted = {"deadline_spent": 1} if mode == "shadow" else {}
    assert (guard.snapshot().would_reject, guard.snapshot().rejected) == (counted, {})
