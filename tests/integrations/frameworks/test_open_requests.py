"""A connection is leaked when the request that took it is over, and not before, in every framework."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client, override_settings
from django.urls import path
from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from flask import Flask, g, stream_with_context
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.routing import Route

from guardrails import protect
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.sqlalchemy import leaks, pool_status
from support import asgi_client, django_lab, wsgi_client
from support.asgi_client import http


@pytest.fixture
def engine(tmp_path):
    """A pool of two connections, whose holders are asked for by another thread."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", pool_size=2, max_overflow=0)
    guard = protect(engine, name="db")
    yield engine
    guard.detach()
    engine.dispose()


sessions = []
"""What a test holds. No frame refers to it, so the code that has taken it looks as if it had gone."""


class Kept:
    """A connection that is taken in one place and looked at in others."""

    def __init__(self, engine):
        self.engine = engine
        self.seen = []

    def take(self):
        """Takes a connection. The three lines that are kept of it end with it."""
        self.first()

    def first(self):
        self.second()

    def second(self):
        sessions.append(Session(self.engine))
        sessions[-1].execute(text("select 1"))

    def look(self):
        """Notes what the holder does, from a thread of its own as the housekeeper does."""
        asking = threading.Thread(target=lambda: self.seen.extend(pool_status(self.engine).holders))
        asking.start()
        asking.join()

    def check(self, route):
        """While the request was open it was pinned; since then it is a leak with the same route."""
        assert {(each.doing, each.route) for each in self.seen} == {("other_work", route)}
        gc.collect()
        (leak,) = leaks(self.engine, older_than=0)
        assert (leak.doing, leak.now, leak.route) == ("gone", (), route)
        sessions.pop().close()
        assert pool_status(self.engine).holders == ()


@pytest.fixture
def kept(engine):
    yield Kept(engine)
    while sessions:
        sessions.pop().close()


class Looks:
    """A body whose iterator no frame holds between its parts."""

    def __init__(self, kept, parts=2):
        self.kept, self.left = kept, parts

    def __iter__(self):
        return self

    def __next__(self):
        self.kept.look()
        if not self.left:
            raise StopIteration
        self.left -= 1
        return b"x"


# --- Flask -----------------------------------------------------------------------------------------


def flask_app():
    app = Flask("shop")
    Guardrails(app)
    return app


def serve_wsgi(app, where):
    answer = wsgi_client.ask(app.wsgi_app, wsgi_client.environment(where))
    assert answer.raised is None
    assert answer.status == 200


def test_flask_view(kept):
    """A helper has taken the connection, and the view does other work."""
    app = flask_app()

    @app.get("/orders/<int:number>")
    def orders(number):
        kept.take()
        kept.look()
        return "fine"

    serve_wsgi(app, "/orders/1")
    kept.check("/orders/{number:int}")


def test_flask_teardown(kept):
    """What is closed in a teardown function is held until then; its view has returned long before."""
    app = flask_app()

    @app.get("/")
    def home():
        g.kept = kept
        kept.take()
        return "fine"

    @app.teardown_request
    def look(_error):
        g.kept.look()

    serve_wsgi(app, "/")
    kept.check("/")


@pytest.mark.parametrize("how", ["iterator", "generator", "with context"])
def test_flask_streamed_response(kept, how):
    """Between two parts of the body no code of the view is on the stack."""
    app = flask_app()

    def rows():
        yield from Looks(kept)

    @app.get("/rows")
    def stream():
        kept.take()
        parts = {"iterator": lambda: Looks(kept), "generator": rows, "with context": rows}[how]()
        return app.response_class(stream_with_context(parts) if how == "with context" else parts)

    serve_wsgi(app, "/rows")
    assert len(kept.seen) == 3
    kept.check("/rows")


def test_flask_streamed_response_that_the_client_leaves(kept):
    """Then the request is over, too."""
    app = flask_app()

    @app.get("/rows")
    def stream():
        kept.take()
        return app.response_class(Looks(kept))

    request = wsgi_client.Request(app.wsgi_app, wsgi_client.environment("/rows")).begin()
    request.step()
    kept.look()
    request.close()
    kept.check("/rows")


# --- Django ----------------------------------------------------------------------------------------

assert django_lab.ENGINE  # its import configures Django
holder = []
"""The test that runs, for its views."""


def django_view(_request, number):
    holder[-1].take()
    holder[-1].look()
    return HttpResponse("fine")


def django_stream(_request):
    holder[-1].take()
    return StreamingHttpResponse(Looks(holder[-1]))


def django_stream_that_takes(_request):
    kept = holder[-1]

    def rows():
        kept.take()
        yield b"x"
        kept.look()
        yield b"y"

    return StreamingHttpResponse(rows())


urlpatterns = [
    path("view/<int:number>", django_view),
    path("stream", django_stream),
    path("taken", django_stream_that_takes),
]


def serve_django(where):
    middleware = ["guardrails.integrations.django.GuardrailsMiddleware"]
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware):
        answer = Client().get(where)
        assert b"".join(answer) in {b"fine", b"xx", b"xy"}
        answer.close()


@pytest.mark.parametrize(
    ("where", "route"),
    [("/view/1", "/view/{number:int}"), ("/stream", "/stream"), ("/taken", "/taken")],
)
def test_django(kept, where, route):
    """A view, a streamed response whose connection the view has taken, and one that takes it itself."""
    holder.append(kept)
    serve_django(where)
    holder.clear()
    kept.check(route)


# --- Starlette and FastAPI ---------------------------------------------------------------------------


def serve_asgi(app, where="/"):
    answer = asgi_client.ask(GuardrailsMiddleware(app), http(where))
    assert answer.raised is None
    assert answer.status == 200


def test_starlette_background_task(kept):
    """It runs after the response, with the connection that the endpoint has taken."""

    async def endpoint(_request):
        await asyncio.to_thread(kept.take)
        return JSONResponse({}, background=BackgroundTask(kept.look))

    serve_asgi(Starlette(routes=[Route("/orders/{id}", endpoint)]), "/orders/1")
    kept.check("/orders/{id}")


def test_fastapi_dependency_with_yield(kept):
    """It ends after the body; a class as a dependency holds nothing in a frame."""
    app = FastAPI()

    def dependency():
        kept.take()
        yield
        kept.look()

    @app.get("/orders/{number}", dependencies=[Depends(dependency)])
    def orders(number: int):
        kept.look()
        return StreamingResponse(Looks(kept))

    serve_asgi(app, "/orders/1")
    assert len(kept.seen) == 5
    kept.check("/orders/{number}")


# --- nothing is kept ---------------------------------------------------------------------------------


def test_a_session_in_the_state_of_a_request_is_collected_with_it(engine):
    """The guard must not keep the request: it would keep the session, which holds the connection."""
    app = FastAPI()

    @app.get("/")
    async def home(request: Request):  # a worker thread would keep it for a moment
        request.state.session = Session(engine)
        request.state.session.execute(text("select 1"))
        return 1

    serve_asgi(app)
    gc.collect()
    assert engine.pool.checkedout() == 0
    assert pool_status(engine).holders == ()


@pytest.mark.parametrize("server", ["asgi", "wsgi"])
def test_a_leaked_connection_keeps_nothing_of_its_request(kept, server):
    """Only its route."""

    class Large:
        """Something that hangs on a request."""

    alive = []
    if server == "asgi":
        app = FastAPI()

        @app.get("/")
        async def home(request: Request):
            request.state.large = Large()
            alive.append(weakref.ref(request.state.large))
            kept.take()
            return 1

        serve_asgi(app)
    else:
        app = flask_app()

        @app.get("/")
        def home():
            g.large = Large()
            alive.append(weakref.ref(g.large))
            kept.take()
            return "fine"

        serve_wsgi(app, "/")
    gc.collect()
    assert alive[0]() is None
    (leak,) = leaks(kept.engine, older_than=0)
    assert leak.route == "/"
