"""`Server-Timing`: where a request's time went, for those who ask for it."""

from __future__ import annotations

import pytest

from guardrails import Guard
from guardrails.errors import ShedError
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import CHUNK, END, START, ask, fine, http, raising


def timing(app):
    return ask(app).headers.get("server-timing")


def test_it_is_off_unless_asked_for():
    """Nobody is told more than they need to know."""
    assert timing(GuardrailsMiddleware(fine)) is None


def test_it_tells_the_wait_from_the_work(clock):
    """The work counts until the first byte, and the application's own headers stay."""

    async def app(_scope, _receive, send):
        clock.advance(0.25)
        await send(START | {"headers": ((b"x-own", b"1"),)})
        clock.advance(5)
        await send(dict(CHUNK))
        await send(dict(END))

    seen = ask(GuardrailsMiddleware(app, server_timing=True, clock=clock))
    assert seen.headers == {"x-own": "1", "server-timing": "wait;dur=0.0, app;dur=250.0"}
    assert seen.sent[1:] == [CHUNK, END]


def test_a_response_without_headers_gets_its_one():
    """``headers`` may be left out."""

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 204})

    assert timing(GuardrailsMiddleware(app, server_timing=True)).startswith("wait;dur=")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_refusals_tell_it_too(method):
    """At the edge and from inside, once."""
    db = Guard("db", max_concurrent_calls=1)
    db.force_open()
    policy = GuardrailsMiddleware(fine, requires=[db], server_timing=True)
    inside = GuardrailsMiddleware(raising(ShedError("db", "shed")), server_timing=True)
    for app in (policy, inside):
        names = [name for name, _ in ask(app, http(method=method)).starts[0]["headers"]]
        assert names.count(b"server-timing") == 1


def test_a_long_queue_shows_as_wait():
    """Somebody who waited for a slot can see it."""
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=0.02)
    app = GuardrailsMiddleware(fine, requires=[db], server_timing=True)
    with db.call():
        waited = timing(app).partition("dur=")[2].partition(",")[0]
    assert float(waited) >= 10
