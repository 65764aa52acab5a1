"""What the ASGI middleware costs a request, side by side with the bare app. It prints; it asserts nothing.

Counted is the processor's time of the one thread, so that what else the machine does costs nothing but
cold caches; of several rounds, taken in turns, the best.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from guardrails import BreakerPolicy, Guard, guarded
from guardrails.integrations.asgi import GuardrailsMiddleware

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/orders/7",
    "raw_path": b"/orders/7",
    "root_path": "",
    "query_string": b"",
    "server": ("127.0.0.1", 80),
    "client": ("127.0.0.1", 50_000),
    "headers": [
        (b"host", b"127.0.0.1"),
        (b"user-agent", b"bench"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip"),
        (b"x-request-timeout-ms", b"1500"),
    ],
}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
BODY = {"type": "http.response.body", "body": b"ok"}


async def bare(_scope, _receive, send):
    """The smallest application there is."""
    await send(START)
    await send(BODY)


async def pass_through(app):
    """The wrapper everybody pays for: one more frame and nothing in it."""

    async def wrapped(scope, receive, send):
        await app(scope, receive, send)

    return wrapped


async def plain_dispatch(request, call_next):
    """What a user's BaseHTTPMiddleware does at least."""
    return await call_next(request)


async def receive():
    """An empty body, and afterwards nobody who leaves."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(_message):
    """A server that is ready at once."""


async def once(app, count):
    """Nanoseconds of the processor's time for each request."""
    gc.collect()
    gc.disable()
    try:
        began = time.thread_time_ns()
        for _ in range(count):
            await app(dict(SCOPE), receive, send)
        return (time.thread_time_ns() - began) / count
    finally:
        gc.enable()


def guarded_fastapi(guard):
    """An endpoint whose dependency refuses."""
    app = FastAPI()

    @guarded(guard)
    async def load():
        raise AssertionError("never called")

    @app.get("/orders/{number}")
    async def order(number: int):
        return await load()

    return app


def plain_starlette():
    """An endpoint that refuses by itself, without any of us."""

    async def order(_request):
        return PlainTextResponse("busy", 503)

    return Starlette(routes=[Route("/orders/{number}", order)])


async def measure(apps, *, count=200, rounds=400):
    """The best of several rounds for each app, taken in turns so that a noisy machine is fair."""
    best = dict.fromkeys(apps, float("inf"))
    for app in apps.values():
        await once(app, count)
    for _ in range(rounds):
        for name, app in apps.items():
            best[name] = min(best[name], await once(app, count))
    return best


async def passing():
    """Requests that are let through."""
    db = Guard("db", max_concurrent_calls=15)
    apps = {
        "bare app": bare,
        "one empty wrapper": await pass_through(bare),
        "GuardrailsMiddleware": GuardrailsMiddleware(bare, guards=[db]),
        "  request_timeout": GuardrailsMiddleware(bare, request_timeout=5.0),
        "  max_in_flight": GuardrailsMiddleware(bare, max_in_flight=100),
        "  requires": GuardrailsMiddleware(bare, requires={"/orders": [db]}),
        "  deadline_headers": GuardrailsMiddleware(bare, deadline_headers=["X-Request-Timeout-Ms"]),
        "  all of them": GuardrailsMiddleware(
            bare,
            guards=[db],
            requires={"/orders": [db]},
            exempt=["/health"],
            max_in_flight=100,
            request_timeout=5.0,
            deadline_headers=["X-Request-Timeout-Ms"],
        ),
    }
    quick = await measure(apps, count=200)
    slow = await measure(
        {"BaseHTTPMiddleware": BaseHTTPMiddleware(bare, plain_dispatch)}, count=20, rounds=100
    )
    table(quick | slow, base="bare app")


SHUT_FOR_AN_HOUR = BreakerPolicy(
    consecutive_failures=1, wait_duration_in_open_state=3600, max_wait_duration_in_open_state=3600
)


def fail():
    """Opens the circuit."""
    raise ConnectionError


async def refusing():
    """Requests that are refused: at the edge, and by the call inside an endpoint."""
    db = Guard("db", max_concurrent_calls=15, breaker=SHUT_FOR_AN_HOUR)
    with contextlib.suppress(ConnectionError):
        db.run(fail)
    assert db.snapshot().state == "open"
    inside = guarded_fastapi(db)
    inside.add_middleware(GuardrailsMiddleware, guards=[db], learn_routes=False)
    table(
        await measure(
            {
                "503 at the edge": GuardrailsMiddleware(guarded_fastapi(db), requires={"/orders": [db]}),
                "503 from a bare Starlette endpoint": plain_starlette(),
                "503 from a FastAPI endpoint": inside,
                "  wrapped around it": GuardrailsMiddleware(guarded_fastapi(db), learn_routes=False),
                "503 at the edge, learned": GuardrailsMiddleware(guarded_fastapi(db)),
            },
            count=200,
            rounds=40,
        ),
        base="503 at the edge",
    )


def table(figures, base):
    """Prints nanoseconds, what is added to the base, and how many times the base."""
    for name, each in figures.items():
        added, ratio = each - figures[base], each / figures[base]
        print(f"{name:<36} {each:>10.0f} ns {added:>+10.0f} ns {ratio:>8.2f} x")
    print()


def main():
    """Prints both tables."""
    logging.disable(logging.CRITICAL)
    asyncio.run(passing())
    asyncio.run(refusing())


if __name__ == "__main__":
    main()
