"""The words of an answer, and the strings of clients that decide about them."""

from __future__ import annotations

import asyncio
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from guardrails import Guard
from guardrails._http.answers import DEADLINE_HEADERS, Problem, budget, prefers_html, retry_seconds
from guardrails._runtime.scope import current
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import ask, fine, http

WANTED = {name.encode(): reader for name, reader in DEADLINE_HEADERS.items()}

HOSTILE_NAMES = [
    "db\r\nset-cookie: a=b",
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"quoted\\"',
    "db\x00",
    "\ud800",
    "\u2028",
    "x" * 10_000,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
@pytest.mark.parametrize("accept", [b"", b"text/html"])
def test_hostile_guard_name_cannot_inject(name, accept):
    """A guard's name reaches no header and no markup; in JSON it is a string of bounded length."""
    answer = Problem("circuit_open", name, 3, name).answer(accept)
    for header in answer.headers:
        assert not set(b"".join(header)) & set(b"\r\n\0<>")
    assert b"<script" not in answer.body
    assert b"<img" not in answer.body
    assert len(answer.body) < 2000
    if not accept:
        body = json.loads(answer.body)
        assert body["guard"] == body["compartment"] == name[:100]
        assert not set(answer.body) & set(b"\r\n\0<")


@pytest.mark.parametrize(
    ("compartment", "is_shown"),
    [("GET /orders/{id}", True), ("POST /at/{time:int}", True), ("reports", True), (None, False)]
    + [(address, False) for address in ("10.0.0.7:6379", "cache-1.internal:7000", "[::1]:6379")],
)
def test_an_answer_names_the_guard_and_its_compartment(compartment, is_shown):
    """Except a server's compartment, which is named by its address."""
    body = json.loads(Problem("timeout", "db", None, compartment).answer().body)
    assert (body["guard"], body.get("compartment")) == ("db", compartment if is_shown else None)


def test_pages_of_other_sites_may_read_a_refusal():
    """With the framework's own CORS middleware outside: it answers preflights, and adds to our answers."""
    db = Guard("db", max_concurrent_calls=1)
    db.force_open()
    app = Starlette(
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["https://shop.example"], allow_methods=["PUT"]),
            Middleware(GuardrailsMiddleware, requires=[db]),
        ]
    )
    origin = ("origin", "https://shop.example")
    preflight = ask(app, http(method="OPTIONS", headers=[origin, ("access-control-request-method", "PUT")]))
    refused = ask(app, http(method="PUT", headers=[origin]))
    assert (preflight.status, refused.status) == (200, 503)
    for seen in (preflight, refused):
        assert seen.headers["access-control-allow-origin"] == "https://shop.example"


def test_a_preflight_without_one_is_a_request_like_any_other():
    """`OPTIONS` is refused where the path is, with a body."""
    db = Guard("db", max_concurrent_calls=1)
    db.force_open()
    refused = ask(GuardrailsMiddleware(fine, requires=[db]), http(method="OPTIONS"))
    assert (refused.status, refused.problem["code"]) == (503, "circuit_open")


@given(st.text(), st.sampled_from(["shed", "timeout"]), st.integers(1, 120) | st.none())
def test_every_answer_is_valid(name, code, wait):
    """JSON of ASCII, with a length that is right."""
    answer = Problem(code, name, wait).answer()
    assert json.loads(answer.body.decode("ascii"))["status"] == answer.status
    assert dict(answer.headers)[b"content-length"] == str(len(answer.body)).encode()


def test_headers_are_each_request_s_own():
    """Other middleware adds to the list of headers; the next answer must not have what it added."""
    problem = Problem("shed", "db", 1)
    problem.answer().headers.append((b"access-control-allow-origin", b"*"))
    assert len(problem.answer().headers) == 4


@pytest.mark.parametrize(
    ("reason", "wait", "low", "high"),
    [
        ("circuit_open", None, None, None),
        ("bulkhead_full", None, 1, 2),
        ("circuit_open", 0.0, 1, 2),
        ("circuit_open", 0.001, 1, 2),
        ("circuit_open", 1.0, 1, 2),
        ("circuit_open", 1.001, 2, 3),
        ("circuit_open", 59.2, 60, 90),
        ("circuit_open", 100.0, 100, 120),
        ("circuit_open", 1e9, 120, 120),
        ("circuit_open", math.inf, 120, 120),
        ("circuit_open", math.nan, 120, 120),
        ("circuit_open", -5.0, 1, 2),
    ],
)
def test_retry_after(reason, wait, low, high):
    """Whole seconds, never before the wait is over, spread over half as much again, two minutes at most."""
    assert retry_seconds(reason, wait, lambda: 0.0) == low
    assert retry_seconds(reason, wait, lambda: 1 - 2**-53) == high
    assert retry_seconds(reason, wait, random.random) in ([None] if low is None else range(low, high + 1))


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (b"", False),
        (b"*/*", False),
        (b"text/html", True),
        (b"TEXT/HTML", True),
        (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        (b"application/xhtml+xml", True),
        (b"application/json, text/html;q=0.5", False),
        (b"application/json;q=0.5, text/html;q=0.9", True),
        (b"application/problem+json, text/html", False),
        (b"application/*, text/html", False),
        (b"text/html;q=0", False),
        (b"text/html;q=nan", False),
        (b"text/html;q=1e400", False),
        (b"text/html;level=1;q=0.4", True),
        (b"text/html; q=0.4 ", True),
        ("text/html;q=\u0665".encode(), False),
        (b"\xff\xfe\x00text/html", False),
        (b"text/html" * 10_000, False),
        (b",;,;q=,text/html", True),
    ],
)
def test_accept(accept, html):
    """HTML for those who name it and like it better than JSON."""
    assert prefers_html(accept) is html


@given(st.binary(max_size=3000))
def test_accept_never_raises(accept):
    """Any bytes."""
    assert prefers_html(accept) in {True, False}
    assert prefers_html(b"text/html," + accept) in {True, False}


# --- deadline headers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("x-request-timeout-ms", b"1500", 1.5),
        ("x-request-timeout-ms", b"0001500", 1.5),
        ("x-envoy-expected-rq-timeout-ms", b"15000", 15.0),
        ("connect-timeout-ms", b"1", 0.001),
        ("connect-timeout-ms", b"86400000", 86400.0),
        ("grpc-timeout", b"2H", 7200.0),
        ("grpc-timeout", b"3M", 180.0),
        ("grpc-timeout", b"4S", 4.0),
        ("grpc-timeout", b"250m", 0.25),
        ("grpc-timeout", b"250u", 0.00025),
        ("grpc-timeout", b"99999999n", 0.099999999),
    ],
)
def test_deadline_header_is_read(name, value, seconds):
    """Milliseconds, or gRPC's number and unit."""
    assert budget([(name.encode(), value)], WANTED) == pytest.approx(seconds)


HOSTILE = [
    *(b"", b" ", b"0", b"000", b"-1", b"+5", b"5 ", b" 5", b"5\n", b"5.0", b"5,6", b"0x10", b"1_000", b"1e3"),
    *(
        b"1e400",
        b"nan",
        b"NaN",
        b"inf",
        b"-inf",
        b"Infinity",
        b"5\x00",
        b"\x00",
        b"5s",
        b"five",
        b"1" * 16_384,
    ),
    *(text.encode() for text in ("\u0665", "\uff15", "\u00b3", "\u0be7")),
    *(b"\xb2", b"\xff", b"10000000000", b"99999999999"),
    *(b"5h", b"5 S", b"S", b"123456789S", b"25H", b"99999999H", b"0S", b"5mm", b"1.5S", b"-5S", b"1_0S"),
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:16]))
@pytest.mark.parametrize("name", DEADLINE_HEADERS)
def test_hostile_deadline_header_says_nothing(name, value):
    """What the grammar does not allow is as if it were not there; it never raises."""
    assert budget([(name.encode(), value)], WANTED) is None


def test_header_that_is_there_twice_says_nothing():
    """Two values are an attempt at confusion; the other headers still count."""
    twice = [(b"grpc-timeout", b"1S"), (b"grpc-timeout", b"1S"), (b"x-request-timeout-ms", b"5000")]
    assert budget(twice, WANTED) == 5.0


def test_a_thousand_deadline_headers_cost_no_more_than_reading_them():
    """However often a header is there, each is looked at once."""
    reads = []
    wanted = {b"grpc-timeout": reads.append}
    assert budget([(b"grpc-timeout", b"1S")] * 5000, wanted) is None
    assert len(reads) == 1


def test_unwanted_header_says_nothing():
    """A header that was not asked for is a header like any other."""
    assert budget([(b"grpc-timeout", b"1S")], {}) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*WANTED, b"accept"]),
            st.binary(max_size=20) | st.from_regex(rb"\A[0-9]{1,11}[HMSmun]?\Z"),
        ),
        max_size=6,
    )
)
def test_no_headers_raise_or_give_nonsense(headers):
    """Whatever clients send: a positive number of seconds up to a day, or nothing."""
    seconds = budget(headers, WANTED)
    assert seconds is None or 0 < seconds <= 86_400


@pytest.mark.parametrize(
    ("timeout", "value", "left"),
    [(2.0, "1500", 1.5), (2.0, "9000", 2.0), (None, "1500", 1.5), (2.0, "nan", 2.0), (None, "nan", None)],
)
def test_client_can_only_lower(clock, timeout, value, left):
    """The server's own limit is the most; without one the client's is all there is."""
    seen = []

    async def app(_scope, _receive, send):
        seen.append(current().remaining())
        await fine(_scope, _receive, send)

    middleware = GuardrailsMiddleware(
        app, request_timeout=timeout, deadline_headers=["X-Request-Timeout-Ms"], clock=clock
    )
    ask(middleware, http(headers=[("x-request-timeout-ms", value), ("grpc-timeout", "1m")]))
    assert seen == [left]


def test_headers_are_off_by_default(clock):
    """No client has a say unless the settings give it one."""
    seen = []

    async def app(_scope, _receive, _send):
        seen.append(current().remaining())

    asyncio.run(
        GuardrailsMiddleware(app, request_timeout=2.0, clock=clock)(
            http(headers=[("x-request-timeout-ms", "1")]), None, None
        )
    )
    assert seen == [2.0]
