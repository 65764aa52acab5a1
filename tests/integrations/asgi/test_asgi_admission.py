"""Who is let into the application: in-flight limit, required guards, exempt paths."""

from __future__ import annotations

import asyncio
import random

import pytest

from guardrails import CallTimeoutError, Guard
from guardrails._runtime.scope import current, note_guard_error
from guardrails.errors import ShedError
from guardrails.events import CallRejected
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import CHUNK, END, START, ask, cancel, fine, http, raising, serve, start, websocket
from support.calls import tripping


class Hall:
    """An application whose requests stay until they are let go, and then do what they were told."""

    def __init__(self, *script):
        self.script = script
        self.open = asyncio.Event()
        self.inside = 0
        self.most = 0

    async def __call__(self, _scope, receive, send):
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.open.wait()
            for step in self.script or (START, END):
                if isinstance(step, BaseException):
                    raise step
                await send(dict(step))
        finally:
            self.inside -= 1


# --- max_in_flight ---------------------------------------------------------------------------------


def test_so_many_and_no_more():
    """The request beyond the limit is answered at once, unread; a free place is taken again."""

    async def main():
        hall = Hall()
        app = GuardrailsMiddleware(hall, max_in_flight=2, random=lambda: 0.0)
        inside = [await start(app) for _ in range(2)]
        refused = await serve(app)
        assert (refused.status, refused.received, app.in_flight) == (503, 0, 2)
        assert refused.problem["code"] == "bulkhead_full"
        assert "guard" not in refused.problem
        assert refused.headers["retry-after"] == "1"
        hall.open.set()
        assert [(await one).status for one in inside] == [200, 200]
        assert (await serve(app)).status == 200
        assert (app.in_flight, hall.most) == (0, 2)

    asyncio.run(main())


@pytest.mark.parametrize(
    "script",
    [
        (START, END),
        (START, CHUNK, CHUNK, END),
        (KeyError("bug"),),
        (START, CHUNK, KeyError("bug")),
        (START, END, KeyError("bug")),
        (ShedError("db", "shed"),),
        (START, CHUNK, ShedError("db", "shed")),
        (GeneratorExit(),),
    ],
    ids=[
        "plain",
        "stream",
        "bug",
        "bug in mid-stream",
        "late bug",
        "refused",
        "refused late",
        "no Exception",
    ],
)
def test_place_is_given_back_however_it_ends(script):
    """A stream keeps its place to its last piece; every end gives back one place."""

    async def main():
        hall = Hall(*script)
        app = GuardrailsMiddleware(hall, max_in_flight=3)
        inside = [await start(app) for _ in range(2)]
        assert app.in_flight == 2
        hall.open.set()
        await asyncio.gather(*inside)
        assert (app.in_flight, current()) == (0, None)

    asyncio.run(main())


def test_cancelled_request_gives_its_place_back():
    """A server that cancels a request, as for a client that left, frees its place."""

    async def main():
        app = GuardrailsMiddleware(Hall(), max_in_flight=1)
        await cancel(await start(app))
        assert app.in_flight == 0

    asyncio.run(main())


def test_slow_client_keeps_its_place():
    """While the server waits for a client to take the response, the request is still inside."""

    async def main():
        stuck = asyncio.Event()

        async def on_send(_message):
            await stuck.wait()

        app = GuardrailsMiddleware(fine, max_in_flight=1)
        reading = await start(app, on_send=on_send)
        assert (await serve(app)).status == 503
        stuck.set()
        assert (await reading).status == 200
        assert app.in_flight == 0

    asyncio.run(main())


def test_threads_cannot_overbook():
    """Two event loops in two threads share one limit."""

    async def one(app):
        return [(await serve(app)).status for _ in range(200)]

    async def app(_scope, _receive, send):
        assert middleware.in_flight <= 3
        await asyncio.sleep(0)
        await fine(_scope, _receive, send)

    middleware = GuardrailsMiddleware(app, max_in_flight=3)

    async def main():
        threads = [asyncio.to_thread(asyncio.run, one(middleware)) for _ in range(6)]
        return await asyncio.gather(*threads)

    statuses = {status for each in asyncio.run(main()) for status in each}
    assert statuses <= {200, 503}
    assert middleware.in_flight == 0


# --- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "path", "covered"),
    [
        ("/health", "/health", True),
        ("/health", "/health/", True),
        ("/health", "/health/db", True),
        ("/health", "/healthy", False),
        ("/health", "/", False),
        ("/health", "/v1/health", False),
        ("/health", "/HEALTH", False),
        ("/health", "//health", False),
        ("/health/", "/health", True),
        ("/", "/anything", True),
        ("/", "/", True),
        ("/", "*", False),
        ("/caf\u00e9", "/caf\u00e9/x", True),
    ],
)
def test_path_covers_itself_and_below(entry, path, covered):
    """One rule for every path in the settings."""
    middleware = GuardrailsMiddleware(fine, requires={entry: [refusing()]})
    assert (ask(middleware, http(path, raw_path=b"")).status == 503) is covered


@pytest.mark.parametrize(
    ("root", "path", "covered"),
    [
        ("/api", "/api/orders", True),  # as servers say it: the whole path
        ("/api", "/orders", True),  # as some proxies and older servers say it: the rest
        ("/api", "/api-v2/orders", False),
        ("", "/orders", True),
        ("/orders", "/orders", False),
    ],
)
def test_path_is_counted_from_the_mount(root, path, covered):
    """Settings say paths as the application's routes do, wherever it is mounted."""
    middleware = GuardrailsMiddleware(fine, requires={"/orders": [refusing()]})
    assert (ask(middleware, http(path, root_path=root)).status == 503) is covered


def test_exempt_paths_bypass_both():
    """A health check gets in when everything is full and open, and does not count."""

    async def main():
        hall = Hall()
        app = GuardrailsMiddleware(hall, max_in_flight=1, requires={"/": [refusing()]}, exempt=["/livez"])
        inside = [await start(app, http("/livez")) for _ in range(5)]
        assert (hall.inside, app.in_flight) == (5, 0)
        assert (await serve(app, http("/orders"))).status == 503
        hall.open.set()
        assert {(await one).status for one in inside} == {200}

    asyncio.run(main())


def test_exempt_websocket_is_let_through():
    """The same rule for handshakes."""
    accept = {"type": "websocket.accept"}

    async def app(_scope, _receive, send):
        await send(accept)

    middleware = GuardrailsMiddleware(app, requires={"/": [refusing()]}, exempt=["/live"])
    assert ask(middleware, websocket("/live")).sent == [accept]


def test_longest_path_decides():
    """A path below another one has its own needs, which may be none."""
    middleware = GuardrailsMiddleware(
        fine, requires={"/": [refusing("all")], "/reports": [refusing("reports")], "/reports/cached": []}
    )
    assert ask(middleware, http("/x")).problem["guard"] == "all"
    assert ask(middleware, http("/reports/1")).problem["guard"] == "reports"
    assert ask(middleware, http("/reports/cached")).status == 200


# --- requires --------------------------------------------------------------------------------------


def refusing(name="db"):
    """A guard that is held open by hand."""
    guard = Guard(name, max_concurrent_calls=3)
    guard.force_open()
    return guard


def test_refused_before_anything_is_spent():
    """While the circuit is open the application is not entered and the body is not read."""
    heard = []
    db = Guard("db", max_concurrent_calls=3, listeners=[heard.append])
    db.force_open()
    middleware = GuardrailsMiddleware(raising(AssertionError("entered")), requires={"/orders": [db]})
    seen = ask(middleware, http("/orders/7", method="POST"))
    assert (seen.status, seen.received, seen.raised) == (503, 0, None)
    assert "retry-after" not in seen.headers
    assert [type(event) for event in heard].count(CallRejected) == 1
    assert db.snapshot().rejected == {"circuit_open": 1}


def test_required_guard_need_not_be_among_the_guards():
    """What is required is answered for at the edge, whatever ``guards`` says about errors from inside."""
    other = Guard("other", max_concurrent_calls=1)
    assert ask(GuardrailsMiddleware(fine, guards=[other], requires={"/": [refusing()]})).status == 503


def test_compartment_requires_its_parent_too():
    """A compartment's calls pass both gates, so both are asked."""
    db = Guard("db", max_concurrent_calls=10)
    part = db.compartment("reports")
    middleware = GuardrailsMiddleware(fine, requires={"/": [part]})
    assert ask(middleware).status == 200
    db.force_open()
    assert ask(middleware).problem["guard"] == "db"


def test_probes_get_through(make_guard, clock):
    """In half-open the edge lets in as many requests as there are probes to make, and they close it."""

    async def main():
        db = make_guard(breaker=tripping(permitted_calls_in_half_open_state=2))
        hall = Hall()

        async def app(scope, receive, send):
            async with db.call():
                await hall(scope, receive, send)

        middleware = GuardrailsMiddleware(app, requires={"/": [db]})
        db._gate.step(db._gate.core.set_state, "open")
        refused = await serve(middleware)
        assert (refused.status, hall.inside) == (503, 0)
        assert int(refused.headers["retry-after"]) >= 5
        clock.advance(5)
        probes = [await start(middleware) for _ in range(2)]
        assert (hall.inside, db.state) == (2, "half_open")
        assert (await serve(middleware)).status == 503
        hall.open.set()
        assert [(await probe).status for probe in probes] == [200, 200]
        assert db.state == "closed"
        assert (await serve(middleware)).status == 200

    asyncio.run(main())


# --- everything at once ----------------------------------------------------------------------------


def script(dice):
    """What an application does in one request: messages, trouble, pauses, and perhaps an error."""
    own, foreign = ShedError("db", "shed"), CallTimeoutError("cache", 1.0)
    errors = [own, foreign, KeyError("bug"), ExceptionGroup("", [own]), GeneratorExit(), OSError()]
    status = dice.choice([200, 404, 500, 500, 503])
    response = [START | {"status": status}, *([CHUNK] * dice.choice([0, 0, 1, 3])), END]
    steps = response[: dice.randint(0, len(response))]
    for extra in dice.choices([own, foreign, "pause"], k=dice.randint(0, 3)):
        steps.insert(dice.randint(0, len(steps)), extra)
    return steps, dice.choice([None, *errors])


def playing(steps, error):
    """An application that does so."""

    async def app(_scope, _receive, send):
        for step in steps:
            if step == "pause":
                await asyncio.sleep(0)
            elif isinstance(step, Exception):
                note_guard_error(step)
            else:
                await send(dict(step))
        if error is not None:
            raise error

    return app


async def one_request(dice, middleware, steps, error):
    """Plays one script, cancelled at a random moment or to its end; checks what came of it."""
    task = asyncio.create_task(serve(middleware))
    if dice.random() < 0.2:
        for _ in range(dice.randint(0, 3)):
            await asyncio.sleep(0)
        if not task.done():
            await cancel(task)
            return
    seen = await task
    types = [message["type"] for message in seen.sent]
    assert types.count("http.response.start") <= 1
    assert "http.response.start" not in types[1:]
    assert seen.raised is None or seen.raised is error
    answered = [message for message in seen.sent if message.get("headers")]
    if answered:  # only our answers have headers here
        assert seen.status in {503, 504}
        assert seen.problem["guard"] == "db"
        assert seen.raised is None
    else:
        own = [step for step in steps if isinstance(step, dict)]
        # What is no Exception leaves no time to send what was held back: the server answers then.
        assert seen.sent == own or (isinstance(error, GeneratorExit) and not seen.sent)
        assert seen.raised is error


def test_application_that_misbehaves_in_every_phase():
    """Whatever an application does: one answer at most, its own or ours, its own error or none."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)

    async def main():
        for _ in range(3000):
            steps, error = script(dice)
            middleware = GuardrailsMiddleware(
                playing(steps, error), guards=[db], max_in_flight=1, request_timeout=5.0
            )
            await one_request(dice, middleware, steps, error)
            assert (middleware.in_flight, current()) == (0, None), f"seed {seed}: {steps} {error!r}"

    db = Guard("db", max_concurrent_calls=1)
    try:
        asyncio.run(main())
    except AssertionError as failure:
        raise AssertionError(f"seed {seed}") from failure
