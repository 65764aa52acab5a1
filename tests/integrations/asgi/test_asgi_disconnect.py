"""``cancel_on_disconnect``: a request whose client has left does no more work; without a server."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import weakref

import flask
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from guardrails import (
    CallAbandonedError,
    CallTimeoutError,
    ClientGoneError,
    ConfigurationError,
    Guard,
    RejectedError,
    deadline,
    guarded,
    remaining,
)
from guardrails._http import disconnect
from guardrails._runtime.scope import current
from guardrails.integrations import wsgi
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.flask import Guardrails
from support.asgi_client import CHUNK, END, START, fine, http

GONE = {"type": "http.disconnect"}
EMPTY = {"type": "http.request", "body": b"", "more_body": False}


def piece(body, *, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Requests are listened for from the loop's next step on."""
    monkeypatch.setattr(disconnect, "_LISTEN_AFTER", 0.0)


@pytest.fixture
def db():
    """A guard with two slots."""
    return Guard("db", max_concurrent_calls=2, timeout=30)


class Connection:
    """A server's side of one request: what the client sends comes when a test says so."""

    def __init__(self, *messages):
        self.incoming = asyncio.Queue()
        for message in messages:
            self.incoming.put_nowait(message)
        self.taken = 0
        self.sent = []
        self.receiving = 0

    async def receive(self):
        assert not self.receiving, "two calls of receive() at once"
        self.receiving += 1
        try:
            message = await self.incoming.get()
        finally:
            self.receiving -= 1
        self.taken += 1
        return message

    async def send(self, message):
        self.sent.append(message)

    def leave(self):
        """The client closes its connection."""
        self.incoming.put_nowait(GONE)

    @property
    def status(self):
        return [each["status"] for each in self.sent if each["type"] == "http.response.start"]


async def steps(number=10):
    """Lets everything run that can."""
    for _ in range(number):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    for _ in range(number):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def served(app, *messages, scope=None, **settings):
    """Serves one request with the setting on, while the block runs; then nothing of it is left."""
    middleware = GuardrailsMiddleware(app, **{"cancel_on_disconnect": True} | settings)
    connection = Connection(*messages or [EMPTY])
    connection.middleware = middleware
    before, outside = asyncio.all_tasks(), current()
    request = asyncio.create_task(middleware(scope or http(), connection.receive, connection.send))
    connection.request = request
    await steps()
    yield connection
    await asyncio.wait_for(request, 20)
    await steps()
    assert asyncio.all_tasks() == before, "a task is left"
    assert current() is outside


def in_a_call(db, errors):
    """An application that is in a guarded call until something ends it."""

    async def app(_scope, _receive, send):
        try:
            await db.run_async(asyncio.sleep, 60)
        except CallTimeoutError as error:
            errors.append(error)
            raise
        await fine(None, None, send)

    return app


# --- what ends, and what it says ----------------------------------------------------------------------


def test_a_call_ends_with_its_client_and_is_no_evidence(db):
    """The answer, which the client does not get, is 499: for the logs and metrics around the middleware."""
    errors = []

    async def main():
        async with served(in_a_call(db, errors), guards=[db]) as connection:
            assert db.snapshot().in_use == 1
            connection.leave()
        return connection

    connection = asyncio.run(main())
    assert [type(error) for error in errors] == [CallAbandonedError]
    assert str(errors[0]) == "'db' stopped the call: the client of the request is gone"
    assert connection.status == [499]
    assert connection.middleware.disconnects == 1
    seen = db.snapshot()
    assert (seen.in_use, seen.failed, seen.slow, seen.abandoned, dict(seen.rejected)) == (0, 0, 0, 1, {})


@pytest.mark.parametrize(
    ("value", "method", "ends"),
    [
        *[(True, method, True) for method in ("GET", "HEAD", "OPTIONS", "TRACE")],
        *[(True, method, False) for method in ("POST", "PUT", "PATCH", "DELETE", "QUERY")],
        *[("all", method, True) for method in ("GET", "POST", "DELETE")],
        *[(False, method, False) for method in ("GET", "POST")],
    ],
)
def test_which_methods_end_with_their_client(db, value, method, ends):
    errors = []

    async def main():
        scope = http(method=method)
        async with served(
            in_a_call(db, errors), scope=scope, guards=[db], cancel_on_disconnect=value
        ) as connection:
            connection.leave()
            await steps()
            assert connection.request.done() is ends
            if not ends:
                connection.request.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await connection.request
                connection.request = None
                raise asyncio.CancelledError

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
    assert len(errors) == ends


def test_nothing_of_the_request_starts_any_more(db):
    """Neither in a task nor in a thread, nor inside a later deadline. The figures count no refusal."""
    told = []

    async def app(_scope, _receive, _send):
        entered = db.call(timeout=20)
        with deadline(20), contextlib.suppress(CallAbandonedError):
            async with entered:
                await asyncio.sleep(60)
        assert remaining() == 0.0
        for work in (
            lambda: db.run_async(asyncio.sleep, 0),
            lambda: asyncio.to_thread(db.run, len, "x"),
            lambda: guarded(db)(asyncio.sleep)(0),
        ):
            try:
                await work()
            except RejectedError as error:
                told.append((type(error), str(error), error.reason))
        with deadline(20):
            assert entered.remaining() == 0.0 or entered.closed
            await db.run_async(asyncio.sleep, 0)

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()
        return connection.status

    assert asyncio.run(main()) == [499]
    refused = ClientGoneError, "'db' refused the call: the client of the request is gone", "deadline_spent"
    assert told == [refused] * 3
    assert dict(db.snapshot().rejected) == {}


def test_a_call_reads_in_its_block_that_no_time_is_left(db):
    async def app(_scope, _receive, send):
        async with db.call() as call:
            assert call.remaining() > 20
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            left.append(call.remaining())
            asyncio.current_task().uncancel()
        await fine(None, None, send)

    left = []

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()

    asyncio.run(main())
    assert left == [0.0]


def test_a_call_that_waits_for_its_slot_does_not_start():
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=20, timeout=20)
    started = []

    async def app(_scope, _receive, _send):
        await db.run_async(asyncio.to_thread, started.append, 1)

    async def main():
        async with db.call(), served(app, guards=[db]) as connection:
            assert db.snapshot().waiting == 1
            connection.leave()
            await steps()
            db.resize(2)
        return connection.status

    assert asyncio.run(main()) == [499]
    assert (started, db.snapshot().in_use) == ([], 0)


def test_a_request_that_waits_at_the_edge_does_not_reach_the_application():
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=20, timeout=20)
    reached = []

    async def app(*_):
        reached.append(1)

    async def main():
        async with db.call(), served(app, guards=[db], requires=[db]) as connection:
            assert db.snapshot().waiting == 1
            connection.leave()
            await steps()
            db.resize(2)
        return connection.status

    assert asyncio.run(main()) == [499]
    assert (reached, db.snapshot().in_use) == ([], 0)


def test_a_guard_in_shadow_stops_and_refuses_nothing(db):
    watched = Guard("watched", max_concurrent_calls=2, timeout=30, mode="shadow")
    done = []

    async def app(_scope, _receive, send):
        with contextlib.suppress(CallAbandonedError):
            await db.run_async(asyncio.sleep, 60)
        await watched.run_async(asyncio.sleep, 0)
        async with asyncio.TaskGroup() as group:
            group.create_task(watched.run_async(asyncio.sleep, 0))
        done.append(watched.snapshot().would_stop)
        await fine(None, None, send)

    async def main():
        async with served(app) as connection:
            connection.leave()
        return connection

    asyncio.run(main())
    assert done == [0]

    async def alone(scope, receive, send):
        got.append(receive)
        await fine(scope, receive, send)

    got = []

    async def main_alone():
        async with served(alone, guards=[watched]) as connection:
            pass
        return connection

    assert got == [asyncio.run(main_alone()).receive], "the server's own: there is nothing to stop"


def test_a_call_of_a_guard_in_shadow_goes_on(db):
    watched = Guard("watched", max_concurrent_calls=2, timeout=30, mode="shadow")
    over = []

    async def app(_scope, _receive, send):
        await watched.run_async(asyncio.sleep, 0.05)
        over.append(1)
        await fine(None, None, send)

    async def main():
        async with served(app, guards=[db, watched]) as connection:
            connection.leave()

    asyncio.run(main())
    assert (over, watched.snapshot().would_stop) == ([1], 0)


def test_what_is_still_ending_when_the_answer_is_complete_is_no_evidence(db):
    """Two calls at once; the first that ends makes the answer."""
    ended = []

    async def slow_to_end():
        try:
            await asyncio.sleep(60)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    async def second():
        try:
            await db.run_async(slow_to_end)
        except CallTimeoutError as error:
            ended.append(type(error))

    async def app(_scope, _receive, send):
        other = asyncio.create_task(second())
        with contextlib.suppress(CallAbandonedError):
            await db.run_async(asyncio.sleep, 60)
        await fine(None, None, send)
        await other

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()

    asyncio.run(main())
    assert ended == [CallAbandonedError]
    assert (db.snapshot().failed, db.snapshot().abandoned) == (0, 2)


# --- after the answer -----------------------------------------------------------------------------------


def test_a_client_that_leaves_after_the_answer_is_none_that_has_left(db):
    """uvicorn tells of a disconnect to everyone who asks behind the answer."""
    done = []

    async def background():
        await db.run_async(asyncio.sleep, 0.05)
        done.append(remaining())

    async def endpoint(_request):
        await asyncio.sleep(0.02)
        return PlainTextResponse("fine", background=BackgroundTask(background))

    async def main():
        app = Starlette(routes=[Route("/", endpoint)])
        async with served(app, guards=[db]) as connection:
            while not connection.sent[1:]:
                await asyncio.sleep(0)
            connection.leave()
        return connection

    connection = asyncio.run(main())
    assert (done, connection.status, connection.middleware.disconnects) == ([None], [200], 0)


def test_background_work_of_an_answer_that_nobody_got_is_done(db):
    """The endpoint had finished when its client left, so its background task is due."""
    done = []

    async def background():
        await db.run_async(asyncio.sleep, 0)
        done.append(remaining())

    async def endpoint(_request):
        await asyncio.sleep(0.05)
        assert remaining() == 0.0
        return PlainTextResponse("fine", background=BackgroundTask(background))

    async def main():
        app = Starlette(routes=[Route("/", endpoint)])
        async with served(app, guards=[db]) as connection:
            connection.leave()
        return connection

    connection = asyncio.run(main())
    assert (done, connection.middleware.disconnects) == ([None], 1)


@pytest.mark.parametrize("seconds", [20, 0.1])
def test_a_call_inside_a_call_around_the_middleware_ends_with_its_client(db, seconds):
    """The timer of the call outside knows no client. If its time is up first, it is the one that is late."""
    errors, outside = [], Guard("outside", max_concurrent_calls=2, timeout=seconds)
    inside = GuardrailsMiddleware(in_a_call(db, errors), guards=[db], cancel_on_disconnect=True)

    async def app(scope, receive, send):
        await outside.run_async(inside, scope, receive, send)

    async def main():
        async with served(app, guards=[db, outside], cancel_on_disconnect=False) as connection:
            assert db.snapshot().in_use == 1
            if seconds == 20:
                connection.leave()
        return connection

    connection = asyncio.run(main())
    ended = seconds == 20
    assert (connection.status, inside.disconnects) == ([499 if ended else 504], int(ended))
    assert [type(error) for error in errors] == [CallAbandonedError] * ended
    assert (outside.snapshot().failed, outside.snapshot().in_use) == (int(not ended), 0)
    assert (db.snapshot().failed, db.snapshot().abandoned, db.snapshot().in_use) == (0, 1, 0)


def test_background_work_behind_a_500_that_is_held_back_is_done(db):
    """The application has sent its whole answer when its client leaves."""
    done, asked = [], Guard("asked", max_concurrent_calls=1, max_wait_duration=0)

    async def app(_scope, _receive, send):
        with asked.call(), contextlib.suppress(RejectedError):
            asked.run(int)
        await send(START | {"status": 500})
        await send(END)
        await asyncio.sleep(0.05)
        await db.run_async(asyncio.sleep, 0)
        done.append(True)

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()
        return connection

    connection = asyncio.run(main())
    assert (done, connection.status, connection.middleware.disconnects) == ([True], [500], 0)


def test_clean_up_in_a_context_of_its_own_is_done(db):
    """As the guide says: in the request it is refused, and outside it belongs to none."""
    done = []

    async def clean(how):
        await db.run_async(asyncio.sleep, 0)
        done.append(how)

    async def app(_scope, _receive, _send):
        try:
            await db.run_async(asyncio.sleep, 60)
        finally:
            with pytest.raises(ClientGoneError):
                await clean("inside")
            await asyncio.create_task(clean("task"), context=contextvars.Context())
            await asyncio.to_thread(contextvars.Context().run, db.run, done.append, "thread")

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()
        return connection

    assert asyncio.run(main()).status == [499]
    assert done == ["task", "thread"]


def test_a_task_that_outlives_its_request_is_not_stopped(db):
    tasks = []

    async def later():
        await asyncio.sleep(0.05)
        return await db.run_async(asyncio.sleep, 0, "done")

    async def app(_scope, _receive, _send):
        with deadline(20):
            tasks.append(asyncio.create_task(later()))
        await db.run_async(asyncio.sleep, 60)

    async def main():
        middleware = GuardrailsMiddleware(app, guards=[db], cancel_on_disconnect=True)
        connection = Connection(EMPTY)
        request = asyncio.create_task(middleware(http(), connection.receive, connection.send))
        await steps()
        connection.leave()
        await request
        return await tasks[0]

    assert asyncio.run(main()) == "done"


def test_a_stream_is_stopped_in_the_middle_without_a_word_in_the_log(db, caplog):
    """The server would write the traceback of what the application raises."""

    async def app(_scope, _receive, send):
        await send(dict(START))
        await send(dict(CHUNK))
        await db.run_async(asyncio.sleep, 60)

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()
        return connection

    with caplog.at_level(logging.WARNING):
        connection = asyncio.run(main())
    assert connection.sent == [START, CHUNK]
    assert [record for record in caplog.records if "gone" not in record.getMessage()] == []


def test_another_error_in_the_middle_of_an_answer_is_the_server_s(db):
    async def app(_scope, _receive, send):
        await send(dict(START))
        with contextlib.suppress(CallAbandonedError):
            await db.run_async(asyncio.sleep, 60)
        raise KeyError("bug")

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()

    with pytest.raises(KeyError, match="bug"):
        asyncio.run(main())


def test_a_500_that_a_framework_made_of_it_becomes_499(db):
    async def endpoint(_request):
        await db.run_async(asyncio.sleep, 60)

    async def main():
        app = Starlette(routes=[Route("/", endpoint)])
        async with served(app, guards=[db]) as connection:
            connection.leave()
        return connection.status

    assert asyncio.run(main()) == [499]


# --- the messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0, 0.005])
def test_a_body_arrives_whole_and_in_order_and_at_most_one_piece_ahead(db, pause):
    pieces = [piece(b"%d" % number) for number in range(20)] + [piece(b"end", more=False)]
    got, ahead = [], []

    async def app(_scope, receive, send):
        more = True
        while more:
            if pause:
                await asyncio.sleep(pause)
            ahead.append(connection_of[0].taken - len(got))
            message = await receive()
            got.append(message)
            more = message["more_body"]
        await asyncio.sleep(0.02)
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.01):
                await receive()
        await fine(None, None, send)

    connection_of = []

    async def main():
        middleware = GuardrailsMiddleware(app, guards=[db], cancel_on_disconnect="all")
        connection = Connection(*pieces)
        connection_of.append(connection)
        await middleware(http(method="POST"), connection.receive, connection.send)
        return connection

    connection = asyncio.run(main())
    assert got == pieces
    assert max(ahead) == (1 if pause else 0)
    assert connection.status == [200]


def test_one_who_waits_gets_the_message_that_the_task_reads(db):
    """Also two at once: each message goes to one of them, the disconnect to both."""
    got = []

    async def app(_scope, receive, _send):
        await asyncio.sleep(0.02)
        assert await receive() == EMPTY
        got.extend(await asyncio.gather(receive(), receive()))
        got.append(await receive())

    async def main():
        async with served(app, guards=[db]) as connection:
            await asyncio.sleep(0.05)
            connection.leave()

    asyncio.run(main())
    assert got == [GONE, GONE, GONE]


def test_starlette_asks_whether_the_client_has_left(db):
    """It calls receive() in a scope that is cancelled already: what is there must come without a wait."""
    asked = []

    async def endpoint(request: Request):
        for _ in range(4):
            await asyncio.sleep(0.005)
            asked.append(await request.is_disconnected())
        connection_of[0].leave()
        await asyncio.sleep(0.01)
        asked.append(await request.is_disconnected())
        return PlainTextResponse("fine")

    connection_of = []

    async def main():
        app = Starlette(routes=[Route("/", endpoint)])
        middleware = GuardrailsMiddleware(app, guards=[db], cancel_on_disconnect=True)
        connection_of.append(Connection(EMPTY))
        await middleware(http(), connection_of[0].receive, connection_of[0].send)

    asyncio.run(main())
    assert asked == [False] * 4 + [True]


@pytest.mark.parametrize("outside", [True, False])
def test_beside_a_base_http_middleware_of_starlette(db, outside):
    """It has a receive() of its own, which raises for a message out of turn."""
    errors = []

    async def dispatch(request, call_next):
        return await call_next(request)

    async def endpoint(_request):
        try:
            await db.run_async(asyncio.sleep, 60)
        except CallTimeoutError as error:
            errors.append(type(error))
            raise

    async def main():
        ours = Middleware(GuardrailsMiddleware, guards=[db], cancel_on_disconnect=True)
        theirs = Middleware(BaseHTTPMiddleware, dispatch=dispatch)
        app = Starlette(
            routes=[Route("/", endpoint)], middleware=[theirs, ours] if outside else [ours, theirs]
        )
        connection = Connection(EMPTY)
        request = asyncio.create_task(app(http(), connection.receive, connection.send))
        await steps()
        connection.leave()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(request, 20)

    asyncio.run(main())
    assert errors == [CallAbandonedError]


def test_a_body_that_waits_for_leave_is_not_asked_for(db):
    """With ``Expect`` the first receive() makes the server ask the client for its body."""

    async def app(_scope, receive, send):
        await asyncio.sleep(0.02)
        taken.append(connection_of[0].taken)
        await receive()
        await asyncio.sleep(0.02)
        taken.append(connection_of[0].receiving)
        await fine(None, None, send)

    taken, connection_of = [], []

    async def main():
        middleware = GuardrailsMiddleware(app, guards=[db], cancel_on_disconnect=True)
        connection = Connection(EMPTY)
        connection_of.append(connection)
        await middleware(http(headers=[("expect", "100-continue")]), connection.receive, connection.send)

    asyncio.run(main())
    assert taken == [0, 1], "behind the body it is listened for the disconnect"


def test_what_receive_raises_is_raised_where_the_application_asks(db):
    async def receive():
        raise OSError("the server is at fault")

    async def app(_scope, receive, send):
        await asyncio.sleep(0.02)
        for _ in range(2):
            with pytest.raises(OSError, match="at fault"):
                await receive()
        await fine(None, None, send)

    async def main():
        connection = Connection()
        middleware = GuardrailsMiddleware(app, guards=[db], cancel_on_disconnect=True)
        await middleware(http(), receive, connection.send)
        return connection.status

    assert asyncio.run(main()) == [200]


def test_a_server_whose_receive_never_waits_is_not_asked_for_ever(db):
    """Such a one is made by hand, in tests of applications."""
    asked = []

    async def receive():
        asked.append(1)
        return EMPTY

    async def app(_scope, _receive, send):
        await asyncio.sleep(0.05)
        await fine(None, None, send)

    async def main():
        connection = Connection()
        middleware = GuardrailsMiddleware(app, guards=[db], cancel_on_disconnect=True)
        await middleware(http(), receive, connection.send)

    asyncio.run(main())
    assert len(asked) == 2


def test_a_quick_request_costs_no_task(db, monkeypatch):
    monkeypatch.setattr(disconnect, "_LISTEN_AFTER", 20.0)
    tasks = []

    async def app(scope, receive, send):
        assert await receive() == EMPTY
        tasks.extend(asyncio.all_tasks())
        await fine(scope, receive, send)

    async def main():
        async with served(app, guards=[db]) as connection:
            assert connection.request.done()

    asyncio.run(main())
    assert len(tasks) == 2  # the test's own and the request


def test_the_application_itself_may_be_the_first_to_hear_of_it(db):
    """As Django and Starlette's streams do, which listen beside their work."""
    errors = []

    async def app(_scope, receive, _send):
        assert await receive() == EMPTY
        listening = asyncio.create_task(receive())
        try:
            await db.run_async(asyncio.sleep, 60)
        except CallAbandonedError as error:
            errors.append(error)
        assert await listening == GONE

    async def main():
        async with served(app, guards=[db]) as connection:
            connection.leave()

    asyncio.run(main())
    assert len(errors) == 1


def test_a_stream_of_starlette_ends_with_its_client(db):
    async def pieces():
        yield b"one"
        await db.run_async(asyncio.sleep, 60)

    async def endpoint(_request):
        return StreamingResponse(pieces())

    async def main():
        app = Starlette(routes=[Route("/", endpoint)])
        scope = http(asgi={"version": "3.0", "spec_version": "2.3"})
        async with served(app, scope=scope, guards=[db]) as connection:
            connection.leave()
        return connection

    asyncio.run(main())
    assert db.snapshot().in_use == 0


def test_a_response_in_one_message_completes_it(db):
    """``http.response.pathsend`` has no body behind it."""

    async def app(_scope, _receive, send):
        await asyncio.sleep(0.02)
        await send(dict(START))
        await send({"type": "http.response.pathsend", "path": "/file"})
        await asyncio.sleep(0.02)
        await db.run_async(asyncio.sleep, 0)

    async def main():
        async with served(app, guards=[db]) as connection:
            while not connection.sent[1:]:
                await asyncio.sleep(0)
            connection.leave()
        return connection.middleware.disconnects

    assert asyncio.run(main()) == 0


# --- middlewares ------------------------------------------------------------------------------------------


def test_nested_middlewares_listen_once(db):
    errors = []
    inner = GuardrailsMiddleware(in_a_call(db, errors), guards=[db], cancel_on_disconnect=True)

    async def main():
        async with served(inner, guards=[db]) as connection:
            connection.leave()
        return connection

    connection = asyncio.run(main())
    assert (len(errors), connection.middleware.disconnects, inner.disconnects) == (1, 1, 0)
    assert connection.status == [499]


def test_over_http_2_the_rest_of_a_body_is_read_before_the_answer(db):
    """hypercorn ends the whole connection for a piece that comes behind the answer."""

    async def app(_scope, receive, _send):
        await receive()
        await asyncio.sleep(0.02)
        db.force_open()
        await db.run_async(asyncio.sleep, 0)

    pieces = [piece(b"1"), piece(b"2"), piece(b"3", more=False)]

    async def main():
        scope = http(method="POST", http_version="2")
        async with served(app, *pieces, scope=scope, guards=[db], cancel_on_disconnect="all") as connection:
            pass
        return connection

    connection = asyncio.run(main())
    assert (connection.status, connection.taken) == ([503], 3)


def test_a_request_leaves_no_cycle_for_the_collector(db):
    seen = []

    async def app(_scope, receive, send):
        seen.append(weakref.ref(current().request))
        await asyncio.sleep(0.02)
        await fine(None, None, send)

    async def main():
        async with served(app, guards=[db]):
            pass
        await steps()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        assert seen[0]() is None
    finally:
        gc.enable()


WRONG = [1, 0, None, "", "ALL", "GET", "safe", {"GET"}, frozenset({"POST"}), ["all"], 2.0]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_wrong_value_is_named(value):
    with pytest.raises(ConfigurationError, match=r"cancel_on_disconnect must be True .*'all' or False"):
        GuardrailsMiddleware(fine, cancel_on_disconnect=value)


def test_wsgi_cannot_know_and_refuses_the_setting():
    for make in (
        lambda: wsgi.GuardrailsMiddleware(lambda *_: [], cancel_on_disconnect=True),
        lambda: Guardrails(flask.Flask("shop"), cancel_on_disconnect=True),
    ):
        with pytest.raises(ConfigurationError, match="cancel_on_disconnect"):
            make()


def test_an_answer_ends_before_the_client_leaves(db):
    """``END`` is the last piece of a stream."""

    async def app(_scope, _receive, send):
        await send(dict(START))
        await send(dict(CHUNK))
        await asyncio.sleep(0.02)
        await send(dict(END))
        await asyncio.sleep(0.02)
        await db.run_async(asyncio.sleep, 0)

    async def main():
        async with served(app, guards=[db]) as connection:
            while END not in connection.sent:
                await asyncio.sleep(0)
            connection.leave()
        return connection

    assert asyncio.run(main()).middleware.disconnects == 0
