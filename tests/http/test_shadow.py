"""The middlewares, the status page and the control of guards in shadow: no request is answered by them."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from guardrails import BreakerPolicy, Guard
from guardrails.integrations import asgi, wsgi
from guardrails.integrations.starlette import status_app
from support.asgi_client import ask, fine, http
from support.wsgi_client import ask as ask_wsgi
from support.wsgi_client import environment

OPENS_AT_ONCE = BreakerPolicy(consecutive_failures=1, wait_duration_in_open_state=60)


def get(app, path):
    """The status and the body of an answer."""
    seen = ask(app, http(path))
    return seen.status, seen.body


def asked(app, path, method="GET"):
    """The status and the JSON of an answer."""
    seen = ask(app, http(path, method=method))
    return seen.status, json.loads(seen.body)


def broken(mode="shadow", **options):
    """A guard whose circuit is open."""
    guard = Guard("db", max_concurrent_calls=2, breaker=OPENS_AT_ONCE, mode=mode, **options)
    with pytest.raises(ZeroDivisionError):
        guard.run(lambda: 1 / 0)
    assert guard.state == "open"
    return guard


def shop(guard, **options):
    async def order(_request):
        for _ in range(3):
            await guard.run_async(asyncio.sleep, 0)
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/orders/{id}", order)])
    app.add_middleware(asgi.GuardrailsMiddleware, guards=[guard], **options)
    return app


@pytest.mark.parametrize("requires", [True, False])
def test_a_request_that_would_be_refused_is_served_and_counts_once_for_its_route(requires):
    guard = broken()
    app = shop(guard, **({"requires": [guard]} if requires else {}))
    for number in range(4):
        assert get(app, f"/orders/{number}") == (200, b"fine")
    assert (guard.snapshot().rejected, guard.snapshot().would_reject) == ({}, {"circuit_open": 4})
    sums = guard._gate.report.sums.report()
    assert sums["routes"] == {"GET /orders/{id}": {"circuit_open": 4}}
    assert guard.snapshot().in_use == 0


def test_off_serves_and_counts_nothing():
    guard = broken("shadow")
    guard.set_mode("off")
    app = shop(guard, requires=[guard], max_in_flight=1, request_timeout=0.001)
    assert get(app, "/orders/1") == (200, b"fine")
    assert guard.snapshot().would_reject == {}


def test_max_in_flight_and_request_timeout_refuse_and_stop_nothing():
    guard = Guard("db", max_concurrent_calls=2, max_wait_duration=0, mode="shadow")

    async def slow(_scope, _receive, send):
        await guard.run_async(asyncio.sleep, 0.05)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = asgi.GuardrailsMiddleware(slow, guards=[guard], max_in_flight=2, request_timeout=0.01)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    sent = []

    async def send(message):
        sent.append(message.get("status"))

    async def main():
        await asyncio.gather(*[app(scope, None, send) for _ in range(5)])

    asyncio.run(main())
    assert sent.count(200) == 5
    assert (app.would_reject, app.in_flight) == (3, 0)
    assert (guard.snapshot().would_reject, guard.snapshot().in_use) == ({}, 0)


def test_a_request_over_wsgi_is_served():
    guard = broken()

    def app(_environ, start_response):
        guard.run(int)
        start_response("200 OK", [])
        return [b"fine"]

    wrapped = wsgi.GuardrailsMiddleware(app, guards=[guard], requires=[guard], max_in_flight=1)
    answer = ask_wsgi(wrapped, environment("/orders/1"))
    assert (answer.status, answer.body) == (200, b"fine")
    assert guard.snapshot().would_reject == {"circuit_open": 1}


def test_a_guard_that_enforces_still_refuses_beside_one_in_shadow():
    shadow, real = broken(), broken("enforce")
    assert get(shop(real, requires=[real, shadow]), "/orders/1")[0] == 503


def test_a_bad_mode_in_the_environment_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_MODE", "on")
    with pytest.raises(ValueError, match="GUARDRAILS_MODE must be 'enforce' or 'shadow' or 'off', got 'on'"):
        asgi.GuardrailsMiddleware(fine)
    monkeypatch.setenv("GUARDRAILS_MODE", "off")
    app = asgi.GuardrailsMiddleware(fine, max_in_flight=1)
    assert app._policy.mode == "off"


def test_the_mode_is_set_over_http_and_shown_with_the_sums():
    guard = broken()
    guard.run(int)
    part = guard.compartment("part")
    app = status_app([guard], auth=lambda _: True)
    (page,) = asked(app, "/status.json")[1]["guards"]
    assert (page["mode"], page["would_stop"]) == ("shadow", 0)
    assert page["shadow"]["refused"] == sum(page["would_reject"].values()) == 1
    assert page["shadow"]["since"] > 0
    assert page["compartments"][0]["shadow"] is None
    for mode in ("enforce", "off", "shadow"):
        assert asked(app, f"/control/db/{mode}", "POST")[1]["mode"] == mode
        assert guard.mode == part.mode == mode
    status, refused = asked(app, "/control/part/off", "POST")
    assert status == 409
    assert "has the mode of its guard" in refused["error"]
    assert asked(app, "/control/db/on", "POST")[0] == 404


def test_a_full_guard_in_shadow_does_not_make_the_process_unready():
    now = [0.0]
    guard = Guard("db", max_concurrent_calls=1, mode="shadow")
    app = status_app([guard], stuck_after=1, clock=lambda: now[0])
    with guard.call():
        for _ in range(4):
            now[0] += 5
            assert asked(app, "/readyz")[0] == 200


def test_made_up_routes_are_bounded():
    guard = Guard("db", max_concurrent_calls=1, mode="shadow")
    sums = guard._gate.report.sums
    for number in range(1000):
        sums.refused("shed", f"GET /{number}")
    assert len(sums.report()["routes"]) == 101
    assert sum(sum(counts.values()) for counts in sums.report()["routes"].values()) == 1000
