"""A middleware below a mount sees the routes there, and the paths below it, not those of the parent."""

from __future__ import annotations

import asyncio
import threading

import flask
import pytest
import uvicorn
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from guardrails import Guard
from guardrails.integrations.asgi import GuardrailsMiddleware, requires
from guardrails.integrations.django import requires as django_requires
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.flask import requires as flask_requires
from support import (
    asgi_client,
    django_lab,  # noqa: F401 - configures Django
    wsgi_client,
)
from support.http_client import GET, Client
from support.polling import wait_until


class Opaque:
    """A middleware that does not say what it calls."""

    def __init__(self, app):
        self.__hidden = app

    async def __call__(self, scope, receive, send):
        await self.__hidden(scope, receive, send)


@pytest.fixture
def db(make_guard):
    guard = make_guard("db")
    guard.force_open()
    return guard


@pytest.fixture
def endpoints(db):
    """One that needs the guard, and one that does not; and which of them were entered."""
    entered = []

    @requires(db)
    async def needs(_request):
        entered.append("needs")
        return PlainTextResponse("needs")

    async def free(_request):
        entered.append("free")
        return PlainTextResponse("free")

    return needs, free, entered


def answer(app, where, **more):
    """The status, or the text of a good answer."""
    seen = asgi_client.ask(app, asgi_client.http(where, **more))
    return seen.body.decode() if seen.status == 200 else seen.status


def on_a_mount(routes, *inner):
    return Mount("/api", routes=routes, middleware=[Middleware(GuardrailsMiddleware), *inner])


def on_a_mounted_app(routes, *inner):
    app = Router(routes)
    for middleware in reversed(inner):
        app = middleware.cls(app)
    return Mount("/api", app=app, middleware=[Middleware(GuardrailsMiddleware)])


def added_to_a_starlette(routes, *inner):
    return Mount("/api", app=Starlette(routes=routes, middleware=[Middleware(GuardrailsMiddleware), *inner]))


def added_to_a_fastapi(routes, *inner):
    app = FastAPI()
    app.router.routes.extend(routes)
    for middleware in reversed(inner):
        app.add_middleware(middleware.cls)
    app.add_middleware(GuardrailsMiddleware)
    return Mount("/api", app=app)


def wrapped_by_hand(routes, *inner):
    return Mount("/api", app=GuardrailsMiddleware(Starlette(routes=routes, middleware=[*inner])))


def in_a_mount_in_a_mount(routes, *inner):
    return Mount("/api", app=Router([Mount("", app=added_to_a_starlette(routes, *inner).app)]))


MOUNTS = [
    on_a_mount,
    on_a_mounted_app,
    added_to_a_starlette,
    added_to_a_fastapi,
    wrapped_by_hand,
    in_a_mount_in_a_mount,
]


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("root", ["", "/proxy"])
def test_routes_below_the_mount_count(endpoints, mount, root):
    """The parent's have the same paths, and the opposite needs."""
    needs, free, entered = endpoints
    below = mount([Route("/orders/{id}", needs), Route("/about", free)])
    app = Starlette(routes=[Route("/orders/{id}", free), Route("/about", needs), below])
    asked = lambda where: answer(app, root + where, root_path=root)
    assert [asked(where) for where in ("/api/orders/7", "/api/about", "/orders/7", "/about")] == [
        503,
        "free",
        "free",
        "needs",
    ]
    assert entered == ["free", "free", "needs"], "it is refused before it is entered"


@pytest.mark.parametrize("mount", MOUNTS)
def test_parent_s_routes_are_not_used_where_those_below_cannot_be_seen(endpoints, mount):
    """Nothing is known then, so every endpoint is entered, but where the sub-application says its routes."""
    needs, free, _ = endpoints
    below = mount([Route("/orders/{id}", free), Route("/about", needs)], Middleware(Opaque))
    app = Starlette(routes=[Route("/orders/{id}", needs), below])
    says_its_routes = mount not in {on_a_mount, on_a_mounted_app}
    assert answer(app, "/api/orders/7") == "free"
    assert answer(app, "/api/about") == (503 if says_its_routes else "needs")


def test_middleware_of_a_route_knows_its_endpoint(endpoints):
    """Also inside a mount, where the application's routes have longer paths than it sees."""
    needs, free, entered = endpoints
    own = [Middleware(GuardrailsMiddleware)]
    routes = [Route("/orders", needs, middleware=own), Route("/about", free, middleware=own)]
    app = Starlette(routes=[*routes, Mount("/api", routes=routes), Mount("/orders", routes=[routes[1]])])
    asked = ("/orders", "/about", "/api/orders", "/api/about", "/orders/about")
    assert [answer(app, where) for where in asked] == [503, "free", 503, "free", "free"]
    assert entered == ["free"] * 3


def test_settings_are_compared_below_the_mount(db):
    """As the page says: the mount's path is not part of them."""

    async def free(_request):
        return PlainTextResponse("free")

    routes = [Route("/orders", free), Route("/about", free)]
    own = [Middleware(GuardrailsMiddleware, requires={"/orders": [db]})]
    app = Starlette(routes=[Mount("/api", routes=routes, middleware=own), *routes])
    asked = ("/api/orders", "/api/about", "/orders")
    assert [answer(app, where) for where in asked] == [503, "free", "free"]


def test_root_path_of_a_server_is_no_part_of_a_path(endpoints):
    """uvicorn --root-path, with a proxy in front that removes it."""
    needs, free, _ = endpoints
    app = Starlette(routes=[Route("/orders/{id}", needs), Route("/about", free)])
    app.add_middleware(GuardrailsMiddleware)
    config = uvicorn.Config(
        app, port=0, root_path="/proxy", log_level="critical", lifespan="off", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=[server.serve()])
    thread.start()
    try:
        wait_until(lambda: server.started)
        [listener] = server.servers[0].sockets
        with Client(listener.getsockname()) as client:
            for where, status in [(b"/orders/7", 503), (b"/about", 200)]:
                client.send(GET % where)
                assert client.response()[0] == status
    finally:
        server.should_exit = True
        thread.join()


def test_flask_below_a_dispatcher(db):
    """Each application is asked for its own views, by paths below its mount."""
    below = flask.Flask("below")
    below.add_url_rule("/orders", view_func=flask_requires(db)(lambda: "needs"), endpoint="orders")
    below.add_url_rule("/about", view_func=lambda: "free", endpoint="about")
    Guardrails(below, requires={"/declared": [db]})
    below.add_url_rule("/declared", view_func=lambda: "needs", endpoint="declared")
    above = flask.Flask("above")
    for where in ("/orders", "/declared", "/api"):
        above.add_url_rule(where, view_func=lambda: "free", endpoint=where)
    Guardrails(above)
    app = DispatcherMiddleware(above, {"/api": below})

    def asked(where):
        seen = wsgi_client.ask(app, wsgi_client.environment(where))
        return seen.body.decode() if seen.status == 200 else seen.status

    paths = ("/api/orders", "/api/declared", "/api/about", "/orders", "/declared")
    assert [asked(where) for where in paths] == [503, 503, "free", "free", "free"]


needed = Guard("needed", max_concurrent_calls=3)
urlpatterns = [
    path("orders", django_requires(needed)(lambda _request: HttpResponse("needs"))),
    path("declared", lambda _request: HttpResponse("needs")),
    path("about", lambda _request: HttpResponse("free")),
]


@pytest.mark.parametrize("forced", [True, False], ids=["FORCE_SCRIPT_NAME", "by the server"])
@pytest.mark.parametrize("kind", ["WSGI", "ASGI"])
def test_django_below_a_script_name(kind, forced):
    """Paths of settings and of views are those below it."""
    changed = override_settings(
        MIDDLEWARE=["guardrails.integrations.django.GuardrailsMiddleware"],
        ROOT_URLCONF=__name__,
        GUARDRAILS={"requires": {"/declared": [needed]}},
        FORCE_SCRIPT_NAME="/api" if forced else None,
    )
    needed.force_open()
    try:
        with changed:
            if kind == "WSGI":
                app = WSGIHandler()
                mounted = {} if forced else {"SCRIPT_NAME": "/api"}
                ask = lambda where: wsgi_client.ask(app, wsgi_client.environment(where, **mounted))
            else:
                app = ASGIHandler()
                mounted = {} if forced else {"root_path": "/api"}
                ask = lambda where: asgi_client.ask(app, asgi_client.http(f"/api{where}", **mounted))
            assert [ask(where).status for where in ("/orders", "/declared", "/about")] == [503, 503, 200]
    finally:
        needed.reset()
