"""Clients who are gone: the server's `receive` and `send` mean to the application what they always mean."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from guardrails import Guard
from guardrails._runtime.scope import current
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import CHUNK, END, START, ask, http, serve, websocket

GONE = {"type": "http.disconnect"}


@pytest.fixture
def db():
    """A guard whose slot is reserved for every request."""
    return Guard("db", max_concurrent_calls=1, max_wait_duration=0)


def in_front_of(app, db):
    """The middleware with a place and a slot for one request."""
    return GuardrailsMiddleware(app, requires=[db], max_in_flight=1)


def left_nothing(middleware, db):
    """Whether place and slot are back, and the guard has learnt nothing."""
    figures = db.snapshot()
    assert (middleware.in_flight, figures.in_use, current()) == (0, 0, None)
    assert (figures.failed, figures.succeeded) == (0, 0)


@pytest.mark.parametrize("scope", [http(), websocket()], ids=["http", "websocket"])
def test_the_application_gets_the_server_s_own_receive(scope, db):
    """The very object: there is nothing in between that could read a body or miss a disconnect."""
    got = []

    async def app(_scope, receive, _send):
        got.append(receive)

    async def receive():
        raise AssertionError("nobody asked")

    async def send(_message):
        raise AssertionError("nobody answered")

    asyncio.run(in_front_of(app, db)(scope, receive, send))
    assert got == [receive]


@pytest.mark.parametrize("times", [1, 2, 5])
def test_who_asks_after_the_disconnect_is_told_it_again(times, db):
    """As often as the server says it. An application that leaves then without an answer gets none of ours."""
    told = []

    async def app(_scope, receive, _send):
        while len(told) < times:
            told.append(await receive())

    middleware = in_front_of(app, db)
    seen = ask(middleware, incoming=[GONE] * times)
    assert (told, seen.sent, seen.raised) == ([GONE] * times, [], None)
    left_nothing(middleware, db)


def test_waiting_for_a_disconnect_holds_the_place_until_it_comes(db):
    """A long poll is a request like any other; its slot, which nothing used, goes back with it."""

    async def app(_scope, receive, _send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async def main():
        leave = asyncio.Event()
        middleware = in_front_of(app, db)

        async def receive():
            await leave.wait()
            return GONE

        async def send(_message):
            raise AssertionError("nobody is there")

        polling = asyncio.create_task(middleware(http(), receive, send))
        await asyncio.sleep(0)
        assert (await serve(middleware)).status == 503
        leave.set()
        await polling
        return middleware

    left_nothing(asyncio.run(main()), db)


@pytest.mark.parametrize("delivered", [0, 1, 2])
@pytest.mark.parametrize("handled", [False, True], ids=["unhandled", "handled"])
def test_a_send_that_fails_is_the_application_s_to_handle(delivered, handled, db):
    """`OSError` after a disconnect: the same object gets to the application, and unhandled to the server."""
    error, caught = OSError("the client is gone"), []

    async def app(_scope, _receive, send):
        with contextlib.suppress(OSError) if handled else contextlib.nullcontext():
            for message in (START, CHUNK, END):
                try:
                    await send(dict(message))
                except OSError as met:
                    caught.append(met)
                    raise

    sent = []

    async def breaks(message):
        sent.append(message)
        if len(sent) > delivered:
            raise error

    middleware = in_front_of(app, db)
    seen = ask(middleware, on_send=breaks)
    assert caught == [error]
    assert seen.raised is (None if handled else error)
    assert sent == [START, CHUNK, END][: delivered + 1], "nothing is sent to somebody who is gone"
    left_nothing(middleware, db)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "at the edge"])
@pytest.mark.parametrize("delivered", [0, 1])
def test_a_refusal_that_cannot_be_delivered_is_tried_once(inside, delivered, db):
    """The server hears of its own error, and is not asked to send a second answer."""
    db.force_open()
    error = OSError("the client is gone")

    async def app(_scope, _receive, _send):
        db.run(len, "x")

    sent = []

    async def breaks(message):
        sent.append(message)
        if len(sent) > delivered:
            raise error

    middleware = GuardrailsMiddleware(app, max_in_flight=1, **({} if inside else {"requires": [db]}))
    assert ask(middleware, on_send=breaks).raised is error
    kinds = ["http.response.start", "http.response.body"]
    assert [message["type"] for message in sent] == kinds[: delivered + 1]
    assert sent[0]["status"] == 503
    left_nothing(middleware, db)
