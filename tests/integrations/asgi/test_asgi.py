"""What the ASGI middleware answers, and all that it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
import unittest.mock

import pytest
from fastapi import FastAPI
from flask import Flask, got_request_exception
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from guardrails import CallTimeoutError, CommitUnknownError, ConfigurationError, Guard, deadline, guarded
from guardrails._runtime.scope import current
from guardrails.errors import BulkheadFullError, CircuitOpenError, DeadlineSpentError, ShedError
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import CHUNK, END, START, ask, fine, http, raising, websocket

ABOVE = {"random": lambda: 0.0}


class Bug(Exception):
    """No business of the middleware's."""


def refusing(name="db", **options):
    """A guard that is held open by hand."""
    guard = Guard(name, max_concurrent_calls=3, **options)
    guard.force_open()
    return guard


def starlette(endpoint, **options):
    """A Starlette application with one endpoint at every path."""
    return Starlette(routes=[Route("/{rest:path}", endpoint)], **options)


def fastapi(endpoint, **options):
    """A FastAPI application with one endpoint at every path."""
    app = FastAPI(**options)
    if inspect.iscoroutinefunction(endpoint):

        @app.get("/{rest:path}")
        async def handle(rest: str):
            return await endpoint(rest)

    else:

        @app.get("/{rest:path}")
        def handle(rest: str):
            return endpoint(rest)

    return app


@pytest.fixture(params=[starlette, fastapi])
def build(request):
    """Builds an application of either framework."""
    return request.param


@pytest.fixture(params=["added", "wrapped"])
def install(request):
    """Puts the middleware into an application, or around it."""

    def added(app, **options):
        app.add_middleware(GuardrailsMiddleware, **(ABOVE | options))
        return app

    def wrapped(app, **options):
        return GuardrailsMiddleware(app, **(ABOVE | options))

    return added if request.param == "added" else wrapped


@pytest.fixture(params=["sync", "async"])
def make_endpoint(request):
    """Makes an endpoint out of a function: one for the thread pool, or one for the loop."""

    def make(work):
        if request.param == "sync":
            return lambda _request: work()

        async def endpoint(_request):
            return work()

        return endpoint

    return make


# --- what is answered ------------------------------------------------------------------------------


def test_refusal_is_503(build, install, make_endpoint):
    """A guard that refuses is a 503, wherever the endpoint runs and wherever the middleware stands."""
    db = refusing()
    seen = ask(install(build(make_endpoint(lambda: db.run(len, "x"))), guards=[db]))
    assert (seen.status, seen.raised) == (503, None)
    assert seen.headers["cache-control"] == "no-store"
    assert "retry-after" not in seen.headers
    assert seen.problem == {
        "type": "urn:problem-type:guardrails:circuit_open",
        "title": "Temporarily unavailable",
        "status": 503,
        "detail": "A part of this service is failing and is not called until it has recovered.",
        "code": "circuit_open",
        "guard": "db",
    }


def test_full_bulkhead_is_503_with_retry_after(build, install, make_endpoint):
    """Where nobody can tell when a slot comes free, the client is told a second."""
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=0)
    app = install(build(make_endpoint(lambda: db.run(len, "x"))))
    with db.call():
        seen = ask(app)
    assert (seen.status, seen.headers["retry-after"]) == (503, "1")
    assert (seen.problem["code"], seen.problem["retry_after"]) == ("bulkhead_full", 1)


def test_open_circuit_tells_its_wait(build, install, make_endpoint, make_guard, clock):
    """Retry-After is what remains of the open period, in whole seconds from above."""
    db = make_guard()
    db._gate.step(db._gate.core.set_state, "open")
    clock.advance(0.5)
    seen = ask(install(build(make_endpoint(lambda: db.run(len, "x")))))
    assert (seen.status, seen.headers["retry-after"], seen.problem["retry_after"]) == (503, "2", 2)


def test_timeout_is_504(build, install):
    """What a guard stopped is a 504 that no client is invited to repeat."""
    db = Guard("db", max_concurrent_calls=1, timeout=0.01)

    @guarded(db)
    async def endpoint(_request):
        await asyncio.sleep(30)

    seen = ask(install(build(endpoint)))
    assert (seen.status, seen.raised) == (504, None)
    assert "retry-after" not in seen.headers
    assert (seen.headers["cache-control"], seen.problem["code"]) == ("no-store", "timeout")


@pytest.mark.parametrize(
    ("error", "status", "code", "wait"),
    [
        (BulkheadFullError("db", "bulkhead_full"), 503, "bulkhead_full", "1"),
        (BulkheadFullError("db", "queue_timeout", 7.2), 503, "queue_timeout", "8"),
        (DeadlineSpentError("db", "deadline_spent"), 503, "deadline_spent", "1"),
        (ShedError("db", "shed", 0.0), 503, "shed", "1"),
        (CallTimeoutError("db", 1.0), 504, "timeout", None),
        (CommitUnknownError("db", 1.0), 504, "commit_unknown", None),
    ],
    ids=lambda value: getattr(value, "reason", None) or str(value),
)
def test_every_error_has_its_answer(error, status, code, wait):
    """Status, code and Retry-After of each kind of error."""
    seen = ask(GuardrailsMiddleware(raising(error), **ABOVE))
    assert (seen.status, seen.problem["code"], seen.headers.get("retry-after")) == (status, code, wait)


def test_head_has_the_length_and_no_body():
    """HEAD is answered as GET would be, without its body."""
    app = GuardrailsMiddleware(raising(ShedError("db", "shed")), **ABOVE)
    got, head = ask(app, http()), ask(app, http(method="HEAD"))
    assert (head.status, head.headers, head.body) == (503, got.headers, b"")


def test_browser_reads_a_page():
    """A client that prefers HTML gets HTML, with nothing in it but fixed text and a number."""
    app = GuardrailsMiddleware(raising(ShedError("<script>db", "shed")), **ABOVE)
    seen = ask(app, http(headers=[("accept", "text/html,*/*;q=0.8")]))
    assert seen.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<script>" not in seen.body
    assert b"in 1 second." in seen.body


def test_several_accept_headers_are_one():
    """A header that is there twice means both."""
    app = GuardrailsMiddleware(raising(ShedError("db", "shed")))
    seen = ask(app, http(headers=[("accept", "application/json;q=0.1"), ("accept", "text/html")]))
    assert seen.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("version", "expect", "closes"),
    [("1.1", True, True), ("1.1", False, False), ("2", True, False)],
)
def test_waiting_body_closes_the_connection(version, expect, closes):
    """A client that asked before sending its body may leave it out now: HTTP/1 can only close."""
    headers = [("expect", "100-continue")] if expect else []
    app = GuardrailsMiddleware(raising(ShedError("db", "shed")))
    seen = ask(app, http(http_version=version, headers=headers))
    assert ("connection" in seen.headers) is closes


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("refused", [False, True])
def test_a_scope_without_version_and_headers_is_served_as_any_other(kind, refused):
    """Applications are called with such scopes in tests, where a server would always say both."""
    db = Guard("db", max_concurrent_calls=1)
    if refused:
        db.force_open()
    settings = {"requires": [db], "deadline_headers": ["X-Request-Timeout-Ms"], "request_timeout": 9.0}
    app = GuardrailsMiddleware(fine, criticality_header="x-matters", **settings)
    whole = websocket() if kind == "websocket" else http(method="POST")
    bare = {key: value for key, value in whole.items() if key not in {"http_version", "headers"}}
    assert ask(app, bare).sent == ask(app, whole).sent


# --- what is left alone ----------------------------------------------------------------------------


def test_bug_stays_a_bug(build, install, make_endpoint):
    """An exception of the application's own is a 500, and the same object goes on to the server."""
    bug = Bug()

    def work():
        raise bug

    seen = ask(install(build(make_endpoint(work))))
    assert (seen.status, seen.body, seen.raised) == (500, b"Internal Server Error", bug)


def test_bug_after_a_handled_refusal_stays_a_bug(build, install, make_endpoint):
    """A refusal the application coped with does not turn a later bug into a 503."""
    db, bug = refusing(), Bug()

    def work():
        with contextlib.suppress(Exception):
            db.run(len, "x")
        raise bug

    seen = ask(install(build(make_endpoint(work))))
    assert (seen.status, seen.body, seen.raised) == (500, b"Internal Server Error", bug)


@pytest.mark.parametrize("status", [200, 418, 501, 503])
def test_own_answer_to_a_refusal_stands(build, install, make_endpoint, status):
    """An application that handles a refusal with a status of its own has answered."""
    db = refusing()

    def work():
        with contextlib.suppress(Exception):
            db.run(len, "x")
        return PlainTextResponse("mine", status)

    seen = ask(install(build(make_endpoint(work))))
    assert (seen.status, seen.body, seen.raised) == (status, b"mine", None)


def test_translated_refusal_stands(build, install, make_endpoint):
    """HTTPException from a refusal is the application's answer."""
    db = refusing()

    def work():
        try:
            db.run(len, "x")
        except Exception as refusal:
            raise HTTPException(502, "mine") from refusal

    seen = ask(install(build(make_endpoint(work))))
    assert (seen.status, seen.raised) == (502, None)


@pytest.mark.parametrize("inside", [True, False], ids=["in the except block", "after it"])
def test_own_500_after_a_swallowed_refusal_stands(inside):
    """The application has handled the refusal, and says 500 by itself."""
    db = refusing()

    async def swallowing(_scope, _receive, send):
        try:
            db.run(len, "x")
        except CircuitOpenError:
            if inside:
                await send(START | {"status": 500})
        if not inside:
            await send(START | {"status": 500})
        await send(END)

    seen = ask(GuardrailsMiddleware(swallowing))
    assert seen.sent == [START | {"status": 500}, END]


@pytest.mark.parametrize("pieces", [[END], [CHUNK, END], [CHUNK, CHUNK, END]], ids=len)
@pytest.mark.parametrize("mine", [True, False])
def test_500_that_a_framework_reports_is_503(pieces, mine):
    """As Quart does: by a signal, and then with its page in several pieces. Another guard's stays a 500."""
    db = refusing()

    async def reporting(_scope, _receive, send):
        try:
            db.run(len, "x")
        except CircuitOpenError as error:
            got_request_exception.send(None, exception=error)
        for message in (START | {"status": 500}, *pieces):
            await send(message)

    seen = ask(GuardrailsMiddleware(reporting, guards=[db if mine else refusing("other")]))
    if mine:
        assert (seen.status, seen.problem["guard"]) == (503, "db")
    else:
        assert seen.sent == [START | {"status": 500}, *pieces]


def test_streamed_500_is_let_go():
    """A 500 of more than one piece is no error handler's; it is neither held back nor lost."""
    db = refusing()

    async def streaming(_scope, _receive, send):
        with contextlib.suppress(Exception):
            db.run(len, "x")
        for message in (START | {"status": 500}, CHUNK, CHUNK, END):
            await send(message)

    seen = ask(GuardrailsMiddleware(streaming))
    assert seen.sent == [START | {"status": 500}, CHUNK, CHUNK, END]


def test_server_that_fails_under_a_held_answer_gets_it_once():
    """An error while a held-back 500 is sent does not send it again."""
    db = refusing()

    async def swallowing(_scope, _receive, send):
        with contextlib.suppress(Exception):
            db.run(len, "x")
        await send(START | {"status": 500})
        await send(END)
        raise Bug

    async def gone(_message):
        raise OSError("client is gone")

    seen = ask(GuardrailsMiddleware(swallowing), on_send=gone)
    assert [message["type"] for message in seen.sent] == ["http.response.start"]
    assert isinstance(seen.raised, OSError)


def test_started_response_is_never_answered_again(build, install):
    """A refusal in mid-stream is raised to the server, which cuts the connection."""
    db = refusing()

    async def pieces():
        yield b"part"
        db.run(len, "x")

    async def endpoint(_request):
        return StreamingResponse(pieces())

    seen = ask(install(build(endpoint)))
    assert (seen.status, seen.body) == (200, b"part")
    assert seen.raised is not None


@pytest.mark.parametrize("before", [[START], [START, CHUNK], [START, END]], ids=len)
def test_same_exception_after_each_phase(before):
    """After the start, after a piece and after the last piece: re-raised as it is, nothing sent."""
    refusal = ShedError("db", "shed")
    seen = ask(GuardrailsMiddleware(raising(refusal, *before)))
    assert (seen.sent, seen.raised) == (before, refusal)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=repr)
def test_control_flow_passes(error):
    """What is no Exception is nobody's to answer."""
    middleware = GuardrailsMiddleware(raising(error), max_in_flight=1)

    async def main():
        try:
            await middleware(http(), None, None)
        except BaseException as raised:
            return raised

    assert asyncio.run(main()) is error
    assert middleware.in_flight == 0


@pytest.mark.parametrize("kind", ["lifespan", "brand.new"])
def test_other_scopes_pass_untouched(kind):
    """Lifespan and what is not invented yet see the very objects the server gave."""
    given = []

    async def app(*arguments):
        given.extend(arguments)
        raise ShedError("db", "shed")

    scope, receive, send = {"type": kind}, object(), object()
    middleware = GuardrailsMiddleware(app, max_in_flight=1, requires={"/": [refusing()]})
    with pytest.raises(ShedError):
        asyncio.run(middleware(scope, receive, send))
    assert [id(one) for one in given] == [id(scope), id(receive), id(send)]


def test_lifespan_runs_to_its_end():
    """What an application returns for is returned for."""
    sent = {"type": "lifespan.startup.complete"}

    async def app(_scope, _receive, send):
        await send(sent)

    assert ask(GuardrailsMiddleware(app), {"type": "lifespan"}).sent == [sent]


def test_message_before_the_start_is_no_start():
    """A server push goes out at once and takes nothing from the answer that follows."""
    push = {"type": "http.response.push", "path": "/style.css", "headers": []}
    seen = ask(GuardrailsMiddleware(raising(ShedError("db", "shed"), push)))
    assert (seen.sent[0], seen.status) == (push, 503)


# --- for whom --------------------------------------------------------------------------------------


def test_other_guards_are_not_answered_for(build, install, make_endpoint):
    """With guards given, the refusal of another one is left to the application."""
    db, cache = refusing("db"), refusing("cache")
    seen = ask(install(build(make_endpoint(lambda: cache.run(len, "x"))), guards=[db]))
    assert (seen.status, seen.raised.guard) == (500, "cache")


def test_compartments_are_answered_for(build, install, make_endpoint):
    """A guard stands for its compartments, also those made later and those inside others."""
    db = Guard("db", max_concurrent_calls=10)
    app = install(build(make_endpoint(lambda: part.run(len, "x"))), guards=[db])
    part = db.compartment("reports").compartment("yearly")
    part.force_open()
    problem = ask(app).problem
    assert (problem["guard"], problem["compartment"]) == ("db", "yearly")


def test_each_middleware_answers_for_its_own():
    """An outer middleware learns of the trouble that an inner one was not asked to answer for."""
    db, cache = refusing("db"), refusing("cache")

    async def endpoint(_request):
        db.run(len, "x")

    app = starlette(endpoint)
    app.add_middleware(GuardrailsMiddleware, guards=[cache])
    seen = ask(GuardrailsMiddleware(app, guards=[db]))
    assert (seen.problem["guard"], seen.raised) == ("db", None)


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([ShedError("db", "shed")], "shed"),
        ([ExceptionGroup("", [ShedError("db", "shed")])], "shed"),
        ([ShedError("db", "shed"), BulkheadFullError("db", "bulkhead_full")], "shed"),
        ([ShedError("db", "shed"), CallTimeoutError("db", 1.0)], "timeout"),
        ([ShedError("db", "shed"), Bug()], None),
        ([ShedError("db", "shed"), ShedError("cache", "shed")], None),
    ],
    ids=["one", "nested", "two", "timeout first", "a bug among them", "another guard's among them"],
)
def test_group_is_answered_when_all_of_it_is(errors, code):
    """A task group's errors are answered only when each leaf is; a timeout outranks refusals."""
    group = ExceptionGroup("tasks", errors)
    seen = ask(GuardrailsMiddleware(raising(group), guards=[Guard("db", max_concurrent_calls=1)]))
    assert (seen.raised is group) is (code is None)
    assert code is None or seen.problem["code"] == code


def test_base_http_middleware_in_between(build, install, make_endpoint):
    """Other people's middleware, in a task of its own, does not hide a refusal."""
    db = refusing()

    async def dispatch(request, call_next):
        return await call_next(request)

    app = build(make_endpoint(lambda: db.run(len, "x")))
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(GZipMiddleware)
    assert ask(install(app)).status == 503


# --- websockets ------------------------------------------------------------------------------------

ACCEPT = {"type": "websocket.accept"}


def test_websocket_is_denied_with_a_response():
    """Before it accepts, a refused websocket gets the same answer as a request, where the server can."""
    seen = ask(GuardrailsMiddleware(raising(ShedError("db", "shed")), **ABOVE), websocket())
    assert [message["type"] for message in seen.sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert (seen.status, seen.problem["code"], seen.headers["retry-after"]) == (503, "shed", "1")


@pytest.mark.parametrize("extensions", [{}, None])
def test_websocket_is_closed_where_no_response_can_be(extensions):
    """Servers without the extension are told 1013, try again later."""
    scope = websocket() | {"extensions": extensions}
    seen = ask(GuardrailsMiddleware(raising(CallTimeoutError("db", 1.0))), scope)
    assert seen.sent == [{"type": "websocket.close", "code": 1013, "reason": ""}]


def test_accepted_websocket_is_never_touched():
    """After the handshake the conversation is the application's."""
    refusal = ShedError("db", "shed")
    seen = ask(GuardrailsMiddleware(raising(refusal, ACCEPT)), websocket())
    assert (seen.sent, seen.raised) == ([ACCEPT], refusal)


def test_bug_in_a_handshake_passes():
    """Other exceptions are the server's to turn into a refusal."""
    bug = Bug()
    seen = ask(GuardrailsMiddleware(raising(bug)), websocket())
    assert (seen.sent, seen.raised) == ([], bug)


def test_websocket_is_refused_before_the_application():
    """What a path requires, its websockets require."""
    db = refusing()
    middleware = GuardrailsMiddleware(raising(Bug()), requires={"/": [db]}, max_in_flight=1)
    assert ask(middleware, websocket()).status == 503


def test_websockets_are_not_counted():
    """A websocket stays for hours and is no request in flight."""

    async def app(_scope, _receive, send):
        assert middleware.in_flight == 0
        await send(ACCEPT)

    middleware = GuardrailsMiddleware(app, max_in_flight=1)
    assert ask(middleware, websocket()).sent == [ACCEPT]


# --- deadlines -------------------------------------------------------------------------------------


def test_request_timeout_reaches_the_call(build, install, make_endpoint, clock):
    """What is left of the request's time is what a guarded call has, in a thread as on the loop."""
    db = Guard("db", max_concurrent_calls=1, timeout=None, clock=clock)
    left = []

    def work():
        clock.advance(0.5)
        with db.call() as call:
            left.append(call.remaining())

    ask(install(build(make_endpoint(work)), request_timeout=2.0, clock=clock))
    assert left == [1.5]


def test_spent_time_is_503(build, install, make_endpoint, clock):
    """A request that has used up its time is refused by the first guard it meets."""
    db = Guard("db", max_concurrent_calls=1, clock=clock)

    def work():
        clock.advance(3.0)
        db.run(len, "x")

    seen = ask(install(build(make_endpoint(work)), request_timeout=2.0, clock=clock))
    assert (seen.status, seen.problem["code"]) == (503, "deadline_spent")


def test_time_is_for_the_first_byte(clock):
    """A stream, and what runs in the background, have all the time in the world."""
    left = []

    async def note():
        scope = current()
        left.append(None if scope is None else scope.remaining())

    async def pieces():
        await note()
        yield b"part"
        clock.advance(100.0)
        await note()

    async def endpoint(_request):
        await note()
        return StreamingResponse(pieces(), background=BackgroundTask(note))

    ask(GuardrailsMiddleware(starlette(endpoint), request_timeout=2.0, clock=clock))
    assert left == [2.0, None, None, None]


def test_enclosing_deadline_stays(clock):
    """A deadline around the middleware binds too, and goes on after the first byte."""
    left = []

    async def app(_scope, _receive, send):
        left.append(current().remaining())
        await send(START)
        left.append(current().remaining())
        await send(END)

    async def main():
        with deadline(1.0, clock=clock):
            await GuardrailsMiddleware(app, request_timeout=2.0)(http(), None, ignore)
            await GuardrailsMiddleware(app, request_timeout=0.5, clock=clock)(http(), None, ignore)

    asyncio.run(main())
    assert left == [pytest.approx(1.0, abs=0.5), 1.0, 0.5, 1.0]


async def ignore(_message):
    """Sends nowhere."""


def test_nothing_leaks_into_the_next_request():
    """One task serves many requests of a kept connection; each begins with a clean slate."""
    seen = []

    async def app(_scope, _receive, send):
        seen.append((current().outer, current().remaining() is not None))
        deadline(0.001).__enter__()  # and never left
        await fine(_scope, _receive, send)

    async def main():
        for _ in range(3):
            await GuardrailsMiddleware(app, request_timeout=5.0)(http(), None, ignore)
        return current()

    assert asyncio.run(main()) is None
    assert seen == [(None, True)] * 3


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_in_flight": 0}, "max_in_flight must be a whole number from 1"),
        ({"max_in_flight": True}, "got True"),
        ({"max_in_flight": "5"}, "got '5'"),
        ({"request_timeout": 0}, "request_timeout must be a number of seconds above 0"),
        ({"request_timeout": float("nan")}, "got nan"),
        ({"guards": "db"}, "guards must be a list of Guard objects, got 'db'"),
        ({"guards": ["db"]}, "guards must be a list of Guard objects, got 'db' in it"),
        ({"guards": Guard("db", max_concurrent_calls=1)}, "got a Guard: put it into brackets"),
        ({"guards": 5}, "guards must be"),
        ({"requires": ["/orders"]}, "requires must be a list of Guard objects"),
        ({"requires": {"/orders": ["db"]}}, "requires['/orders'] must be a list of Guard objects"),
        ({"requires": {"orders": []}}, "requires must be a path"),
        ({"requires": "/orders"}, "requires must be guards for every path, or a dict"),
        ({"requires": {"/orders/{id}.json": []}}, "got '/orders/{id}.json'"),
        ({"requires": {"/{all:path}/x": []}}, "one of kind 'path' the last"),
        ({"exempt": "/health"}, "exempt must be a list of paths"),
        ({"exempt": ["/health*"]}, "exempt must be a path"),
        ({"exempt": [7]}, "got 7"),
        ({"deadline_headers": ["X-Timeout"]}, "deadline_headers must be one of connect-timeout-ms"),
        ({"deadline_headers": "grpc-timeout"}, "deadline_headers must be a list"),
        ({"deadline_headers": [None]}, "got None"),
        ({"random": 5}, "random must be callable"),
        ({"clock": None}, "clock must be callable"),
        ({"max_inflight": 5}, "did you mean 'max_in_flight'"),
        ({"max_in_flight": -1, "exempt": [""]}, "exempt must be a path"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(options, words):
    """Each fault is found when the middleware is made, with field, value and what is allowed."""
    with pytest.raises(ConfigurationError) as fault:
        GuardrailsMiddleware(fine, **options)
    assert words in str(fault.value)
    assert str(fault.value).startswith("GuardrailsMiddleware")


def test_app_must_be_callable():
    """A forgotten application is told as such."""
    with pytest.raises(ConfigurationError, match="app must be callable, got None"):
        GuardrailsMiddleware(None)


def test_an_application_of_another_kind_is_told_its_middleware():
    """Flask's is WSGI, Django's handlers are neither; one that does not say what it takes is believed."""
    wsgi = "got a Flask, which takes 2: guardrails.integrations.wsgi.GuardrailsMiddleware is made for it"
    with pytest.raises(ConfigurationError, match=wsgi):
        GuardrailsMiddleware(Flask("shop"))
    with pytest.raises(ConfigurationError, match=r"which takes 1: guardrails\.integrations\.django"):
        GuardrailsMiddleware(lambda request: None)
    with pytest.raises(ConfigurationError, match="app must be an application that takes 3 arguments, got"):
        GuardrailsMiddleware(lambda: None)
    assert GuardrailsMiddleware(type).app is type


def passing_a_request(endpoint):
    """A decorator that makes an ASGI application of a function of a request, as Starlette does inside."""

    @functools.wraps(endpoint)
    async def app(scope, receive, send):
        await endpoint(Request(scope, receive))(scope, receive, send)

    return app


class Endpoint:
    """An application as a class, as an object, and as its methods."""

    def __init__(self, scope=None, receive=None, send=None):
        pass

    def __await__(self):
        yield

    @passing_a_request
    async def decorated(request):  # noqa: N805 - the decorator calls it with a request
        raise NotImplementedError

    async def __call__(self, *message):
        raise NotImplementedError

    @staticmethod
    async def static(scope, receive, send):
        raise NotImplementedError


async def with_an_option(option, scope, receive, send):
    """An application but for its first argument."""


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(passing_a_request(lambda request: None), id="decorated function"),
        pytest.param(Endpoint, id="class"),
        pytest.param(Endpoint(), id="object"),
        pytest.param(Endpoint.static, id="static method"),
        pytest.param(Endpoint.decorated, id="decorated method"),
        pytest.param(functools.partial(with_an_option, 1), id="partial"),
        pytest.param(functools.partial(functools.partial(with_an_option), 1), id="partial of a partial"),
        pytest.param(print, id="written in C"),
        pytest.param(unittest.mock.AsyncMock(), id="mock"),
    ],
)
def test_application_is_judged_by_what_is_called(app):
    """Whatever a decorator has copied from the function inside."""
    assert GuardrailsMiddleware(app).app is app


class ASGI2:
    """As applications were before ASGI 3."""

    def __init__(self, scope):
        pass

    async def __call__(self, receive, send):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (ASGI2, "for ASGI 2, use asgiref.compatibility.guarantee_single_callable"),
        (ASGI2(None), "which takes 2: guardrails.integrations.wsgi"),
        (functools.wraps(fine)(lambda request: None), "which takes 1: guardrails.integrations.django"),
        (functools.partial(fine, None), "which takes 2"),
    ],
)
def test_decorated_application_of_another_kind_is_refused(app, words):
    """What it copied from an application does not make it one."""
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        GuardrailsMiddleware(app)


def test_all_faults_are_named_together():
    """Nobody has to fix settings one error at a time."""
    with pytest.raises(ConfigurationError, match=r"exempt.*request_timeout.*max_in_flight"):
        GuardrailsMiddleware(fine, max_in_flight=0, request_timeout=-1, exempt=["x"])


def test_settings_may_be_generators():
    """Whatever can be gone through once will do."""
    db = refusing()
    middleware = GuardrailsMiddleware(
        raising(Bug()), guards=(one for one in [db]), requires={"/": (one for one in [db])}
    )
    assert [ask(middleware).status for _ in range(2)] == [503, 503]
