"""Which workload a query belongs to, in every framework: that of the request's route, until its last byte."""

from __future__ import annotations

import asyncio
import pickle

import fastapi
import flask
import litestar
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import include, path
from litestar.middleware import DefineMiddleware
from sqlalchemy import QueuePool, create_engine
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from guardrails import CircuitOpenError, guarded, protect
from guardrails.integrations.asgi import GuardrailsMiddleware as ASGIMiddleware
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.wsgi import GuardrailsMiddleware as WSGIMiddleware
from support import (
    asgi_client,
    django_lab,  # noqa: F401 - configures Django
    wsgi_client,
)


@pytest.fixture
def engine(tmp_path):
    """An engine of ten connections."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", poolclass=QueuePool, pool_size=10, max_overflow=0)
    yield engine
    engine.dispose()


@pytest.fixture
def db(engine):
    """Its guard, as `protect` makes it."""
    return protect(engine)


@pytest.fixture
def query(engine):
    """One checkout."""
    return lambda: engine.connect().close()


def names(db):
    return {part.name for part in db.compartments}


def part(db, name):
    """The compartment with this name."""
    return next(part for part in db.compartments if part.name == name)


def get(app, *paths, method="GET", **more):
    """Requests to an ASGI application."""
    for where in paths:
        assert asgi_client.ask(app, asgi_client.http(where, method=method, **more)).status == 200


def get_wsgi(app, *paths, method="GET"):
    """Requests to a WSGI application."""
    for where in paths:
        seen = wsgi_client.ask(app, wsgi_client.environment(where, method=method))
        assert (seen.status, seen.raised) == (200, None)


# --- Starlette and FastAPI ---------------------------------------------------------------------------


def streams(query):
    """Responses of each kind whose work is done after the endpoint has returned."""

    def pieces():
        for _ in range(3):
            query()
            yield b"piece"

    async def pieces_async():
        for _ in range(3):
            await asyncio.to_thread(query)
            yield b"piece"

    return {
        "threads": lambda: StreamingResponse(pieces()),
        "loop": lambda: StreamingResponse(pieces_async()),
        "background": lambda: PlainTextResponse("fine", background=BackgroundTask(query)),
    }


class Through(BaseHTTPMiddleware):
    """Starlette's own kind of middleware, which runs the rest of the application in a task of its own."""

    async def dispatch(self, request, call_next):
        return await call_next(request)


@pytest.mark.parametrize("around", [[], [Middleware(Through)]], ids=["", "BaseHTTPMiddleware"])
@pytest.mark.parametrize("kind", ["threads", "loop", "background"])
def test_starlette_work_after_the_endpoint_belongs_to_the_route(db, query, kind, around):
    """The body of a stream and a background task, on the loop and in threads."""
    respond = streams(query)[kind]
    app = Starlette(routes=[Route("/streams/{id}", lambda request: respond())], middleware=around)
    app.add_middleware(ASGIMiddleware, guards=[db])
    get(app, "/streams/1", "/streams/2")
    assert names(db) == {"GET /streams/{id}"}


def items_app(query, *middleware):
    """An application with a route that every other one has, too."""
    app = fastapi.FastAPI(middleware=list(middleware))

    @app.get("/items/{id}")
    def items(id: int):  # noqa: A002 - as in the path
        query()

    return app


def test_mounted_applications_with_equal_routes_are_two_workloads(db, query):
    """Two of them, one of them twice, and mounts within mounts."""
    twice = items_app(query)
    deep = Starlette(routes=[Mount("/d", app=Starlette(routes=[Mount("/e", app=items_app(query))]))])
    app = fastapi.FastAPI()
    for where, mounted in [("/a", items_app(query)), ("/b", twice), ("/c", twice), ("/x", deep)]:
        app.mount(where, mounted)
    app.add_middleware(ASGIMiddleware, guards=[db])
    mounts = ["/a", "/b", "/c", "/x/d/e"]
    get(app, *(f"{mount}/items/{number}" for mount in mounts for number in range(3)))
    assert names(db) == {f"GET {mount}/items/{{id}}" for mount in mounts}


def test_a_middleware_within_a_mount_knows_where_it_is_mounted(db, query):
    """By the mount's template, never by what a client made of it; nor by the server's own root path."""
    inside = Middleware(ASGIMiddleware, guards=[db])
    routes = [
        Mount("/a", app=items_app(query, inside)),
        Mount("/b", app=items_app(query, inside)),
        Mount("/of/{tenant}", app=items_app(query, inside)),
        Mount("/at/{place:path}/end", app=items_app(query, inside)),
    ]
    app = Starlette(routes=routes)
    get(app, "/a/items/1", "/b/items/1", "/of/me/items/1", "/of/you/items/2", "/at/x/y/end/items/3")
    get(app, "/outside/a/items/7", root_path="/outside")
    mounts = ["/a", "/b", "/of/{tenant}", ""]
    assert names(db) == {f"GET {mount}/items/{{id}}" for mount in mounts}


def test_one_endpoint_at_two_paths_is_two_workloads(db, query):
    """As two functions would be."""

    def endpoint(_request):
        query()
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/old/{id}", endpoint), Route("/new/{id}", endpoint)])
    app.add_middleware(ASGIMiddleware, guards=[db])
    get(app, "/old/1", "/new/2")
    assert names(db) == {"GET /old/{id}", "GET /new/{id}"}


def test_methods_are_told_apart_and_none_is_made_up(db, query):
    """A HEAD is a GET; whatever word a client invents is not in the name."""

    async def endpoint(scope, receive, send):
        query()
        await PlainTextResponse("fine")(scope, receive, send)

    class Endpoint:
        """A route of ASGI's own kind takes every method."""

        __call__ = staticmethod(endpoint)

    app = Starlette(routes=[Route("/carts/{id}", Endpoint())])
    app.add_middleware(ASGIMiddleware, guards=[db])
    for method in ["GET", "HEAD", "POST", "BREW", "X" * 1000]:
        get(app, "/carts/1", method=method)
    assert names(db) == {"GET /carts/{id}", "POST /carts/{id}", "/carts/{id}"}


def test_nested_calls_and_second_checkouts_have_their_own_owners(db, engine, query):
    """The innermost decorated function; around it the route, in the same request."""

    @guarded(db)
    def load():
        query()

    def endpoint(_request):
        with engine.connect():
            load()
            query()
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/nested", endpoint)])
    app.add_middleware(ASGIMiddleware, guards=[db])
    get(app, "/nested", "/nested")
    assert names(db) == {load.__qualname__, "GET /nested"}
    assert part(db, load.__qualname__).snapshot().admitted == 2


def test_refusals_of_another_guard_pass_though_its_workload_has_the_same_name(db, query, tmp_path):
    """Each guard has a compartment for the route; whose refusal it is the message says, too."""
    other_engine = create_engine(f"sqlite:///{tmp_path}/other", poolclass=QueuePool)
    other = protect(other_engine, name="other")

    def endpoint(_request):
        query()
        other_engine.connect().close()
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/both", endpoint), Route("/more", endpoint)])
    app.add_middleware(ASGIMiddleware, guards=[db])
    get(app, "/both", "/more")
    part(other, "GET /both").force_open()
    seen = asgi_client.ask(app, asgi_client.http("/both"))
    assert isinstance(seen.raised, CircuitOpenError)
    assert str(seen.raised).startswith("'GET /both' of 'other' refused the call")
    twin = pickle.loads(pickle.dumps(seen.raised))
    assert (twin.guard, twin.compartment) == ("other", "GET /both")
    part(db, "GET /both").force_open()
    problem = asgi_client.ask(app, asgi_client.http("/both")).problem
    assert (problem["guard"], problem["compartment"]) == ("db", "GET /both")
    other_engine.dispose()


@pytest.mark.parametrize("place", ["inside", "around"])
def test_litestar_requests_belong_to_their_route(db, query, place):
    """Whose template it notes before its middlewares run; of two methods and a mount."""

    @litestar.get("/items/{number:int}", sync_to_thread=False)
    def item() -> str:
        query()
        return "fine"

    @litestar.put("/items/{number:int}", sync_to_thread=False)
    def change() -> str:
        query()
        return "fine"

    inside = [DefineMiddleware(ASGIMiddleware, guards=[db])] if place == "inside" else []
    shop = litestar.Router("/shop", route_handlers=[item, change])
    app = litestar.Litestar([shop], middleware=inside, openapi_config=None)
    app = app if place == "inside" else ASGIMiddleware(app, guards=[db])
    get(app, "/shop/items/1", "/shop/items/2")
    get(app, "/shop/items/3", method="PUT")
    assert names(db) == {"GET /shop/items/{number}", "PUT /shop/items/{number}"}


# --- Flask and WSGI ------------------------------------------------------------------------------------


def flask_app(query, *, prefix=""):
    """Routes whose bodies are made when the view and Flask's own context are gone."""
    app = flask.Flask("shop")
    orders = flask.Blueprint("orders", "shop", url_prefix=prefix or None)

    @orders.get("/stream/<int:number>")
    def stream(number):
        def pieces():
            for _ in range(3):
                query()
                yield b"piece"

        return flask.Response(pieces())

    app.register_blueprint(orders)
    return app


def with_the_extension(app, db):
    Guardrails(app, guards=[db])
    return app


def around(app, db):
    return WSGIMiddleware(app, guards=[db])


@pytest.mark.parametrize("install", [with_the_extension, around])
def test_flask_bodies_belong_to_the_route(db, query, install):
    """Though nothing has been asked of the database before Flask has forgotten the request."""
    app = install(flask_app(query, prefix="/shop"), db)
    get_wsgi(app, "/shop/stream/1", "/shop/stream/2")
    assert names(db) == {"GET /shop/stream/{number:int}"}


@pytest.mark.parametrize("install", [with_the_extension, around])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_flask_applications_with_equal_routes_are_two_workloads(db, query, install, where):
    """Under werkzeug's dispatcher, with a middleware in each or one around them all."""
    plain = flask.Flask("nothing")
    apps = {mount: flask_app(query) for mount in ("/a", "/b")}
    if where == "inside":
        app = DispatcherMiddleware(plain, {mount: install(app, db) for mount, app in apps.items()})
    else:
        app = around(DispatcherMiddleware(plain, apps), db)
    get_wsgi(app, "/a/stream/1", "/b/stream/1", "/a/stream/2")
    assert names(db) == {f"GET {mount}/stream/{{number:int}}" for mount in ("/a", "/b")}


def test_script_names_that_clients_make_up_make_no_workloads(db, query):
    """Behind a proxy that hands a header on, each request could bring its own."""
    app = around(flask_app(query), db)
    for number in range(200):
        environ = wsgi_client.environment("/stream/1", SCRIPT_NAME=f"/made-up-{number}")
        assert wsgi_client.ask(app, environ).status == 200
    assert len(db.compartments) <= 33
    assert "GET /stream/{number:int}" in names(db)


# --- Django --------------------------------------------------------------------------------------------

ASK = {}


def page(_request, number):
    ASK["query"]()
    return HttpResponse("fine")


def stream(_request, number):
    def pieces():
        for _ in range(3):
            ASK["query"]()
            yield b"piece"

    return StreamingHttpResponse(pieces())


async def stream_async(_request, number):
    async def pieces():
        for _ in range(3):
            await asyncio.to_thread(ASK["query"])
            yield b"piece"

    return StreamingHttpResponse(pieces())


def cart(_request):
    ASK["query"]()
    return HttpResponse("fine")


inner = [path("pages/<int:number>", page), path("streams/<int:number>", stream)]
urlpatterns = [
    path("cart", cart),
    path("a/", include((inner, "shop"), namespace="a")),
    path("b/", include((inner, "shop"), namespace="b")),
    path("loop/<int:number>", stream_async),
]


@pytest.fixture
def site(query):
    """A Django project; gives its handlers, by the kind of server."""
    ASK["query"] = query
    middleware = ["guardrails.integrations.django.GuardrailsMiddleware"]
    with override_settings(MIDDLEWARE=middleware, ROOT_URLCONF=__name__, GUARDRAILS={}):
        yield {get_wsgi: WSGIHandler(), get: ASGIHandler()}
    ASK.clear()


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators:Warning")
@pytest.mark.parametrize("ask", [get_wsgi, get], ids=["WSGI", "ASGI"])
def test_django_bodies_belong_to_the_route_with_its_includes(db, site, ask):
    """Pages and streams, of views that are included twice."""
    paths = [f"/{where}/{kind}/1" for where in "ab" for kind in ("pages", "streams")]
    ask(site[ask], *paths)
    assert names(db) == {f"GET {where[:-1]}{{number:int}}" for where in paths}


def test_django_asynchronous_bodies_belong_to_the_route(db, site):
    """In each step of an asynchronous generator."""
    get(site[get], "/loop/1", "/loop/2")
    assert names(db) == {"GET /loop/{number:int}"}


# --- one endpoint for several methods -------------------------------------------------------------------


def starlette_cart(serve, db):
    app = Starlette(routes=[Route("/cart", lambda _: PlainTextResponse(serve()), methods=["GET", "POST"])])
    app.add_middleware(ASGIMiddleware, guards=[db])
    return app


def fastapi_cart(serve, db):
    app = fastapi.FastAPI()
    app.add_middleware(ASGIMiddleware, guards=[db])
    app.api_route("/cart", methods=["GET", "POST"])(serve)
    return app


def flask_cart(serve, db):
    app = flask.Flask("shop")
    app.route("/cart", methods=["GET", "POST"])(serve)
    Guardrails(app, guards=[db])
    return app


def django_cart(handler):
    def make(serve, _db):
        ASK["query"] = serve
        return handler()

    return make


def status_asgi(app, method):
    return asgi_client.ask(app, asgi_client.http("/cart", method=method)).status


def status_wsgi(app, method):
    return wsgi_client.ask(app, wsgi_client.environment("/cart", method=method)).status


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("make", "status"),
    [
        (starlette_cart, status_asgi),
        (fastapi_cart, status_asgi),
        (flask_cart, status_wsgi),
        (django_cart(WSGIHandler), status_wsgi),
        (django_cart(ASGIHandler), status_asgi),
    ],
    ids=["Starlette", "FastAPI", "Flask", "Django", "Django on ASGI"],
)
def test_a_circuit_of_one_method_refuses_no_request_of_another(db, query, make, status, method):
    """Of one endpoint: what its requests need is learnt for each method, however rare the other one is."""
    served = []

    def serve():
        query()
        served.append("fine")
        return "fine"

    app, other = make(serve, db), {"GET": "POST", "POST": "GET"}[method]
    assert {status(app, method) for _ in range(99)} == {status(app, other)} == {200}
    part(db, f"{method} /cart").force_open()
    assert [status(app, method) for _ in range(5)] == [503] * 5
    refused = db.compartments[0].snapshot().rejected
    assert [status(app, other) for _ in range(5)] == [200] * 5
    assert (len(served), refused) == (105, db.compartments[0].snapshot().rejected)
