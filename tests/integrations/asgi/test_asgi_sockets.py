"""The ASGI middleware behind real servers, byte by byte: what stays on the wire after an early answer."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import threading

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from guardrails import Guard
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.http_client import BODY_OF_10_MB, GET, HANDSHAKE, Client
from support.polling import wait_until


@pytest.fixture(params=["h11", "httptools"])
def serve(request):
    """Runs applications under uvicorn, with each of its HTTP parsers."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    running = []

    def run(app, **options):
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=request.param,
                lifespan="off",
                log_config=None,
                log_level="critical",
                **({"ws": "none"} | options),
            )
        )
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread, listening))
        wait_until(lambda: server.started)
        return listening.getsockname()

    yield run
    for server, thread, listening in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"
        listening.close()


def shop(*, install="wrapped", seen=None, **options):
    """An application with endpoints of every kind; ``/orders`` needs a guard that refuses."""
    db = Guard("db", max_concurrent_calls=3)
    db.force_open()

    async def ok(request):
        if seen is not None:
            seen.append(request.url.path)
        return PlainTextResponse("fine")

    async def orders(_request):
        db.run(len, "x")

    async def cut(_request):
        async def pieces():
            yield b"part"
            db.run(len, "x")

        return StreamingResponse(pieces(), headers={"content-length": "8"})

    app = Starlette(
        routes=[
            Route("/orders", orders, methods=["GET", "POST"]),
            Route("/cut", cut),
            Route("/{rest:path}", ok, methods=["GET", "POST"]),
        ]
    )
    if install == "wrapped":
        return GuardrailsMiddleware(app, **options)
    app.add_middleware(GuardrailsMiddleware, **options)
    return app


def policy(seen=None):
    """The shop, with orders refused before the application."""
    db = Guard("edge", max_concurrent_calls=3)
    db.force_open()
    return shop(seen=seen, requires={"/orders": [db]})


KINDS = {
    "at the edge": policy,
    "wrapped": lambda seen: shop(seen=seen),
    "added": lambda seen: shop(install="added", seen=seen),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def app_and_paths(request):
    """The shop with each way to refuse, and the list of the other paths it was asked for."""
    seen = []
    return request.param(seen), seen


def test_kept_connection_goes_on(serve, app_and_paths):
    """After a refusal the same connection serves the next request."""
    with Client(serve(app_and_paths[0])) as client:
        for _ in range(3):
            client.send(GET % b"/orders")
            status, headers, body = client.response()
            assert (status, headers["content-type"]) == (503, "application/problem+json")
            assert json.loads(body)["status"] == 503
            client.send(GET % b"/ok")
            assert client.response()[::2] == (200, b"fine")


def test_pipelined_requests_are_answered_in_turn(serve, app_and_paths):
    """Requests sent in one go get their own answers, in order."""
    with Client(serve(app_and_paths[0])) as client:
        client.send((GET % b"/orders" + GET % b"/ok") * 5)
        assert [client.response()[0] for _ in range(10)] == [503, 200] * 5


def test_unread_body_is_never_a_request(serve, app_and_paths):
    """10 MB that nobody read are skipped, not parsed; then comes the next request."""
    app, seen = app_and_paths
    head = b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(BODY_OF_10_MB)
    with Client(serve(app)) as client:
        sender = threading.Thread(target=client.send, args=[head + BODY_OF_10_MB + GET % b"/ok"])
        sender.start()
        assert client.response()[0] == 503
        assert client.response()[::2] == (200, b"fine")
        sender.join()
    assert seen == ["/ok"]


def test_unread_chunks_are_never_a_request(serve, app_and_paths):
    """A chunked body with a request inside, and the next request in the same packet."""
    app, seen = app_and_paths
    inner = GET % b"/evil"
    with Client(serve(app)) as client:
        client.send(
            b"POST /orders HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"%x\r\n%b\r\n" % (len(inner), inner) * 3
            + b"0\r\n\r\n"
            + GET % b"/ok"
        )
        assert [client.response()[0] for _ in range(2)] == [503, 200]
    assert seen == ["/ok"]


def test_body_that_comes_late_is_never_a_request(serve, app_and_paths):
    """The answer goes out before the body is there; the body is skipped when it comes."""
    app, seen = app_and_paths
    inner = GET % b"/evil"
    with Client(serve(app)) as client:
        client.send(b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(inner))
        assert client.response()[0] == 503
        client.send(inner + GET % b"/ok")
        assert client.response()[::2] == (200, b"fine")
    assert seen == ["/ok"]


def test_body_that_waits_for_leave_is_not_sent_for(serve, app_and_paths):
    """Expect: 100-continue gets the refusal instead of the 100, and the connection ends."""
    app, seen = app_and_paths
    with Client(serve(app)) as client:
        client.send(b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\nexpect: 100-continue\r\n\r\n")
        status, headers, _ = client.response()
        assert (status, headers["connection"]) == (503, "close")
        assert client.ended()
    assert seen == []


def test_body_sent_without_leave_is_never_a_request(serve, app_and_paths):
    """A client that did not wait for the 100 either: what follows is not parsed."""
    app, seen = app_and_paths
    with Client(serve(app)) as client:
        client.send(
            b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\nexpect: 100-continue\r\n\r\n"
            + GET % b"/evil"
        )
        assert client.response()[0] == 503
        assert client.ended()
    assert seen == []


def test_head_is_followed_by_the_next_answer(serve, app_and_paths):
    """HEAD has a length and no body, so the next bytes are the next answer."""
    with Client(serve(app_and_paths[0])) as client:
        client.send(b"HEAD /orders HTTP/1.1\r\nhost: a\r\n\r\n" + GET % b"/ok")
        status, headers, _ = client.response(head=True)
        assert (status, int(headers["content-length"]) > 100) == (503, True)
        assert client.response()[::2] == (200, b"fine")


def test_http_1_0_is_answered_and_closed(serve, app_and_paths):
    """A client of the last century gets its answer whole."""
    with Client(serve(app_and_paths[0])) as client:
        client.send(b"GET /orders HTTP/1.0\r\n\r\n")
        status, _, body = client.response()
        assert (status, json.loads(body)["status"]) == (503, 503)
        assert client.ended()


@pytest.mark.parametrize("app_and_paths", [KINDS["at the edge"]], indirect=True, ids=["at the edge"])
def test_two_lengths_are_the_server_s_business(serve, app_and_paths):
    """A request that can be read in two ways is read in the same way whether it is refused or served."""
    app, seen = app_and_paths
    address = serve(app)
    followed = []
    for path in (b"/orders", b"/ok"):
        del seen[:]
        with Client(address) as client:
            client.send(
                b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n"
                b"connection: close\r\n\r\n0\r\n\r\n" % path + GET % b"/evil"
            )
            client.reader.read()
        followed.append("/evil" in seen)
    assert followed[0] == followed[1]


def test_cut_stream_is_cut(serve, app_and_paths):
    """A refusal in mid-stream ends the connection: no second answer, no clean end."""
    with Client(serve(app_and_paths[0])) as client:
        client.send(GET % b"/cut")
        assert client.reader.readline() == b"HTTP/1.1 200 OK\r\n"
        rest = client.reader.read()
    assert rest.endswith(b"\r\n\r\npart")
    assert b"HTTP/1" not in rest


class Meeting:
    """Endpoints that hold a guard's slot until their client is gone, or until the test is over."""

    def __init__(self):
        self.db = Guard("db", max_concurrent_calls=50, timeout=30)
        self.app = FastAPI()
        self.app.get("/stream")(self.stream)
        self.app.post("/body")(self.body)
        self.middleware = GuardrailsMiddleware(self.app, guards=[self.db], max_in_flight=40)

    async def stream(self):
        async def pieces():
            async with self.db.call():
                while True:
                    yield b"x" * 1024
                    await asyncio.sleep(0.002)  # a stream that never waits would starve the server

        return StreamingResponse(held_open(pieces()))

    async def body(self, request: dict):
        raise AssertionError("the body never came")


async def held_open(pieces):
    """Closes a generator as soon as its reader is gone, rather than when it is collected."""
    try:
        async for piece in pieces:
            yield piece
    finally:
        await pieces.aclose()


def test_vanishing_clients_leave_nothing(serve):
    """Clients that leave in mid-stream and in mid-body give back place and slot, and are no evidence."""
    meeting = Meeting()
    address = serve(meeting.middleware)
    clients = [Client(address) for _ in range(20)]
    for index, client in enumerate(clients):
        if index % 2:
            client.send(GET % b"/stream")
        else:
            client.send(b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{")
    wait_until(lambda: meeting.middleware.in_flight == 20 and meeting.db.snapshot().in_use == 10)
    for client in clients:
        client.__exit__()
    wait_until(lambda: meeting.middleware.in_flight == 0 and meeting.db.snapshot().in_use == 0)
    figures = meeting.db.snapshot()
    assert (figures.state, figures.failed) == ("closed", 0)


def test_background_work_outlives_its_client(serve):
    """Who leaves with the answer in hand does not take along what was to be done after it."""
    db, leave, done = Guard("db", max_concurrent_calls=1), threading.Event(), threading.Event()

    def send_mail():
        leave.wait(10)
        db.run(done.set)

    async def orders(_request):
        return PlainTextResponse("fine", background=BackgroundTask(send_mail))

    app = GuardrailsMiddleware(Starlette(routes=[Route("/orders", orders)]), requires=[db], max_in_flight=5)
    with Client(serve(app)) as client:
        client.send(GET % b"/orders")
        assert client.response()[::2] == (200, b"fine")
    leave.set()
    wait_until(done.is_set)
    wait_until(lambda: app.in_flight == 0)


def test_websocket_handshake_is_refused(serve):
    """A websocket to what is refused gets a real 503 instead of an upgrade."""
    pytest.importorskip("websockets", reason="uvicorn needs websockets to speak it")
    with Client(serve(policy(), ws="websockets-sansio")) as client:
        client.send(HANDSHAKE % b"/orders")
        status, headers, body = client.response()
    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert json.loads(body)["code"] == "circuit_open"
