"""Waiting for a slot at the edge: on the loop, before a thread is taken, and counted once."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute

from guardrails import Guard, protect
from guardrails.integrations.asgi import GuardrailsMiddleware, requires
from support.asgi_client import CHUNK, END, START, ask, cancel, fine, http, raising, serve, start, websocket

NEVER_ENTERED = raising(AssertionError("entered"))


def one_slot(**options):
    """A guard of one slot whose queue is patient."""
    return Guard("db", **({"max_concurrent_calls": 1, "max_wait_duration": 20, "timeout": None} | options))


def in_use(guard):
    return guard.snapshot().in_use


class CommandRunner:
    """An application whose requests hold a slot of a guard until they are told to end."""

    def __init__(self, guard):
        self.guard = guard
        self.entered = 0
        self.go_on = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.entered += 1
        async with self.guard.call():
            await self.go_on.wait()
        await fine(scope, receive, send)


def test_a_request_waits_outside_until_a_slot_is_free():
    """The application is not entered before, and nothing is counted twice."""

    async def main():
        db = one_slot()
        work = CommandRunner(db)
        app = GuardrailsMiddleware(work, requires={"/orders": [db]})
        first, second = await start(app, http("/orders")), await start(app, http("/orders"))
        assert (work.entered, in_use(db), db.snapshot().waiting) == (1, 1, 1)
        work.go_on.set()
        assert [(await one).status for one in (first, second)] == [200, 200]
        assert (in_use(db), db.snapshot().succeeded) == (0, 2)

    asyncio.run(main())


def test_a_request_that_waited_in_vain_is_refused_outside():
    """503 with a time to come back; neither the body nor a thread was spent on it."""
    db = one_slot(max_wait_duration=0.01)
    app = GuardrailsMiddleware(NEVER_ENTERED, requires={"/": [db]}, random=lambda: 0.0)
    with db.call():
        seen = ask(app, http(method="POST"))
    assert (seen.status, seen.received, seen.problem["code"]) == (503, 0, "queue_timeout")
    assert seen.headers["retry-after"] == "1"
    assert db.snapshot().rejected == {"queue_timeout": 1}


def test_the_queue_is_bounded():
    """Who finds it full is refused at once."""

    async def main():
        db = one_slot(max_waiting=1)
        work = CommandRunner(db)
        app = GuardrailsMiddleware(work, requires={"/": [db]})
        admitted = [await start(app), await start(app)]
        assert (await serve(app)).problem["code"] == "bulkhead_full"
        work.go_on.set()
        assert [(await one).status for one in admitted] == [200, 200]

    asyncio.run(main())


def test_nobody_waits_in_front_of_an_open_circuit():
    """All circuits are asked before the first queue is joined."""
    db, cache = one_slot(), one_slot()
    cache.force_open()
    with db.call():
        seen = ask(GuardrailsMiddleware(NEVER_ENTERED, requires={"/": [db, cache]}))
    assert (seen.problem["code"], db.snapshot().rejected) == ("circuit_open", {})


def test_those_who_wait_are_sent_away_when_the_circuit_opens():
    """At once, not when their patience ends."""

    async def main():
        db = one_slot()
        work = CommandRunner(db)
        app = GuardrailsMiddleware(work, requires={"/": [db]})
        first, second = await start(app), await start(app)
        db.force_open()
        assert (await second).problem["code"] == "circuit_open"
        work.go_on.set()
        assert (await first).status == 200

    asyncio.run(main())


def test_a_request_that_is_cancelled_in_the_queue_leaves_nothing():
    """A server that shuts down may do so; autouse checks look for what is left."""

    async def main():
        db = one_slot()
        app = GuardrailsMiddleware(NEVER_ENTERED, requires={"/": [db]})
        async with db.call():
            waiting = await start(app)
            assert db.snapshot().waiting == 1
            await cancel(waiting)
        assert (in_use(db), db.snapshot().waiting) == (0, 0)

    asyncio.run(main())


def test_the_clients_time_bounds_the_wait():
    """Who will be gone in a moment is not kept in the queue for longer."""
    db = one_slot()
    app = GuardrailsMiddleware(NEVER_ENTERED, requires={"/": [db]}, deadline_headers=["X-Request-Timeout-Ms"])
    with db.call():
        seen = ask(app, http(headers=[("x-request-timeout-ms", "20")]))
    assert seen.problem["code"] == "deadline_spent"


def test_a_request_without_time_left_takes_no_slot(clock):
    """It would be refused inside as well."""
    db = one_slot(clock=clock)
    app = GuardrailsMiddleware(NEVER_ENTERED, requires={"/": [db]}, request_timeout=1, clock=clock)

    async def late(scope, receive, send):
        clock.advance(2)
        await app(scope, receive, send)

    seen = ask(GuardrailsMiddleware(late, request_timeout=1, clock=clock))
    assert (seen.problem["code"], db.snapshot().admitted) == ("deadline_spent", 0)


def test_an_unused_slot_goes_back_when_the_answer_begins():
    """A stream of an hour that never needed the database holds nothing of it."""
    db = one_slot()
    seen = []

    async def stream(_scope, _receive, send):
        seen.append(in_use(db))
        await send(dict(START))
        seen.append(in_use(db))
        await send(dict(CHUNK))
        with db.call():  # what it needs from now on it asks for itself
            await send(dict(END))

    assert ask(GuardrailsMiddleware(stream, requires={"/": [db]})).status == 200
    assert (seen, in_use(db)) == ([1, 0], 0)


@pytest.mark.parametrize("ending", [fine, raising(RuntimeError("bug")), raising(KeyboardInterrupt())])
def test_an_unused_slot_goes_back_however_the_request_ends(ending):
    """Once, and it is no evidence."""
    db = one_slot()

    async def main():
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            await GuardrailsMiddleware(ending, requires=[db])(http(), None, _nowhere)

    asyncio.run(main())
    assert (in_use(db), db.snapshot().calls) == (0, 0)


async def _nowhere(_message):
    pass


def test_a_background_task_asks_for_its_own_slot():
    """It runs after the answer, with no slot of its request."""
    db = one_slot(max_wait_duration=0)
    seen = []

    def later():
        with db.call():
            seen.append(in_use(db))

    async def endpoint(_request):
        with db.call():
            return PlainTextResponse("fine", background=BackgroundTask(later))

    app = GuardrailsMiddleware(Starlette(routes=[Route("/", endpoint)]), requires=[db])
    assert (ask(app).status, seen) == (200, [1])


def test_middleware_inside_middleware_reserves_once():
    """One slot does for both."""
    db = one_slot(max_wait_duration=0)

    async def app(scope, receive, send):
        assert in_use(db) == 1
        with db.call():
            await fine(scope, receive, send)

    inner = GuardrailsMiddleware(app, requires=[db])
    assert ask(GuardrailsMiddleware(inner, requires=[db])).status == 200


def test_a_compartments_request_needs_a_slot_in_both():
    """The rest of the parent stays free for the others."""

    async def main():
        db = one_slot(max_concurrent_calls=3, max_wait_duration=0)
        reports = db.compartment("reports", max_concurrent_calls=1)
        report, order = CommandRunner(reports), CommandRunner(db)

        async def shop(scope, receive, send):
            await (report if scope["path"] == "/reports" else order)(scope, receive, send)

        app = GuardrailsMiddleware(shop, requires={"/reports": [reports], "/": [db]})
        inside = [await start(app, http("/reports"))]
        problem = (await serve(app, http("/reports"))).problem
        assert (problem["guard"], problem["compartment"]) == ("db", "reports")
        assert (in_use(reports), in_use(db)) == (1, 1)
        inside += [await start(app, http("/orders")) for _ in range(2)]
        problem = (await serve(app, http("/orders"))).problem
        assert (problem["guard"], problem.get("compartment")) == ("db", None)
        assert (in_use(reports), in_use(db)) == (1, 3)
        report.go_on.set()
        order.go_on.set()
        assert [(await one).status for one in inside] == [200, 200, 200]

    asyncio.run(main())


def test_who_is_exempt_does_not_wait():
    """A health check is answered whatever is full."""
    db = one_slot()
    app = GuardrailsMiddleware(fine, requires=[db], exempt=["/health"])
    with db.call():
        assert ask(app, http("/health")).status == 200


def test_a_full_server_is_told_before_the_wait():
    """Nobody queues for a slot to be told then that the server is full."""

    async def main():
        db = one_slot()
        work = CommandRunner(db)
        app = GuardrailsMiddleware(work, requires=[db], max_in_flight=1)
        first = await start(app)
        assert "guard" not in (await serve(app)).problem
        assert db.snapshot().waiting == 0
        work.go_on.set()
        assert (await first).status == 200

    asyncio.run(main())


def test_a_websocket_holds_nothing():
    """It may last for hours; only the circuit is asked."""
    db = one_slot()

    async def accepting(_scope, _receive, send):
        assert in_use(db) == 0
        await send({"type": "websocket.accept"})

    app = GuardrailsMiddleware(accepting, requires=[db])
    assert ask(app, websocket()).sent == [{"type": "websocket.accept"}]
    db.force_open()
    assert ask(app, websocket()).status == 503


# --- a pool's checkouts ----------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path):
    """An engine with one connection, and its guard, which does not wait."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", pool_size=1, max_overflow=0)
    guard = protect(engine, name="db", max_wait_duration=0)
    yield engine, guard
    engine.dispose()


def query(engine):
    with engine.connect() as connection:
        return connection.execute(text("select 1")).scalar()


def test_the_first_checkout_takes_the_slot_over(pool):
    """In a worker thread as well, and the next one in the same request is an ordinary checkout."""
    engine, db = pool
    app = FastAPI()

    @app.get("/orders")
    def orders():
        assert in_use(db) == 1
        with engine.connect() as connection:
            assert in_use(db) == 1
            connection.execute(text("select 1"))
        assert in_use(db) == 0
        return [threading.current_thread() is not threading.main_thread(), query(engine)]

    seen = ask(GuardrailsMiddleware(app, requires={"/orders": [db]}), http("/orders"))
    assert (seen.status, seen.body) == (200, b"[true,1]")


def test_a_second_checkout_at_once_is_no_free_rider(pool):
    """One request reserves one slot; what else it takes is counted, and refused."""
    engine, db = pool

    def orders(_request):
        with engine.connect():
            query(engine)

    app = Starlette(routes=[Route("/", orders)])
    seen = ask(GuardrailsMiddleware(app, requires=[db]))
    assert (seen.problem["code"], in_use(db)) == ("bulkhead_full", 0)


def test_a_detached_guard_is_harmless(pool):
    """Its slots are still counted at the edge; the pool knows nothing of them."""
    engine, db = pool

    def orders(_request):
        return PlainTextResponse(str(query(engine)))

    app = GuardrailsMiddleware(Starlette(routes=[Route("/", orders)]), requires=[db])
    db.detach()
    seen = ask(app)
    assert (seen.status, seen.body, in_use(db)) == (200, b"1", 0)


# --- other ways to say what is required ------------------------------------------------------------


def forced_open(name="db"):
    guard = Guard(name, max_concurrent_calls=3)
    guard.force_open()
    return guard


@pytest.mark.parametrize(
    ("path", "guard"),
    [
        ("/orders/7", "one"),
        ("/orders/", "all"),
        ("/orders", "all"),
        ("/orders/7/lines", "lines"),
        ("/orders/7/lines/8", "all"),
        ("/files/a/b/c", "files"),
        ("/files/", None),
        ("/orders-old", None),
        ("/orders/" + "7" * 60_000, "one"),
        ("/orders/\n", "one"),
    ],
)
def test_templates_come_before_paths(path, guard):
    """A template covers paths of its form alone; of the rest the longest path decides."""
    app = GuardrailsMiddleware(
        fine,
        requires={
            "/orders": [forced_open("all")],
            "/orders/{id}": [forced_open("one")],
            "/orders/{id:int}/lines": [forced_open("lines")],
            "/files/{name:path}": [forced_open("files")],
        },
    )
    seen = ask(app, http(path))
    assert (None if seen.status == 200 else seen.problem["guard"]) == guard


def marked(db):
    """Endpoints of which one cannot do without the guard."""

    @requires(db)
    async def orders(_request):
        raise AssertionError("entered")

    async def other(_request):
        return PlainTextResponse("fine")

    async def feed(websocket):
        raise AssertionError("entered")

    return [
        Route("/orders/{id:int}", orders),
        Route("/other", other),
        WebSocketRoute("/feed", requires(db)(feed)),
        Mount("/shop", routes=[Route("/orders/{id}", orders), Route("/other", other)]),
    ]


@pytest.mark.parametrize("install", ["added", "wrapped"])
def test_an_endpoint_says_what_it_requires(install):
    """Found by the route the request will take, below mounts too."""
    db = forced_open()
    app = Starlette(routes=marked(db))
    if install == "added":
        app.add_middleware(GuardrailsMiddleware)
    else:
        app = GuardrailsMiddleware(app)
    statuses = {
        path: ask(app, http(path)).status
        for path in ("/orders/7", "/shop/orders/x", "/other", "/shop/other", "/orders/x", "/shop/none")
    }
    assert statuses == {
        "/orders/7": 503,
        "/shop/orders/x": 503,
        "/other": 200,
        "/shop/other": 200,
        "/orders/x": 404,
        "/shop/none": 404,
    }
    assert ask(app, http("/orders/7", method="POST")).status == 405
    assert ask(app, websocket("/feed")).status == 503


def test_a_routes_own_middleware_requires_for_all_of_it():
    """A list of guards holds for every request that comes through."""
    db = forced_open()

    async def endpoint(_request):
        return PlainTextResponse("fine")

    app = Starlette(
        routes=[
            Route("/orders", endpoint, middleware=[Middleware(GuardrailsMiddleware, requires=[db])]),
            Route("/other", endpoint),
        ]
    )
    assert (ask(app, http("/orders")).status, ask(app, http("/other")).status) == (503, 200)


def test_requires_is_for_guards():
    """A wrong argument is found where it is written."""
    with pytest.raises(TypeError, match="write @requires"):
        requires("db")
    with pytest.raises(TypeError, match="write @requires"):
        requires(lambda: None)
