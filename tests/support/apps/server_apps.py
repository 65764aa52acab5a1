"""The applications that real servers serve in the matrix: one for ASGI, one for WSGI, with the same paths.

| path | |
|---|---|
| ``/policy`` | refused by the middleware, before the application |
| ``/inside`` | refused in the application, before it has read the body |
| ``/late`` | a guard's timeout, as 504 |
| ``/cut`` | a refusal behind half of the promised body |
| ``/stream`` | holds a slot and sends until the client is gone |
| ``/slow`` | takes one of five slots for three seconds (WSGI only) |
| ``/figures`` | what is inside now, and which paths the application has been asked for |
| ``/class`` | how much the request matters |
| any other | ``fine``; for a websocket, one word and the end |

The lifespan is the application's own, and ``/figures`` says how far it has come.
"""

from __future__ import annotations

import asyncio
import json
import time

from guardrails import CallTimeoutError, Guard
from guardrails._core.criticality import CLASSES
from guardrails._runtime.scope import current, rank_of
from guardrails.integrations.asgi import GuardrailsMiddleware as ASGIMiddleware
from guardrails.integrations.wsgi import GuardrailsMiddleware as WSGIMiddleware

closed = Guard("closed", max_concurrent_calls=5)
closed.force_open()
streams = Guard("streams", max_concurrent_calls=5, timeout=None)
slow = Guard("slow", max_concurrent_calls=5, max_wait_duration=0, breaker=None)
asked = []
lived = []

SETTINGS = {
    "requires": {"/edge": [closed]},
    "max_in_flight": 20,
    "exempt": ["/figures"],
    "criticality_header": "X-Criticality",
}
PIECE = b"x" * 1024


def last_guard_error(path):
    """Fails where the path says so."""
    if path == "/inside":
        closed.run(len, "x")
    if path == "/late":
        raise CallTimeoutError("streams", 0.5)


def figures(in_flight):
    """What the test wants to know."""
    slots = streams.snapshot()
    said = {
        "in_flight": in_flight,
        "in_use": slots.in_use,
        "failed": slots.failed,
        "slow": slow.snapshot().in_use,
        "asked": asked,
        "lived": lived,
    }
    return json.dumps(said).encode()


def body_of(path, middleware):
    """What a path answers."""
    if path == "/figures":
        return figures(middleware.in_flight)
    return CLASSES[rank_of(current())].encode() if path == "/class" else b"fine"


async def asgi_app(scope, receive, send):
    """Speaks ASGI without a framework."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    path = scope["path"]
    if path != "/figures":
        asked.append(path)
    last_guard_error(path)
    if scope["type"] == "websocket":
        await _talk(receive, send)
        return
    if path == "/stream":
        await _stream(receive, send)
        return
    body = body_of(path, asgi)
    length = 8 if path == "/cut" else len(body)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["method"] == "HEAD":
        body = b""
    await send({"type": "http.response.body", "body": body, "more_body": path == "/cut"})
    if path == "/cut":
        closed.run(len, "x")


async def _live(receive, send):
    while "shutdown" not in lived:
        phase = (await receive())["type"].removeprefix("lifespan.")
        lived.append(phase)
        await send({"type": f"lifespan.{phase}.complete"})


async def _talk(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": "fine"})
    await send({"type": "websocket.close"})


async def _stream(receive, send):
    await receive()
    async with streams.call():
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        try:
            while not gone.done():
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                await asyncio.sleep(0.01)
        finally:
            gone.cancel()


def wsgi_app(environ, start_response):
    """Speaks WSGI without a framework."""
    path = environ["PATH_INFO"]
    if path != "/figures":
        asked.append(path)
    last_guard_error(path)
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return _pieces()
    if path == "/slow":
        slow.run(time.sleep, 3.0)
    body = body_of(path, wsgi)
    length = 8 if path == "/cut" else len(body)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(length))])
    if environ["REQUEST_METHOD"] == "HEAD":
        body = b""
    return _cut(body) if path == "/cut" else [body]


def _pieces():
    with streams.call():
        while True:
            yield PIECE
            time.sleep(0.01)


def _cut(body):
    yield body
    closed.run(len, "x")


asgi = ASGIMiddleware(asgi_app, **SETTINGS)
wsgi = WSGIMiddleware(wsgi_app, **SETTINGS)
