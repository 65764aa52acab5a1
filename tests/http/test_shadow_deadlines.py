"""``request_timeout`` of a middleware in shadow: nothing is stopped, and what would have been is counted.

It is counted where enforcing would have stopped it: by the guard whose call or statement was under way.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from guardrails import Guard, remaining
from guardrails._runtime.scope import current
from guardrails.integrations import asgi, wsgi
from support.asgi_client import ask, http
from support.wsgi_client import ask as ask_wsgi
from support.wsgi_client import environment

LIMIT = 0.05


def shadowed(mode="shadow", **options):
    return Guard("db", max_concurrent_calls=2, max_wait_duration=0, mode=mode, **{"timeout": 30, **options})


def serve(work, **settings):
    """The answer of an application whose one route runs ``work``."""

    async def order(_request):
        return PlainTextResponse(str(await work()))

    app = Starlette(routes=[Route("/orders/{id}", order)])
    app.add_middleware(asgi.GuardrailsMiddleware, **settings)
    seen = ask(app, http("/orders/1"))
    return seen.status, seen.body


@pytest.mark.parametrize(("mode", "stops"), [("shadow", 1), ("off", 0)])
def test_a_call_past_the_request_s_timeout_runs_on_and_is_counted_once(mode, stops):
    guard = shadowed(mode)

    async def work():
        left = remaining()
        await guard.run_async(asyncio.sleep, 3 * LIMIT)
        for _ in range(3):  # enforcing, the request would have ended
            await guard.run_async(asyncio.sleep, 0)
        return left

    assert serve(work, guards=[guard], request_timeout=LIMIT) == (200, b"None")
    seen = guard.snapshot()
    assert (seen.would_stop, seen.would_reject, seen.rejected, seen.failed) == (stops, {}, {}, 0)
    longest = guard._gate.report.sums.report()["longest"]
    assert [(each["route"], each["took"] > 2 * LIMIT) for each in longest] == [
        ("GET /orders/{id}", True)
    ] * stops


def test_a_client_s_smaller_deadline_counts_like_the_middleware_s():
    guard = shadowed()

    async def order(_request):
        await guard.run_async(asyncio.sleep, 3 * LIMIT)
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", order)])
    app.add_middleware(asgi.GuardrailsMiddleware, guards=[guard], deadline_headers=["X-Request-Timeout-Ms"])
    assert ask(app, http("/", headers=[("x-request-timeout-ms", "50")])).status == 200
    assert guard.snapshot().would_stop == 1


def test_a_call_that_begins_after_the_request_s_timeout_would_be_refused():
    guard = shadowed()

    async def work():
        await asyncio.sleep(2 * LIMIT)
        for _ in range(3):
            await guard.run_async(asyncio.sleep, 0)
        return "fine"

    assert serve(work, guards=[guard], request_timeout=LIMIT) == (200, b"fine")
    seen = guard.snapshot()
    assert (seen.would_stop, seen.would_reject, seen.rejected) == (0, {"deadline_spent": 1}, {})


def test_the_request_s_timeout_does_not_bound_a_guard_that_enforces():
    guard = shadowed()
    real = Guard("real", max_concurrent_calls=2, timeout=30)

    async def work():
        await real.run_async(asyncio.sleep, 2 * LIMIT)
        with real.call() as call:
            assert call.remaining() > 10
        await guard.run_async(real.run_async, asyncio.sleep, 2 * LIMIT)
        return "fine"

    assert serve(work, guards=[guard], request_timeout=LIMIT) == (200, b"fine")
    assert (real.snapshot().succeeded, real.snapshot().failed) == (3, 0)
    assert guard.snapshot().would_reject == {"deadline_spent": 1}


def test_a_middleware_with_a_guard_that_enforces_stops_its_calls_alone():
    guard = shadowed()
    real = Guard("real", max_concurrent_calls=2, timeout=30)

    async def work():
        await guard.run_async(asyncio.sleep, 3 * LIMIT)
        await real.run_async(asyncio.sleep, 0)

    assert serve(work, guards=[guard, real], request_timeout=LIMIT)[0] == 503
    assert guard.snapshot().would_stop == 1
    assert real.snapshot().rejected == {"deadline_spent": 1}


@pytest.mark.parametrize("outer", ["enforce", "shadow"])
def test_the_timeout_of_a_middleware_around_it_still_counts(outer):
    """The outer one enforces a minute; the inner one is in shadow with a tenth of a second."""
    around, guard = shadowed(outer), shadowed()
    left = []

    async def inner(scope, receive, send):
        left.append(remaining())
        await guard.run_async(asyncio.sleep, 3 * LIMIT)
        await around.run_async(asyncio.sleep, 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    app = asgi.GuardrailsMiddleware(inner, guards=[guard], request_timeout=LIMIT)
    app = asgi.GuardrailsMiddleware(app, guards=[around], request_timeout=60)
    assert ask(app, http("/")).status == 200
    assert guard.snapshot().would_stop == 1
    assert (left[0] is not None and 50 < left[0] <= 60) == (outer == "enforce")
    assert around.snapshot().would_reject == ({} if outer == "enforce" else {"deadline_spent": 1})


def test_a_request_over_wsgi_that_would_be_refused_asks_nothing_of_its_guards():
    """Neither for ``max_in_flight`` nor for the time: a call in it would not have been made."""
    guard = shadowed()
    answers = []

    def app(_environ, start_response):
        if not answers:
            answers.append(None)
            answers.append(ask_wsgi(wrapped, environment("/orders/2")))
        time.sleep(2 * LIMIT)
        for _ in range(2):
            guard.run(int)
        start_response("200 OK", [])
        return [b"fine"]

    wrapped = wsgi.GuardrailsMiddleware(app, guards=[guard], max_in_flight=1, request_timeout=LIMIT)
    answers.append(ask_wsgi(wrapped, environment("/orders/1")))
    assert [(each.status, each.body) for each in answers[1:]] == [(200, b"fine")] * 2
    seen = guard.snapshot()
    assert (wrapped.would_reject, seen.would_reject, seen.rejected) == (1, {"deadline_spent": 1}, {})
    assert current() is None
