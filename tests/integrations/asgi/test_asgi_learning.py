"""Learned routes: a guard that nearly all requests of an endpoint come to, and that one of them failed
without, is required of the next, as if declared. One that an endpoint is answered well without is not: see
test_handled_refusals.py.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from guardrails import Guard
from guardrails._http.route_stats import HALVED_AFTER, MAXIMUM_GUARDS, MINIMUM_REQUESTS, PROMPT_WITHIN
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import ask, fine, http, serve, start
from support.calls import tripping


class Shop:
    """Two endpoints: one that needs the guard as often as it is told to, one that never does."""

    def __init__(self, guard, *, before=lambda: None):
        self.guard = guard
        self.before = before
        self.touching = True
        self.orders_entered = 0

    async def orders(self, _request):
        self.orders_entered += 1
        self.before()
        if self.touching:
            await self.guard.run_async(asyncio.sleep, 0)
        return PlainTextResponse("orders")

    async def about(self, _request):
        return PlainTextResponse("about")

    def starlette(self):
        return Starlette(routes=[Route("/orders/{id}", self.orders), Route("/about", self.about)])


def visit(app, path="/orders/7", times=MINIMUM_REQUESTS):
    """Visits a page so often that it has habits."""
    return [ask(app, http(path)).status for _ in range(times)]


def entered(shop, app, path="/orders/7"):
    """Whether a request of a page gets into the application."""
    before = shop.orders_entered
    ask(app, http(path))
    return shop.orders_entered > before


@pytest.fixture
def db(make_guard):
    return make_guard(max_wait_duration=0, breaker=tripping(permitted_calls_in_half_open_state=1))


def need(db, app, *paths):
    """Shows of pages that they need a guard: a refusal of it becomes the answer of one request."""
    state = db.state
    db.force_open()
    for path in paths or ["/orders/7"]:
        ask(app, http(path))
    if state == "closed":
        db.reset()


def fail(db):
    """Opens the circuit."""
    with contextlib.suppress(ConnectionError):
        db.run(_broken)
    assert db.state == "open"


def _broken():
    raise ConnectionError


@pytest.mark.parametrize("install", ["added", "wrapped"])
def test_a_learned_route_is_refused_at_the_edge(db, install, clock):
    """The endpoint is not entered any more, for no path of its template; others are."""
    shop = Shop(db)
    app = shop.starlette()
    if install == "added":
        app.add_middleware(GuardrailsMiddleware, guards=[db], clock=clock)
    else:
        app = GuardrailsMiddleware(app, guards=[db], clock=clock)
    assert visit(app) == [200] * MINIMUM_REQUESTS
    visit(app, "/about")
    fail(db)
    assert (ask(app, http("/orders/first")).status, shop.orders_entered) == (503, MINIMUM_REQUESTS + 1)
    refused = ask(app, http("/orders/never-seen"))
    assert (refused.status, refused.problem["guard"], refused.received) == (503, "db", 0)
    assert shop.orders_entered == MINIMUM_REQUESTS + 1
    assert ask(app, http("/about")).status == 200


def test_the_probes_get_through_and_bring_it_back(db, clock):
    """As many as the half-open circuit wants, no more."""

    async def main():
        go_on = asyncio.Event()
        slow = False

        async def orders(_request):
            async with db.call():
                if slow:
                    await go_on.wait()
            return PlainTextResponse("fine")

        app = GuardrailsMiddleware(Starlette(routes=[Route("/", orders)]), clock=clock)
        for _ in range(MINIMUM_REQUESTS):
            assert (await serve(app)).status == 200
        fail(db)
        assert (await serve(app)).status == 503
        clock.advance(5)
        slow = True
        probe = await start(app)
        assert (db.state, (await serve(app)).status) == ("half_open", 503)
        go_on.set()
        assert ((await probe).status, db.state, (await serve(app)).status) == (200, "closed", 200)

    asyncio.run(main())


def test_a_learned_route_waits_outside(clock):
    """The slot is reserved before the endpoint is entered, once the route has shown that it needs one."""

    async def main():
        db = Guard("db", max_concurrent_calls=1, max_wait_duration=20, timeout=None)
        shop = Shop(db)
        app = GuardrailsMiddleware(shop.starlette(), clock=clock)
        for _ in range(MINIMUM_REQUESTS):
            await serve(app, http("/orders/7"))
        async with db.call():
            unknown = await start(app, http("/orders/7"))
            assert (db.snapshot().waiting, shop.orders_entered) == (1, MINIMUM_REQUESTS + 1)
        assert (await unknown).status == 200
        db.force_open()
        assert (await serve(app, http("/orders/7"))).status == 503
        db.reset()
        async with db.call():
            waiting = await start(app, http("/orders/7"))
            assert (db.snapshot().waiting, shop.orders_entered) == (1, MINIMUM_REQUESTS + 2)
        assert (await waiting).status == 200

    asyncio.run(main())


def test_it_can_be_switched_off(db, clock):
    """Then every request gets to its endpoint."""
    shop = Shop(db)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock, learn_routes=False)
    visit(app)
    need(db, app)
    fail(db)
    assert entered(shop, app)


def test_who_is_exempt_is_let_in(db, clock):
    """Whatever was learned."""
    shop = Shop(db)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock, exempt=["/orders"])
    visit(app)
    need(db, app)
    fail(db)
    assert entered(shop, app)


def test_a_guard_that_is_not_ours_is_not_learned(db, clock):
    """With guards given, what another one refuses is the application's business."""
    shop = Shop(db)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock, guards=[Guard("other", max_concurrent_calls=1)])
    visit(app)
    need(db, app)
    fail(db)
    assert entered(shop, app)


@pytest.mark.parametrize(("share", "refused"), [(1, True), (2, False)])
def test_nearly_all_means_all_but_one_in_twenty(db, share, refused, clock):
    """One request in twenty that does without is no reason to let the others in; one in ten is."""
    shop = Shop(db)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock)
    need(db, app)
    for number in range(5 * MINIMUM_REQUESTS):
        shop.touching = number % 20 >= share
        ask(app, http("/orders/7"))
    shop.touching = True
    fail(db)
    assert entered(shop, app) is not refused


def test_a_route_that_changes_its_ways_is_known_anew(db, clock):
    """After a few hundred requests nothing is left of the old habit."""
    shop = Shop(db)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock)
    visit(app, times=HALVED_AFTER)
    need(db, app)
    shop.touching = False
    visit(app, times=HALVED_AFTER)
    fail(db)
    assert entered(shop, app)


def test_requests_in_trouble_do_not_unteach(db, make_guard, clock):
    """A request that was refused by one guard never got to the other."""
    cache = make_guard("cache")

    async def orders(_request):
        await cache.run_async(asyncio.sleep, 0)
        await db.run_async(asyncio.sleep, 0)
        return PlainTextResponse("fine")

    app = GuardrailsMiddleware(Starlette(routes=[Route("/", orders)]), guards=[db], clock=clock)
    visit(app, "/")
    need(db, app, "/")
    cache.force_open()
    for _ in range(HALVED_AFTER):
        assert ask(app).raised.guard == "cache"
    cache.reset()
    fail(db)
    refused = ask(app)
    assert (refused.received, refused.problem["guard"], cache.snapshot().succeeded) == (
        0,
        "db",
        MINIMUM_REQUESTS + 1,
    )


def test_no_slot_is_held_for_a_route_that_needs_it_late(db, clock):
    """It would be missing to the others meanwhile. While the circuit is open it is refused all the same."""
    seen = []

    def talk_to_somebody_else():
        seen.append(db.snapshot().in_use)
        clock.advance(2 * PROMPT_WITHIN)

    shop = Shop(db, before=talk_to_somebody_else)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock)
    visit(app)
    need(db, app)
    visit(app, times=1)
    assert seen[-1] == 0
    fail(db)
    assert not entered(shop, app)


def test_a_slot_is_held_for_a_route_that_needs_it_at_once(db, clock):
    """The counterpart of the above."""
    seen = []
    shop = Shop(db, before=lambda: seen.append(db.snapshot().in_use))
    app = GuardrailsMiddleware(shop.starlette(), clock=clock)
    visit(app)
    need(db, app)
    visit(app, times=1)
    assert seen == [0] * (MINIMUM_REQUESTS + 1) + [1]


def test_memory_grows_with_routes_and_not_with_paths(db, make_guard, clock):
    """Thousands of paths are one template; an endpoint that touches everything remembers a few."""
    shop = Shop(db)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock)
    for number in range(1000):
        ask(app, http(f"/orders/{number}"))
        ask(app, http(f"/nowhere/{number}"))
    assert len(app._table.known) == 2
    guards = iter([make_guard(str(number)) for number in range(3 * MAXIMUM_GUARDS)])
    shop.before = lambda: next(guards).run(len, "x")
    visit(app, times=3 * MAXIMUM_GUARDS)
    route, _ = app._table.find(None, "/orders/7", "GET")
    [stats] = route.stats.values()
    assert len(stats._counts) <= MAXIMUM_GUARDS


def test_a_pools_habits_end_with_its_guard(db, clock):
    """What was taken off an engine is not asked for any more."""
    shop = Shop(db)
    app = GuardrailsMiddleware(shop.starlette(), clock=clock)
    db.call_settings.attached = True
    visit(app)
    need(db, app)
    db.call_settings.attached = False
    db.force_open()
    assert entered(shop, app)


def test_where_no_routes_can_be_seen_nothing_is_learned(db):
    """An application of another kind is served as it was; it declares what it requires."""

    async def app(scope, receive, send):
        await db.run_async(fine, scope, receive, send)

    middleware = GuardrailsMiddleware(app)
    visit(middleware, "/")
    fail(db)
    assert ask(middleware).status == 503
    assert not middleware._table.needs_guards


def test_routers_mounts_and_late_routes_are_found(db, clock):
    """FastAPI's included routers, Starlette's mounts, an application inside another, late routes."""
    shop = Shop(db)

    async def orders():
        await shop.orders(None)

    router = APIRouter(prefix="/v1")
    router.add_api_route("/orders/{id}", orders)
    inner = FastAPI()
    inner.add_api_route("/orders/{id}", orders, methods=["GET", "POST"])
    app = FastAPI()
    app.include_router(router, prefix="/api")
    app.mount("/inner", inner)
    app.router.routes.append(Mount("/plain", routes=[Route("/{any}/{id}", shop.orders)]))
    middleware = GuardrailsMiddleware(app, clock=clock)
    paths = ["/api/v1/orders/7", "/inner/orders/7", "/plain/x/7"]
    for path in paths:
        assert visit(middleware, path) == [200] * MINIMUM_REQUESTS
    app.router.routes.append(Route("/later/{id}", lambda _request: PlainTextResponse(str(db.run(len, "x")))))
    visit(middleware, "/later/7")
    need(db, middleware, *paths)
    fail(db)
    assert [entered(shop, middleware, path) for path in paths] == [False] * 3
    assert ask(middleware, http("/later/9")).status == 503
    assert ask(middleware, http("/api/v1/nothing")).status == 404
