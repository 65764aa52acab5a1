"""What the WSGI middleware answers, when a request is over, and all that it leaves alone."""

from __future__ import annotations

import functools
import gc
import io
import logging
import sys
from wsgiref.validate import validator

import flask
import pytest
import werkzeug
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from guardrails import (
    BreakerPolicy,
    CallTimeoutError,
    CommitUnknownError,
    ConfigurationError,
    Guard,
    deadline,
)
from guardrails._runtime.scope import current
from guardrails.errors import BulkheadFullError, CircuitOpenError, DeadlineSpentError, ShedError
from guardrails.integrations.wsgi import GuardrailsMiddleware
from support.wsgi_client import PLAIN, Request, ask, environment, fine


class Bug(Exception):
    """No business of the middleware's."""


def refusing(name="db", **options):
    """A guard that is held open by hand."""
    guard = Guard(name, max_concurrent_calls=3, **options)
    guard.force_open()
    return guard


def wrapped(app, **options):
    """The middleware with Python's PEP 3333 validator on both sides."""
    options = {"random": lambda: 0.0} | options
    return validator(GuardrailsMiddleware(validator(app), **options))


# --- the ways in which an application can come to an error ------------------------------------------


def in_the_call(work):
    """Before it has said anything."""

    def app(_environ, _start_response):
        work()

    return app


def after_the_status(work):
    """When it has announced a status and sent nothing."""

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        work()

    return app


def in_the_first_step(work):
    """A generator runs only when the server asks for its first piece."""

    def app(_environ, start_response):
        work()
        start_response("200 OK", PLAIN)
        yield b"never"

    return app


def in_a_later_step(work):
    """Behind empty pieces, which send nothing."""

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        yield b""
        yield b""
        work()

    return app


def in_a_framework(work):
    """Flask answers 500 for it and keeps the error to itself."""
    app = flask.Flask("shop")
    app.logger.disabled = True

    @app.get("/<path:rest>")
    @app.get("/")
    def endpoint(rest=""):
        work()

    return app


BEFORE = [in_the_call, after_the_status, in_the_first_step, in_a_later_step, in_a_framework]


def after_a_piece(work):
    """A piece is on the wire."""

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        yield b"part"
        work()

    return app


def after_a_write(work):
    """The old way to send, before the application has returned."""

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)(b"part")
        work()

    return app


def raising(error):
    """Work that fails."""

    def work():
        raise error

    return work


# --- the answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", BEFORE)
def test_refusal_is_503(way):
    """Whenever it comes before the first byte."""
    db = refusing()
    answer = ask(wrapped(way(lambda: db.run(len, "x")), guards=[db]))
    assert answer.raised is None
    assert answer.sent[0] == "503 Service Unavailable"
    assert (answer.problem["code"], answer.problem["guard"]) == ("circuit_open", "db")
    assert answer.headers["cache-control"] == "no-store"
    assert "retry-after" not in answer.headers, "nobody knows how long a hand stays on it"


@pytest.mark.parametrize(
    ("error", "status", "code", "wait"),
    [
        (CircuitOpenError("db", "circuit_open", 1.5), 503, "circuit_open", "2"),
        (BulkheadFullError("db", "bulkhead_full"), 503, "bulkhead_full", "1"),
        (BulkheadFullError("db", "queue_timeout"), 503, "queue_timeout", "1"),
        (DeadlineSpentError("db", "deadline_spent"), 503, "deadline_spent", "1"),
        (ShedError("db", "shed"), 503, "shed", "1"),
        (CallTimeoutError("db", 0.5), 504, "timeout", None),
        (CommitUnknownError("db", 0.5), 504, "commit_unknown", None),
        (ExceptionGroup("both", [ShedError("db", "shed"), CallTimeoutError("db", 1)]), 504, "timeout", None),
    ],
)
@pytest.mark.parametrize("way", [in_the_call, in_the_first_step])
def test_every_error_has_its_answer(way, error, status, code, wait):
    """The same table as for ASGI."""
    answer = ask(wrapped(way(raising(error))))
    assert (answer.status, answer.problem["code"], answer.headers.get("retry-after")) == (status, code, wait)


def test_head_has_the_length_and_no_body():
    """The headers are those of GET."""
    db = refusing()
    answer = ask(wrapped(in_the_call(lambda: db.run(len, "x"))), environment(method="HEAD"))
    assert (answer.status, answer.body) == (503, b"")
    assert int(answer.headers["content-length"]) > 100


def test_browser_reads_a_page():
    """Who likes HTML better gets HTML."""
    db = refusing()
    asked = environment(headers=[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")])
    answer = ask(wrapped(in_the_call(lambda: db.run(len, "x"))), asked)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<h1>Temporarily unavailable</h1>" in answer.body


def test_fine_stays_fine():
    """An application without trouble is served as it is."""
    answer = ask(wrapped(fine, guards=[refusing()]))
    assert (answer.raised, answer.status, answer.body) == (None, 200, b"fine")


@pytest.mark.parametrize("way", [after_a_piece, after_a_write])
def test_started_response_is_never_answered_again(way):
    """The server gets the error and cuts the connection: a clean end would be a lie."""
    refusal = ShedError("db", "shed")
    answer = ask(wrapped(way(raising(refusal))))
    assert answer.raised is refusal
    assert (answer.status, answer.body) == (200, b"part")


@pytest.mark.parametrize("way", [way for way in BEFORE if way is not in_a_framework])
def test_bug_stays_a_bug(way):
    """Any other exception is the same object when it gets to the server."""
    bug = Bug()
    answer = ask(GuardrailsMiddleware(way(raising(bug))))
    assert answer.raised is bug
    assert answer.sent is None


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("way", [in_the_call, in_the_first_step])
def test_control_flow_passes(way, error):
    """What ends threads and processes is nobody's answer, and leaves nothing inside."""
    middleware = GuardrailsMiddleware(way(raising(error)), max_in_flight=1)
    assert ask(middleware).raised is error
    assert middleware.in_flight == 0


def test_other_guards_are_not_answered_for():
    """A guard that is not named is somebody else's."""
    db, cache = refusing(), refusing("cache")
    answer = ask(GuardrailsMiddleware(in_the_call(lambda: cache.run(len, "x")), guards=[db]))
    assert isinstance(answer.raised, CircuitOpenError)


@pytest.mark.parametrize("way", BEFORE)
def test_each_middleware_answers_for_its_own(way):
    """The outer one hears of trouble that is not the inner one's, also when a framework swallowed it."""
    db, cache = refusing(), refusing("cache")
    inner = GuardrailsMiddleware(way(lambda: cache.run(len, "x")), guards=[db])
    answer = ask(validator(GuardrailsMiddleware(inner, guards=[cache])))
    assert (answer.raised, answer.problem["guard"]) == (None, "cache")


# --- a framework's own 500 --------------------------------------------------------------------------


def answering(status, *pieces, before=lambda: None):
    """An application that does something and then answers in pieces."""

    def app(_environ, start_response):
        before()
        start_response(status, PLAIN)
        yield from pieces

    return app


def swallow_a_refusal():
    """Runs into a refusal and goes on."""
    with pytest.raises(CircuitOpenError):
        refusing().run(len, "x")


def failing(*pieces, way=list):
    """An application that reports its error to the server, as PEP 3333 shows."""

    def app(_environ, start_response):
        try:
            refusing().run(len, "x")
        except CircuitOpenError:
            start_response("500 Oh no", PLAIN, sys.exc_info())
        return way(pieces)

    return app


@pytest.mark.parametrize("pieces", [(), (b"",), (b"oops",), (b"one", b"two")], ids=repr)
@pytest.mark.parametrize("way", [list, iter])
def test_500_reported_with_the_refusal_is_503(pieces, way):
    """The application says itself which error the 500 is for."""
    answer = ask(wrapped(failing(*pieces, way=way)))
    assert (answer.status, answer.problem["code"]) == (503, "circuit_open")


@pytest.mark.parametrize("pieces", [(), (b"",), (b"oops",), (b"", b"oops", b"")], ids=repr)
def test_own_500_after_a_swallowed_refusal_stands(pieces):
    """The application has handled the refusal, and says 500 by itself."""
    answer = ask(wrapped(answering("500 Oh no", *pieces, before=swallow_a_refusal)))
    assert (answer.sent[0], answer.body) == ("500 Oh no", b"".join(pieces))


def test_streamed_500_is_let_go():
    """Two pieces are no error handler's; all of them arrive, in order."""
    answer = ask(wrapped(answering("500 Oh no", b"one", b"", b"two", b"three", before=swallow_a_refusal)))
    assert (answer.raised, answer.status, answer.body) == (None, 500, b"onetwothree")


def test_written_500_is_let_go():
    """Whoever writes by hand means it."""

    def app(_environ, start_response):
        swallow_a_refusal()
        start_response("500 Oh no", PLAIN)(b"meant")
        return []

    answer = ask(wrapped(app))
    assert (answer.status, answer.body) == (500, b"meant")


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "501 Not Implemented", "503 Mine"])
def test_own_answer_to_a_refusal_stands(status):
    """What the application says itself is not improved on."""
    answer = ask(wrapped(answering(status, b"mine", before=swallow_a_refusal)))
    assert (answer.sent[0], answer.body) == (status, b"mine")


def test_500_without_trouble_is_at_once_on_its_way():
    """Nothing is held back where no guard had trouble."""
    request = Request(GuardrailsMiddleware(answering("500 Oh no", b"one", b"two"))).begin()
    assert request.step()
    assert (request.announced[0], request.pieces) == ("500 Oh no", [b"one"])
    request.close()


def test_bug_behind_a_replaced_500_is_the_bug():
    """An application that fails while its 500 is being replaced has not answered."""
    bug = Bug()

    def app(_environ, start_response):
        try:
            refusing().run(len, "x")
        except CircuitOpenError:
            start_response("500 Oh no", PLAIN, sys.exc_info())
        raise bug
        yield

    answer = ask(GuardrailsMiddleware(app))
    assert (answer.raised, answer.sent) == (bug, None)


# --- exc_info --------------------------------------------------------------------------------------


def restarting(*pieces, last_guard_error=lambda: None, caught=Bug):
    """An application that begins with 200, fails, and starts again as PEP 3333 shows."""

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        yield from pieces
        try:
            last_guard_error()
            raise Bug
        except caught:
            start_response("500 Mine", PLAIN, sys.exc_info())
            yield b"mine"

    return app


def test_restart_before_the_first_byte_replaces_the_answer():
    """The server forgets the 200."""
    answer = ask(wrapped(restarting(b"")))
    assert (answer.raised, answer.sent[0], answer.body) == (None, "500 Mine", b"mine")


def test_restart_after_the_first_byte_is_raised_by_the_server():
    """The application gets its own error back, and so does the server."""
    answer = ask(wrapped(restarting(b"part")))
    assert isinstance(answer.raised, Bug)
    assert (answer.status, answer.body) == (200, b"part")


def test_restart_for_an_error_of_its_own_stands():
    """The refusal before it was handled."""
    answer = ask(wrapped(restarting(b"", last_guard_error=swallow_a_refusal)))
    assert (answer.raised, answer.sent[0], answer.body) == (None, "500 Mine", b"mine")


def test_restart_for_a_refusal_is_503():
    """Ours takes the place of the 200 as the protocol wants it: with exc_info."""
    answer = ask(
        wrapped(restarting(b"", last_guard_error=lambda: refusing().run(len, "x"), caught=CircuitOpenError))
    )
    assert (answer.raised, answer.status, answer.problem["code"]) == (None, 503, "circuit_open")


def test_second_status_without_exc_info_is_the_server_s_to_refuse():
    """An application's mistake is not hidden, whether its first status was held back or not."""

    def app(_environ, start_response):
        swallow_a_refusal()
        start_response("500 One", PLAIN)
        start_response("500 Two", PLAIN)
        return []

    answer = ask(GuardrailsMiddleware(app))
    assert "a second status" in str(answer.raised)


# --- when a request is over --------------------------------------------------------------------------


class Body:
    """A body whose ``close`` counts."""

    def __init__(self, pieces, on_close=lambda: None):
        self.pieces = pieces
        self.closes = 0
        self.on_close = on_close

    def __iter__(self):
        return iter(self.pieces)

    def close(self):
        self.closes += 1
        self.on_close()


def returning(body):
    """An application that answers 200 with this body."""

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        return body

    return app


def test_request_is_over_when_its_body_is_closed():
    """Not when the application returns, and not with the last piece either; once."""
    body = Body([b"a", b"b"])
    middleware = GuardrailsMiddleware(returning(body), max_in_flight=2)
    request = Request(middleware).begin()
    assert middleware.in_flight == 1
    while request.step():
        assert middleware.in_flight == 1
    assert middleware.in_flight == 1
    request.close()
    request.close()
    assert (middleware.in_flight, body.closes) == (0, 1)


def test_body_without_close_is_over_too():
    """`close` is optional in an application's body; the server calls ours."""
    middleware = GuardrailsMiddleware(returning({b"a": "no list"}), max_in_flight=1)
    assert [ask(middleware).body for _ in range(3)] == [b"a"] * 3
    assert middleware.in_flight == 0


def test_client_that_left_ends_the_generator():
    """A server that stops half-way closes: the guard's slot comes back and is no evidence."""
    db = Guard("db", max_concurrent_calls=3)

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        with db.call():
            while True:
                yield b"part"

    middleware = GuardrailsMiddleware(app, max_in_flight=1)
    request = Request(middleware).begin()
    request.step()
    request.step()
    assert (db.snapshot().in_use, middleware.in_flight) == (1, 1)
    request.close()
    figures = db.snapshot()
    assert (figures.in_use, figures.failed, figures.abandoned, middleware.in_flight) == (0, 0, 1, 0)


def test_request_nobody_began_to_send_is_over():
    """A server may close without asking for a single piece."""
    body = Body([b"a"])
    middleware = GuardrailsMiddleware(returning(body), max_in_flight=1)
    Request(middleware).begin().close()
    assert (middleware.in_flight, body.closes) == (0, 1)


def test_request_nobody_closed_is_let_out_when_it_is_collected():
    """A middleware further out that forgets `close` costs a place for a while, not for ever."""
    middleware = GuardrailsMiddleware(returning(Body([b"a"])), max_in_flight=1)
    request = Request(middleware).begin()
    assert middleware.in_flight == 1
    del request
    gc.collect()
    assert middleware.in_flight == 0


def test_error_in_close_is_the_server_s_and_ends_the_request():
    """The response is out; nothing can be answered."""
    refusal = ShedError("db", "shed")
    middleware = GuardrailsMiddleware(returning(Body([b"a"], on_close=raising(refusal))), max_in_flight=1)
    answer = ask(middleware)
    assert (answer.raised, answer.body, middleware.in_flight) == (refusal, b"a", 0)


def test_replaced_body_is_closed():
    """What the application had to clean up is cleaned up when its answer was not used."""
    body = Body([b"oops"])

    answer = ask(wrapped(failing(way=lambda _: body)))
    assert (answer.status, body.closes) == (503, 1)


@pytest.mark.parametrize("body", [[b"all"], (b"all",), []], ids=repr)
def test_list_is_passed_on_as_it_is(body):
    """So that a server may set the length by itself; nothing of the application runs any more."""
    middleware = GuardrailsMiddleware(returning(body), max_in_flight=1)
    request = Request(middleware).begin()
    assert request.result is body
    assert middleware.in_flight == 0


def test_file_is_passed_on_as_it_is():
    """The server knows its own wrapper when it sees it, and sends the file without reading it."""
    environ = environment()
    made = environ["wsgi.file_wrapper"](io.BytesIO(b"file"))
    middleware = GuardrailsMiddleware(returning(made), max_in_flight=1)
    request = Request(middleware, environ).begin()
    assert request.result is made
    assert middleware.in_flight == 0


def test_files_of_flask_keep_the_server_s_wrapper(tmp_path):
    """A framework's way to send a file goes through whole."""
    (tmp_path / "data").write_bytes(b"data")
    app = flask.Flask("shop")
    app.get("/")(lambda: flask.send_file(tmp_path / "data"))
    environ = environment()
    request = Request(GuardrailsMiddleware(app), environ).begin()
    assert isinstance(request.result, environ["wsgi.file_wrapper"])
    request.close()


# --- places ----------------------------------------------------------------------------------------


def test_one_too_many_is_refused_at_once():
    """Before the application is asked; exempt paths are let in all the same."""
    middleware = GuardrailsMiddleware(
        returning(Body([b"a"])), max_in_flight=1, exempt=["/livez"], random=lambda: 0.0
    )
    first = Request(middleware).begin()
    refused = ask(validator(middleware))
    assert (refused.status, refused.problem["code"]) == (503, "bulkhead_full")
    assert (refused.headers["retry-after"], "guard" in refused.problem) == ("1", False)
    assert ask(middleware, environment("/livez")).status == 200
    first.close()
    assert ask(middleware).status == 200


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        (environment("/orders"), 503),
        (environment("/orders/7"), 503),
        (environment("/orders-old"), 200),
        (environment("/orders/open"), 200),
        (environment("/x/orders"), 200),
        (environment("/orders", SCRIPT_NAME="/shop"), 503),
        (environment("/caf\u00e9".encode().decode("latin-1")), 503),
        (environment(""), 200),
    ],
    ids=lambda value: f"{value['SCRIPT_NAME']}:{value['PATH_INFO']}" if isinstance(value, dict) else value,
)
def test_required_guard_refuses_at_the_edge(environ, status):
    """By the decoded path below the mount; the application is not asked."""
    db = refusing()
    required = {"/orders": [db], "/orders/open": [], "/caf\u00e9": [db]}
    asked = []

    def app(*args):
        asked.append(1)
        return fine(*args)

    assert ask(GuardrailsMiddleware(app, requires=required), environ).status == status
    assert len(asked) == (status == 200)


@pytest.mark.parametrize("where", ["/", "/orders/7/lines", ""])
def test_guards_that_everything_requires(where):
    """A list in place of paths stands for all of them; a template for what it matches."""
    db = refusing()
    assert ask(wrapped(fine, requires=[db]), environment(where)).status == 503
    of_lines = wrapped(fine, requires={"/orders/{order}/lines": [db]})
    assert ask(of_lines, environment(where)).status == (503 if where.endswith("lines") else 200)


def test_probe_of_a_half_open_circuit_gets_through(make_guard, clock):
    """The edge refuses while the circuit does, and lets in what it wants to see when its wait is over."""
    db = make_guard(breaker=BreakerPolicy(minimum_number_of_calls=1, permitted_calls_in_half_open_state=1))
    with pytest.raises(Bug):
        db.run(raising(Bug()))

    def app(environ, start_response):
        with db.call():
            return fine(environ, start_response)

    middleware = wrapped(app, requires={"/": [db]})
    refused = ask(middleware)
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    clock.advance(3)
    assert (ask(middleware).status, db.state) == (200, "closed")


# --- time ------------------------------------------------------------------------------------------


def remembering(seen):
    """An application that notes its budget in its call, in each step and in close."""

    def note():
        scope = current()
        seen.append(None if scope is None else scope.remaining())

    def pieces():
        note()
        yield b"part"
        note()
        yield b"part"

    def app(_environ, start_response):
        note()
        start_response("200 OK", PLAIN)
        return Body(pieces(), on_close=note)

    return app


def test_time_is_for_the_first_byte(clock):
    """The rest of a stream, and its close, have all the time in the world."""
    seen = []
    ask(GuardrailsMiddleware(remembering(seen), request_timeout=2.0, clock=clock))
    assert seen == [2.0, 2.0, None, None]


def test_between_the_steps_the_thread_is_the_server_s(clock):
    """What it does there, such as another request, has no deadline of ours; nor has it any afterwards."""
    seen = []
    request = Request(GuardrailsMiddleware(remembering(seen), request_timeout=2.0, clock=clock)).begin()
    assert current() is None
    while request.step():
        assert current() is None
    request.close()
    assert current() is None


def test_request_that_is_never_closed_leaves_no_deadline(clock):
    """The next request of the thread starts afresh."""
    middleware = GuardrailsMiddleware(returning(Body([b"a"])), request_timeout=2.0, clock=clock)
    kept = Request(middleware).begin()
    kept.step()
    assert current() is None
    seen = []
    ask(GuardrailsMiddleware(remembering(seen), clock=clock))
    assert seen == [None] * 4
    kept.close()


def test_deadline_that_spans_pieces_is_the_body_s_own(clock):
    """It holds in every step of the body, and in none of the server's."""
    seen = []

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        with deadline(5, clock=clock):
            for _ in range(3):
                seen.append(current().remaining())
                yield b"part"

    request = Request(GuardrailsMiddleware(app, clock=clock)).begin()
    while request.step():
        assert current() is None
        clock.advance(1)
    request.close()
    assert seen == [5, 4, 3]


def test_enclosing_deadline_stays(clock):
    """Only the request's own limit is lifted by the first byte."""
    seen = []
    with deadline(10, clock=clock):
        ask(GuardrailsMiddleware(remembering(seen), request_timeout=2.0, clock=clock))
        assert current().remaining() == 10
    assert seen == [2.0, 2.0, 10, 10]


@pytest.mark.parametrize("way", BEFORE)
def test_spent_time_is_503(way, clock, make_guard):
    """A call that begins after the request's time is refused, and that is the answer."""
    db = make_guard()

    def late():
        clock.advance(3)
        db.run(len, "x")

    answer = ask(wrapped(way(late), request_timeout=2.0, clock=clock))
    assert (answer.status, answer.problem["code"]) == (503, "deadline_spent")


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("1500", 1.5),
        ("9000", 2.0),
        ("nan", 2.0),
        ("1,1", 2.0),
        ("\u0665", 2.0),
        ("5\x00", 2.0),
        ("9" * 16_384, 2.0),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_client_can_only_lower(clock, value, left):
    """Two headers arrive joined by a comma, which no grammar allows; hostile ones say nothing."""
    seen = []
    middleware = GuardrailsMiddleware(
        remembering(seen), request_timeout=2.0, deadline_headers=["X-Request-Timeout-Ms"], clock=clock
    )
    ask(middleware, environment(headers=[("x-request-timeout-ms", value), ("grpc-timeout", "1m")]))
    assert seen[0] == left


# --- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "threads", "max_in_flight", "warned"),
    [
        ((5,), 8, None, False),
        ((5, 2), 8, None, False),
        ((5, 3), 8, None, True),
        ((45,), 40, None, True),
        ((45,), 40, 30, False),
        ((45,), 40, 40, True),
        ((45,), None, None, False),
    ],
)
def test_slots_that_can_take_every_thread_are_warned_of(caplog, slots, threads, max_in_flight, warned):
    """Once, when the middleware is made, with both numbers and what to do."""
    guards = [Guard(f"db{index}", max_concurrent_calls=count) for index, count in enumerate(slots)]
    with caplog.at_level(logging.WARNING, logger="guardrails"):
        GuardrailsMiddleware(fine, guards=guards, threads=threads, max_in_flight=max_in_flight)
    assert len(caplog.records) == warned
    if warned:
        assert f"{sum(slots)} slots and the server has {threads} threads" in caplog.text
        assert f"max_in_flight below {threads}" in caplog.text


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guard": []}, "no option 'guard'; did you mean 'guards'?"),
        ({"threads": 1}, "threads must be a whole number from 2"),
        ({"threads": True}, "threads must be a whole number"),
        ({"threads": 8}, "guards must be named where threads is given"),
        ({"clock": 3}, "clock must be callable"),
        ({"app": None}, "app must be callable"),
        ({"app": Starlette()}, "takes 3: guardrails.integrations.asgi.GuardrailsMiddleware is made for it"),
        (
            {"max_in_flight": 0, "exempt": "/x", "request_timeout": -1},
            "exempt must be .*request_timeout must be .*max_in",
        ),
        ({"guards": "db"}, "guards must be a list of Guard objects"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_settings_are_named(options, words):
    """All that is wrong, with what is allowed."""
    with pytest.raises(ConfigurationError, match=words):
        GuardrailsMiddleware(**({"app": fine} | options))


@werkzeug.Request.application
def hello(request):
    """Werkzeug's hello world: an application made of a function of a request."""
    return werkzeug.Response(f"hello {request.path}")


class Site:
    """The same as a method, and as an object that is called."""

    @werkzeug.Request.application
    def hello(self, request):
        return hello.__wrapped__(request)

    @werkzeug.Request.application
    def __call__(self, request):
        return hello.__wrapped__(request)


@pytest.mark.parametrize(
    "app",
    [hello, Site().hello, Site(), functools.partial(hello)],
    ids=["function", "method", "object", "partial"],
)
def test_application_made_by_a_decorator_is_served(app):
    """What is called takes an environ and start_response, whatever the function inside takes."""
    assert ask(GuardrailsMiddleware(app), environment("/you")).body == b"hello /you"


def test_settings_may_be_generators():
    """Each is read once."""
    db = refusing()
    middleware = GuardrailsMiddleware(
        in_the_call(lambda: db.run(len, "x")), guards=(guard for guard in [db]), threads=8
    )
    assert ask(middleware).status == 503


# --- anything at all ---------------------------------------------------------------------------------

ERRORS = st.sampled_from([Bug, lambda: ShedError("db", "shed"), lambda: CallTimeoutError("other", 1.0)])
MOVES = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(["200 OK", "500 Oh no", "503 Mine"])),
    st.tuples(st.just("restart"), st.sampled_from(["500 Again", "400 Again"])),
    st.tuples(st.just("write"), st.sampled_from([b"", b"written"])),
    st.tuples(st.just("yield"), st.sampled_from([b"", b"piece"])),
    st.tuples(st.just("raise"), ERRORS),
    st.tuples(st.just("swallow"), st.just(None)),
)


def scripted(moves, guard, *, generator):
    """An application that does what it is told, in its call or in the steps of its body."""

    def steps(start_response):
        for move, what in moves:
            if move == "start":
                steps.write = start_response(what, list(PLAIN))
            elif move == "restart":
                try:
                    raise Bug
                except Bug:
                    steps.write = start_response(what, list(PLAIN), sys.exc_info())
            elif move == "write":
                steps.write(what)
            elif move == "yield":
                yield what
            elif move == "raise":
                raise what()
            else:
                with pytest.raises(CircuitOpenError):
                    guard.run(len, "x")

    def app(_environ, start_response):
        pieces = steps(start_response)
        return pieces if generator else list(pieces)

    return app


@settings(max_examples=400)
@given(st.lists(MOVES, max_size=8), st.booleans(), st.integers(0, 4))
def test_no_application_is_answered_twice_or_kept(moves, generator, patience):
    """Whatever it does, in whatever order: at most one answer, and nothing of it stays inside."""
    guard = refusing()
    middleware = GuardrailsMiddleware(
        scripted(moves, guard, generator=generator),
        guards=[guard, Guard("other", max_concurrent_calls=1)],
        max_in_flight=1,
    )
    answer = ask(middleware)
    if answer.sent is not None and answer.headers["content-type"] == "application/problem+json":
        assert answer.raised is None
        assert answer.problem["status"] == answer.status
    assert middleware.in_flight == 0
    assert current() is None
    ask(middleware, most=patience)
    assert middleware.in_flight == 0
    assert current() is None
