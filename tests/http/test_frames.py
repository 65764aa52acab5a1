"""A refusal is the load that counts during an outage: how many Python frames of the package it takes."""

from __future__ import annotations

import asyncio
import sys

from guardrails import Guard
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.paths import PACKAGE


def test_a_request_refused_by_an_open_circuit_takes_at_most_twelve_frames():
    """From the middleware's call to the sent answer."""
    # The answer is rendered once for each number of seconds, so that number must not change here.
    db = Guard("db", max_concurrent_calls=2, clock=lambda: 1.0, random=lambda: 0.5)
    gate = db._gate
    gate.step(gate.core.set_state, "open")

    async def app(_scope, _receive, _send):
        raise AssertionError("the application was called")

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    sent = []

    async def send(message):
        sent.append(message)

    frames = []

    def note(frame, event, _arg):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            frames.append(frame.f_code.co_name)

    async def main():
        middleware = GuardrailsMiddleware(app, requires={"/": [db]}, random=lambda: 0.5)
        scope = {"type": "http", "method": "GET", "path": "/orders", "headers": [], "http_version": "1.1"}
        await middleware(dict(scope), receive, send)
        sent.clear()
        sys.setprofile(note)
        try:
            await middleware(dict(scope), receive, send)
        finally:
            sys.setprofile(None)

    asyncio.run(main())
    assert sent[0]["status"] == 503
    assert len(frames) <= 12, " ".join(frames)
