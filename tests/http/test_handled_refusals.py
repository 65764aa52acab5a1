"""Refusals that the application handles, in each framework: no need of its routes, no cause of its 500s."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import bottle
import flask
import litestar
import pytest
import redis
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from guardrails import BreakerPolicy, CallTimeoutError, Guard, RejectedError, guarded, protect
from guardrails._http.route_stats import MINIMUM_REQUESTS, REFUSALS_AFTER_A_GOOD_ANSWER, TRIAL_INTERVAL
from guardrails.integrations.asgi import GuardrailsMiddleware as ASGIMiddleware
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.redis import stale_if_error
from guardrails.integrations.wsgi import GuardrailsMiddleware as WSGIMiddleware
from support import (
    asgi_client,
    django_lab,  # noqa: F401 - configures Django
    wsgi_client,
)
from support.redis_lab import frozen


@dataclass
class Answer:
    """What an endpoint answers, in words of no framework."""

    text: str
    status: int = 200


PLACE = {}
"""What Django's views work with in the present test."""


# --- one endpoint in each framework ------------------------------------------------------------------


def starlette_app(work):
    async def endpoint(_request):
        answer = work()
        return PlainTextResponse(answer.text, answer.status)

    return Starlette(routes=[Route("/orders/{id}", endpoint)])


def fastapi_app(work):
    """With threads, and the application's own page for errors that nothing handled."""
    app = FastAPI()

    @app.get("/orders/{number}")
    def endpoint(number: int):
        answer = work()
        return PlainTextResponse(answer.text, answer.status)

    @app.exception_handler(Exception)
    async def page(_request, _error):
        return JSONResponse({"error": "ours"}, 500)

    return app


def litestar_app(work, **options):
    async def endpoint() -> litestar.Response[str]:
        answer = work()
        return litestar.Response(answer.text, status_code=answer.status)

    handler = litestar.get("/orders/7")(endpoint)
    return litestar.Litestar([handler], openapi_config=None, **options)


def flask_app(work):
    app = flask.Flask("shop")
    app.logger.disabled = True

    @app.get("/orders/<int:number>")
    def endpoint(number):
        answer = work()
        return answer.text, answer.status

    return app


def bottle_app(work):
    app = bottle.Bottle()

    @app.get("/orders/<number:int>")
    def endpoint(number):
        answer = work()
        return bottle.HTTPResponse(answer.text, answer.status)

    return app


def view(_request, number):
    answer = PLACE["work"]()
    return HttpResponse(answer.text, status=answer.status)


async def view_async(request, number):
    return view(request, number)


urlpatterns = [path("orders/<int:number>", view), path("orders-async/<int:number>", view_async)]


def asgi(app):
    return lambda: asgi_client.ask(app, asgi_client.http("/orders/7"))


def wsgi(app):
    return lambda: wsgi_client.ask(app, wsgi_client.environment("/orders/7"))


def in_starlette(work, **options):
    app = starlette_app(work)
    app.add_middleware(ASGIMiddleware, **options)
    return asgi(app)


def around_starlette(work, **options):
    return asgi(ASGIMiddleware(starlette_app(work), **options))


def in_fastapi(work, **options):
    app = fastapi_app(work)
    app.add_middleware(ASGIMiddleware, **options)
    return asgi(app)


def around_fastapi(work, **options):
    return asgi(ASGIMiddleware(fastapi_app(work), **options))


def in_litestar(work, **options):
    return asgi(litestar_app(work, middleware=[DefineMiddleware(ASGIMiddleware, **options)]))


def around_litestar(work, **options):
    return asgi(ASGIMiddleware(litestar_app(work), **options))


def in_flask(work, **options):
    app = flask_app(work)
    Guardrails(app, **options)
    return wsgi(app)


def around_flask(work, **options):
    return wsgi(WSGIMiddleware(flask_app(work), **_without_learning(options)))


def around_bottle(work, **options):
    return wsgi(WSGIMiddleware(bottle_app(work), **_without_learning(options)))


def _without_learning(options):
    return {name: value for name, value in options.items() if name != "learn_routes"}


def django(kind, middleware=("guardrails.integrations.django.GuardrailsMiddleware",), where="orders"):
    """Django under one kind of server."""

    def build(work, **options):
        PLACE["work"] = work
        changed = override_settings(MIDDLEWARE=[*middleware], ROOT_URLCONF=__name__, GUARDRAILS=options)
        PLACE["stack"].enter_context(changed)
        if kind == "WSGI":
            app = WSGIHandler() if middleware else WSGIMiddleware(WSGIHandler(), **_without_learning(options))
            return lambda: wsgi_client.ask(app, wsgi_client.environment(f"/{where}/7"))
        app = ASGIHandler() if middleware else ASGIMiddleware(ASGIHandler(), **options)
        return lambda: asgi_client.ask(app, asgi_client.http(f"/{where}/7"))

    return build


WAYS = {
    "in starlette": in_starlette,
    "around starlette": around_starlette,
    "in fastapi": in_fastapi,
    "around fastapi": around_fastapi,
    "in litestar": in_litestar,
    "around litestar": around_litestar,
    "in flask": in_flask,
    "around flask": around_flask,
    "around bottle": around_bottle,
    "in django, WSGI": django("WSGI"),
    "in django, ASGI": django("ASGI"),
    "in django, ASGI, async view": django("ASGI", where="orders-async"),
    "around django, WSGI": django("WSGI", ()),
    "around django, ASGI": django("ASGI", ()),
}
LEARNING = [name for name in WAYS if name.startswith("in ") and "litestar" not in name] + [
    "around starlette",
    "around fastapi",
]


@pytest.fixture
def build():
    """Makes a service around one endpoint; gives what asks it."""
    with contextlib.ExitStack() as stack:
        PLACE["stack"] = stack
        yield lambda way, work, **options: WAYS[way](work, **options)
    PLACE.clear()


# --- no need of the route ----------------------------------------------------------------------------


def with_a_fallback(cache):
    @guarded(cache, fallback=lambda _error: "fallback")
    def look():
        return "cached"

    return lambda: Answer(look())


def with_an_except(cache):
    def work():
        try:
            return Answer(cache.run(lambda: "cached"))
        except (RejectedError, CallTimeoutError):
            return Answer("fallback")

    return work


def with_a_second_source(cache):
    primary = Guard("primary", max_concurrent_calls=50)

    def work():
        for source in (cache, primary):
            with contextlib.suppress(RejectedError):
                return Answer(source.run(lambda: "row"))
        raise AssertionError("the primary is well")

    return work


@pytest.mark.sampled
@pytest.mark.parametrize("handled", [with_a_fallback, with_an_except, with_a_second_source])
@pytest.mark.parametrize("way", WAYS)
def test_route_that_is_answered_without_a_guard_is_never_refused_for_it(build, make_guard, way, handled):
    """From the first request after the guard began to refuse, and while it lasts."""
    cache = make_guard("cache")
    ask = build(way, handled(cache))
    assert {ask().status for _ in range(MINIMUM_REQUESTS + 5)} == {200}
    cache.force_open()
    assert [ask().status for _ in range(2 * MINIMUM_REQUESTS)] == [200] * 2 * MINIMUM_REQUESTS


@pytest.mark.parametrize("way", LEARNING)
def test_route_that_fails_without_a_guard_is_refused_before_it_is_entered(build, make_guard, clock, way):
    """From its second refusal on, except for one request a second, which shows whether that is still so."""
    db, entered = make_guard("db"), []

    def work():
        entered.append(1)
        return Answer(str(db.run(len, "four")))

    ask = build(way, work, guards=[db], clock=clock)
    assert {ask().status for _ in range(MINIMUM_REQUESTS)} == {200}
    db.force_open()
    entered.clear()
    assert [ask().status for _ in range(10)] == [503] * 10
    assert len(entered) == 1
    for tries in (2, 3):
        clock.advance(TRIAL_INTERVAL)
        assert [ask().status for _ in range(10)] == [503] * 10
        assert len(entered) == tries


@pytest.mark.parametrize("way", LEARNING)
def test_need_is_unlearnt_by_one_answer_in_spite_of_it(build, make_guard, clock, way):
    """As after a feature switch. Many refusals in a row must be the answer to make it a need again."""
    cache, switch = make_guard("cache"), {"optional": False}

    def work():
        try:
            return Answer(cache.run(lambda: "cached"))
        except RejectedError:
            if not switch["optional"]:
                raise
            return Answer("fallback")

    ask = build(way, work, guards=[cache], clock=clock)
    for _ in range(MINIMUM_REQUESTS):
        ask()
    cache.force_open()
    assert [ask().status for _ in range(3)] == [503] * 3
    switch["optional"] = True
    clock.advance(TRIAL_INTERVAL)
    assert [ask().status for _ in range(MINIMUM_REQUESTS)] == [200] * MINIMUM_REQUESTS
    switch["optional"] = False
    entered = cache.snapshot().rejected["circuit_open"]
    assert [ask().status for _ in range(REFUSALS_AFTER_A_GOOD_ANSWER + 5)] == [503] * (
        REFUSALS_AFTER_A_GOOD_ANSWER + 5
    )
    switch["optional"] = True
    assert ask().status == 503, "it is a need again"
    assert cache.snapshot().rejected["circuit_open"] > entered


def test_handled_refusal_of_one_guard_does_not_blame_it_for_the_other(make_guard, clock):
    """The cache's refusal is handled, the database's is the answer."""
    cache, db, entered = make_guard("cache"), make_guard("db"), []
    cached = with_an_except(cache)

    def work():
        entered.append(1)
        cached()
        return Answer(str(db.run(len, "four")))

    ask = in_starlette(work, clock=clock)
    for _ in range(MINIMUM_REQUESTS):
        ask()
    cache.force_open()
    db.force_open()
    assert [ask().problem["guard"] for _ in range(5)] == ["db"] * 5
    assert len(entered) == MINIMUM_REQUESTS + 1
    db.reset()
    assert {ask().status for _ in range(5)} == {200}


def test_route_whose_retry_succeeds_still_needs_the_guard(make_guard, clock):
    """The answer was given with the guard's help, not without it."""
    db, entered, busy = make_guard("db"), [], {"first": False}

    def work():
        entered.append(1)
        if busy["first"]:
            db.force_open()
            with contextlib.suppress(RejectedError):
                db.run(len, "four")
            db.reset()
        return Answer(str(db.run(len, "four")))

    ask = in_starlette(work, clock=clock)
    for _ in range(MINIMUM_REQUESTS):
        ask()
    db.force_open()
    ask()
    db.reset()
    busy["first"] = True
    assert ask().status == 200
    busy["first"] = False
    db.force_open()
    entered.clear()
    assert [ask().status for _ in range(3)] == [503] * 3
    assert entered == []


def test_timeout_that_became_the_answer_proves_no_need(make_guard, clock):
    """What handles refusals need not handle timeouts: only a refusal foretells what a refusal would do."""
    cache, state = make_guard("cache"), {"late": False}

    def work():
        if state["late"]:
            cache.run(len, "x")
            raise CallTimeoutError("cache", 0.5)
        return with_an_except(cache)()

    ask = in_starlette(work, clock=clock)
    for _ in range(MINIMUM_REQUESTS):
        ask()
    state["late"] = True
    assert [ask().status for _ in range(3)] == [504] * 3
    state["late"] = False
    cache.force_open()
    assert [ask().status for _ in range(5)] == [200] * 5


def test_route_does_not_queue_for_a_guard_that_it_does_not_need():
    """It is answered at once while every slot is taken, and nothing is held for it on the loop."""

    async def main():
        cache = Guard("cache", max_concurrent_calls=1, max_wait_duration=0, timeout=None)
        seen = []

        @guarded(cache, fallback=lambda _error: "fallback")
        async def look():
            return "cached"

        async def endpoint(_request):
            seen.append(cache.snapshot().in_use)
            return PlainTextResponse(await look())

        app = ASGIMiddleware(Starlette(routes=[Route("/", endpoint)]))
        for _ in range(MINIMUM_REQUESTS + 5):
            assert (await asgi_client.serve(app)).body == b"cached"
        assert set(seen) == {0}
        async with cache.call():
            for _ in range(MINIMUM_REQUESTS):
                assert (await asgi_client.serve(app)).body == b"fallback"

    asyncio.run(main())


# --- no cause of a later 500 -------------------------------------------------------------------------


class Bug(Exception):
    """The application's own."""


def says_500(db):
    with contextlib.suppress(RejectedError):
        db.run(len, "x")
    return Answer("payment says no", 500)


def fails_later(db):
    with contextlib.suppress(RejectedError):
        db.run(len, "x")
    return {}["missing"]


def fails_while_it_handles(db):
    try:
        db.run(len, "x")
    except RejectedError:
        return {}["missing"]


def raises_its_own(db):
    try:
        db.run(len, "x")
    except RejectedError as error:
        raise Bug from error


def says_500_while_it_handles(db):
    try:
        db.run(len, "x")
    except RejectedError:
        return Answer("payment says no", 500)


@pytest.mark.parametrize(
    "work", [says_500, fails_later, fails_while_it_handles, raises_its_own, says_500_while_it_handles]
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_500_of_the_application_stays_its_own(build, make_guard, way, work):
    """The refusal in it was handled; what came later is the application's."""
    db = make_guard("db")
    db.force_open()
    seen = build(way, lambda: work(db), guards=[db])()
    if seen.raised is None or seen.sent:
        assert seen.status == 500
    assert not isinstance(seen.raised, RejectedError)


@pytest.mark.parametrize("way", WAYS)
def test_refusal_that_nothing_handled_is_503(build, make_guard, way):
    """Also after an earlier one that was handled, and whatever the framework makes of it."""
    db, cache = make_guard("db"), make_guard("cache")
    db.force_open()
    cache.force_open()

    def work():
        says_500(cache)
        return Answer(str(db.run(len, "x")))

    refused = build(way, work, guards=[db])()
    assert (refused.status, refused.problem["guard"]) == (503, "db")


@pytest.mark.parametrize("way", WAYS)
def test_group_of_refusals_that_nothing_handled_is_503(build, make_guard, way):
    """As a task group raises them."""
    db = make_guard("db")
    db.force_open()

    def work():
        try:
            db.run(len, "x")
        except RejectedError as error:
            raise ExceptionGroup("both", [error, error]) from None

    refused = build(way, work, guards=[db])()
    assert (refused.status, refused.problem["guard"]) == (503, "db")


def test_flask_handler_for_everything_has_its_way(make_guard):
    """An application that answers every exception itself keeps its answer, without the extension."""
    db = make_guard("db")
    db.force_open()
    app = flask_app(lambda: Answer(str(db.run(len, "x"))))
    app.register_error_handler(Exception, lambda _error: ("ours", 500))
    seen = wsgi(WSGIMiddleware(app))()
    assert (seen.status, seen.body) == (500, b"ours")


def test_catch_all_of_the_application_has_its_way(make_guard):
    """A middleware of its own that answers for every exception, further in."""
    db = make_guard("db")
    db.force_open()

    class CatchAll:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            try:
                await self.app(scope, receive, send)
            except Exception:
                await JSONResponse({"error": "ours"}, 500)(scope, receive, send)

    app = starlette_app(lambda: Answer(str(db.run(len, "x"))))
    app.add_middleware(CatchAll)
    app.add_middleware(ASGIMiddleware, guards=[db])
    assert asgi(app)().body == b'{"error":"ours"}'


# --- with a server that hangs ------------------------------------------------------------------------


def remembered(client, cache):
    read = stale_if_error(max_age=300)(guarded(cache)(lambda: client.get("key")))
    return lambda: Answer(str(read()))


def caught(client, _cache):
    def work():
        try:
            return Answer(str(client.get("key")))
        except (RejectedError, CallTimeoutError):
            return Answer("fallback")

    return work


def replaced(client, cache):
    read = guarded(cache, fallback=lambda _error: "fallback")(lambda: client.get("key"))
    return lambda: Answer(str(read()))


@pytest.mark.sampled
@pytest.mark.parametrize("handled", [remembered, caught, replaced])
@pytest.mark.parametrize("way", ["in fastapi", "in flask", "in django, WSGI", "in django, ASGI"])
def test_frozen_cache_that_fails_open_never_refuses_a_route(build, valkey, way, handled):
    """A real one: first timeouts, then an open circuit, then probes that time out as well."""
    with contextlib.closing(redis.Redis.from_url(valkey.url())) as client:
        policy = BreakerPolicy(failure_rate_threshold=0.1, wait_duration_in_open_state=0.3)
        cache = protect(client, name="cache", timeout=0.1, breaker=policy)
        ask = build(way, handled(client, cache), guards=[cache])
        assert {ask().status for _ in range(MINIMUM_REQUESTS + 5)} == {200}
        with frozen(valkey):
            began = time.monotonic()
            seen = {ask().status for _ in range(MINIMUM_REQUESTS)}
            while time.monotonic() < began + 1.5:
                seen.add(ask().status)
        assert seen == {200}
        parts = (cache, *cache.compartments)
        assert any(part.snapshot().rejected.get("circuit_open") for part in parts)
