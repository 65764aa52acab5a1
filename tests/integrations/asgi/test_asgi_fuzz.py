"""A hundred thousand hostile requests: no crash, no injection, no double answer, nothing held afterwards.

One in eight is from a client that is gone: `receive` says so, and some `send` fails.
"""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest

from guardrails import CallTimeoutError, Guard
from guardrails._runtime.scope import current, remaining
from guardrails.errors import DeadlineSpentError, ShedError
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import CHUNK, END, START, http

REQUESTS = 100_000
CAP = 5.0
"""Seconds that the server gives each request; no client may get more."""

NAMES = [
    "db",
    "x\r\nset-cookie: evil=1",
    "<script>alert(1)</script>",
    '"}],"guard":"other',
    "\0\x1b[31m\u202e\ud83d\ude00",
    "n" * 200,
    "\ud800",  # half of a character
    "ключ",
]
NUMBERS = [
    *(b"NaN", b"nan", b"inf", b"-inf", b"Infinity", b"1e400", b"1e3", b"1_000", b"+5", b"-1", b"0", b"00"),
    *(
        b"0x10",
        b" 5",
        b"5 ",
        b"5\n",
        b"5\0",
        b"\0",
        b"",
        b"5,6",
        b"1.5",
        b"5s",
        b"9" * 16_384,
        b"99999999999",
    ),
    *("\u0665\u0666".encode(), "\uff15".encode(), b"\xff\xfe", b"\xb2", b"H", b"1H", b"1m", b"100u", b"1n"),
    *(b"123456789m", b"8M", b"86400001", b"86400000", b"250", b"1", b"2000"),
]
HEADERS = [b"x-request-timeout-ms", b"grpc-timeout", b"connect-timeout-ms", b"x-envoy-expected-rq-timeout-ms"]
ACCEPTS = [
    *(
        b"*/*",
        b"text/html",
        b"text/html;q=0.9, application/json",
        b"application/problem+json",
        b"",
        b",,,;;;q=",
    ),
    *(
        b"text/html;q=NaN",
        b"text/html;q=1e9",
        b"html" * 4_096,
        b"\xff\0html",
        b"text/html;" * 500,
        b"a/b;q=html",
    ),
]
PATHS = [
    "/",
    "",
    "//",
    "/orders",
    "/orders/",
    "/orders/\0",
    "/orders/\r\n",
    "/orders/7",
    "/o" * 8_000,
    "*",
    "/ö",
]


class Bug(Exception):
    """No business of the middleware's."""


class Hostile:
    """An application that raises in a phase of its own choice, and looks at the time it was given."""

    def __init__(self, dice, guard):
        self.guard = guard
        name = guard.name
        self.errors = [
            *(None, None, Bug(), OSError(), ShedError(name, "shed"), ShedError("other", "shed", -1.0)),
            *(CallTimeoutError(name, 1.0), DeadlineSpentError(name, "deadline_spent", float("nan"))),
            *(ShedError(name, "shed", float("inf")), ExceptionGroup("", [ShedError(name, "shed"), Bug()])),
            ExceptionGroup("", [CallTimeoutError(name, 1.0), ExceptionGroup("", [ShedError(name, "shed")])]),
        ]
        self.dice = dice

    async def __call__(self, _scope, receive, send):
        assert 0 <= remaining() <= CAP
        dice = self.dice
        for _ in range(dice.randrange(3)):
            await receive()
        phase, error = dice.randrange(6), dice.choice(self.errors)
        if phase >= 4 and error is not None:
            self._call_and_swallow()
        status = 500 if phase == 5 else 200
        for number, message in enumerate((START | {"status": status}, CHUNK, END)):
            if phase == number and error is not None:
                raise error
            if not (phase == 5 and message is CHUNK):
                await send(dict(message))
        if phase == 3 and error is not None:
            raise error

    def _call_and_swallow(self):
        try:
            self.guard.run(len, 5)  # a TypeError of the dependency's, or a refusal
        except Exception:
            return


def request(dice):
    """A request with something wrong in it, mostly."""
    headers = [(b"accept", value) for value in dice.choices(ACCEPTS, k=dice.randrange(3))]
    headers += [(dice.choice(HEADERS), dice.choice(NUMBERS)) for _ in range(dice.randrange(4))]
    if dice.random() < 0.2:
        headers.append((b"expect", b"100-continue"))
    scope = http(
        method=dice.choice(["GET", "HEAD", "POST", "BREW"]), http_version=dice.choice(["1.0", "1.1", "2"])
    )
    scope["path"] = dice.choice(PATHS)
    scope["root_path"] = dice.choice(["", "", "/orders", "/o", "ö"])
    scope["headers"] = headers
    return scope


class Client:
    """Who asked; one that is gone takes so many messages and no more."""

    def __init__(self, dice):
        self.sent = []
        self.error = OSError("the client is gone")
        self.patience = dice.randrange(4) if dice.random() < 0.125 else None

    async def receive(self):
        if self.patience is not None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message):
        if len(self.sent) == self.patience:
            raise self.error
        self.sent.append(message)


def check_answer(scope, client, raised):
    """What may be on the wire, whatever was asked and whatever the application did."""
    sent = client.sent
    types = [message["type"] for message in sent]
    assert types[:1] in ([], ["http.response.start"])
    assert types.count("http.response.start") <= 1
    headers = dict(sent[0]["headers"]) if sent else {}
    for header in headers.items():
        assert not set(b"".join(header)) & set(b"\r\n\0<>\"'")
    if b"cache-control" not in headers:  # the application's own answer, or its exception
        assert sent or raised is not None
        return
    if raised is client.error:  # our own answer, to a client who did not take all of it
        assert len(sent) == client.patience < 2
        return
    assert (len(sent), raised) == (2, None)
    assert sent[0]["status"] in {503, 504}
    assert 1 <= int(headers.get(b"retry-after", 1)) <= 120
    body = sent[1]["body"]
    if scope["method"] == "HEAD":
        assert body == b""
    elif headers[b"content-type"] == b"application/problem+json":
        assert len(json.loads(body).get("guard", "")) <= 100
        assert b"<" not in body
    else:
        assert b"<script" not in body


async def play(dice, name, times):
    """So many requests of one application, whose guard now and then refuses."""
    guard = Guard(name, max_concurrent_calls=2, max_wait_duration=0)
    clock = iter(range(10**9))
    middleware = GuardrailsMiddleware(
        Hostile(dice, guard),
        requires={"/orders/{id}": [guard], "/orders": [guard]},
        exempt=["/o"],
        max_in_flight=10,
        request_timeout=CAP,
        deadline_headers=[header.decode() for header in HEADERS],
        server_timing=dice.random() < 0.5,
        clock=lambda: next(clock) * 1e-6,
        random=dice.random,
    )
    for number in range(times):
        if number % 100 == 0:
            guard.reset()
        elif number % 100 == 90:
            guard.force_open()
        scope, client, raised = request(dice), Client(dice), None
        try:
            await middleware(scope, client.receive, client.send)
        except Exception as error:
            raised = error
        assert not isinstance(raised, AssertionError), raised
        check_answer(scope, client, raised)
        assert (middleware.in_flight, current(), guard.snapshot().in_use) == (0, None, 0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_hostile_requests(name):
    """Hostile headers, paths and names, and an application that raises in every phase."""
    seed = random.randrange(2**32)
    try:
        asyncio.run(play(random.Random(seed), name, REQUESTS // len(NAMES)))
    except BaseException as failure:
        failure.add_note(f"seed {seed}")
        raise


def test_no_header_or_path_takes_long():
    """What a client can make long takes time in proportion, so sixteen kilobytes are nothing."""
    guard = Guard("db", max_concurrent_calls=1)
    guard.force_open()

    async def never(_scope, _receive, _send):
        raise AssertionError("entered")

    app = GuardrailsMiddleware(
        never, requires={"/{a}/{b}/{c:path}": [guard], "/": [guard]}, exempt=["/x/{y}/z"]
    )
    scope = http(method="GET")
    scope["path"] = "/" + "a/" * 32_000
    scope["headers"] = [(b"accept", b"text/html;q=0." * 4_000), (b"accept", b"," * 16_000)] * 4

    async def send(_message):
        pass

    began = time.perf_counter()
    for _ in range(20):
        asyncio.run(app(scope, None, send))
    assert time.perf_counter() - began < 5
