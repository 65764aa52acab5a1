"""The ways in which each framework's users install it, and what is only so there."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import django
import flask
import litestar
import pytest
from django.core import mail
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from litestar.middleware import DefineMiddleware
from sqlalchemy import QueuePool, create_engine

from guardrails import ConfigurationError, Guard, protect, remaining
from guardrails._core.criticality import CLASSES
from guardrails._runtime.scope import current, rank_of
from guardrails.errors import CallTimeoutError, CircuitOpenError
from guardrails.integrations.asgi import GuardrailsMiddleware as ASGIMiddleware
from guardrails.integrations.django import requires
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.wsgi import GuardrailsMiddleware as WSGIMiddleware
from support import (
    asgi_client,
    django_lab,  # configures Django
    wsgi_client,
)


def refusing(name="db"):
    """A guard that is held open by hand."""
    guard = Guard(name, max_concurrent_calls=3)
    guard.force_open()
    return guard


def class_here():
    """How much the request matters that this runs for."""
    return CLASSES[rank_of(current())]


# --- Flask -----------------------------------------------------------------------------------------


def shop(db, **config):
    """A Flask application that needs a guard."""
    app = flask.Flask("shop")
    app.config.update(config)

    @app.get("/orders")
    def orders():
        return str(db.run(len, "four"))

    @app.get("/late")
    def late():
        raise CallTimeoutError(db.name, 0.5)

    @app.get("/stream")
    def stream():
        def pieces():
            with db.call():
                yield b"part"
                yield b"part"

        return flask.Response(pieces())

    return app


def test_flask_answers_without_logging_an_error(caplog):
    """A refusal is no unhandled exception, and in an outage there are thousands."""
    db = refusing()
    app = shop(db)
    Guardrails(guards=[db]).init_app(app)
    client = app.test_client()
    refused, late = client.get("/orders"), client.get("/late")
    assert (refused.status_code, refused.json["code"]) == (503, "circuit_open")
    assert (late.status_code, late.json["code"]) == (504, "timeout")
    assert refused.headers["cache-control"] == "no-store"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    db.reset()
    assert client.get("/orders").data == b"4"


def test_flask_head_and_html():
    """The answer is worded for the client, and HEAD gets its headers."""
    db = refusing()
    app = shop(db)
    Guardrails(app, guards=[db])
    page = app.test_client().get("/orders", headers={"accept": "text/html"})
    assert (page.status_code, page.mimetype) == (503, "text/html")
    head = app.test_client().head("/orders")
    assert (head.status_code, head.data, int(head.headers["content-length"]) > 100) == (503, b"", True)


def test_flask_own_handler_comes_first():
    """The application may answer for itself."""
    db = refusing()
    app = shop(db)
    Guardrails(app)
    app.register_error_handler(CircuitOpenError, lambda _error: ("try the phone", 503))
    assert app.test_client().get("/orders").data == b"try the phone"


def test_flask_leaves_other_guards_alone():
    """They are this application's unhandled exceptions, as they were before."""
    db = refusing()
    app = shop(db)
    app.logger.disabled = True
    Guardrails(app, guards=[refusing("other")])
    assert app.test_client().get("/orders").status_code == 500


def test_flask_reads_its_configuration():
    """GUARDRAILS_ settings count where the code says nothing."""
    db = refusing()
    app = shop(db, GUARDRAILS_REQUIRES={"/orders": [db]}, GUARDRAILS_MAX_IN_FLIGHT=7)
    Guardrails(app, max_in_flight=1)
    assert app.test_client().get("/orders").json["code"] == "circuit_open"
    db.reset()
    client = app.test_client()
    first = client.get("/stream", buffered=False)
    assert app.extensions["guardrails"].in_flight == 1
    assert client.get("/orders").json["code"] == "bulkhead_full"
    first.close()
    assert app.extensions["guardrails"].in_flight == 0


def test_flask_routes_have_a_class():
    """By setting or by the configuration; the word of a trusted header outranks it."""
    app = flask.Flask("shop")
    app.config["GUARDRAILS_CRITICALITY"] = {"/reports": "SHEDDABLE"}
    app.add_url_rule("/reports", view_func=class_here)
    app.add_url_rule("/orders", view_func=class_here)
    Guardrails(app, criticality_header="X-Criticality")
    client = app.test_client()
    assert [client.get(where).text for where in ("/reports", "/orders")] == ["SHEDDABLE", "CRITICAL"]
    assert client.get("/reports", headers={"X-Criticality": "CRITICAL_PLUS"}).text == "CRITICAL_PLUS"


class Shop(flask.Flask):
    """An application as a class, as in Flask's documentation on large applications."""

    def wsgi_app(self, environ, start_response):
        environ["shop.seen"] = True
        return super().wsgi_app(environ, start_response)


@pytest.mark.parametrize("kind", [flask.Flask, Shop])
@pytest.mark.parametrize("served", [True, False])
def test_flask_application_is_freed_with_its_last_name(kind, served):
    """Flask's own promise (test_app_freed_on_zero_refcount): no reference cycle, also after a request."""
    gc.collect()
    gc.disable()
    try:
        app = kind("shop", static_folder="static")
        app.add_url_rule("/", view_func=lambda: "fine")
        Guardrails(app)
        if served:
            assert wsgi_client.ask(app, wsgi_client.environment("/")).body == b"fine"
        there = weakref.ref(app)
        del app
        assert there() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [flask.Flask, Shop])
def test_flask_application_stays_what_it_was(kind):
    """Its name and kind, what it does, and what is around it; its wsgi_app alone keeps it alive."""
    db = refusing()
    app, bare = kind("shop"), kind("shop")
    app.add_url_rule("/", view_func=lambda: str(db.run(len, "x")) + flask.request.environ["shop"])
    Guardrails(app, guards=[db])
    assert (repr(app), type(app).__name__, type(app).__module__, type(app).__doc__) == (
        repr(bare),
        kind.__name__,
        kind.__module__,
        kind.__doc__,
    )
    assert isinstance(app, kind)
    assert app.extensions["guardrails"].in_flight == 0
    served = app.wsgi_app
    del app
    gc.collect()
    around = lambda environ, start: served(environ | {"shop": "!"}, start)
    assert wsgi_client.ask(around, wsgi_client.environment("/")).problem["guard"] == "db"
    db.reset()
    assert wsgi_client.ask(around, wsgi_client.environment("/")).body == b"1!"


@pytest.mark.parametrize("first", ["the other middleware", "guardrails"])
def test_flask_other_middlewares_stay_where_they_are(first):
    """Installed before or after: outside of the application, in their order."""
    db, order = refusing(), []
    app = shop(db)

    def install():
        inner = app.wsgi_app
        app.wsgi_app = lambda environ, start: order.append("other") or inner(environ, start)

    steps = [install, lambda: Guardrails(app, guards=[db])]
    for step in steps if first == "the other middleware" else reversed(steps):
        step()
    assert app.test_client().get("/orders").json["guard"] == "db"
    assert order == ["other"]


def test_flask_wrong_settings_are_named():
    """At start-up, as for every other way to install it."""
    with pytest.raises(ConfigurationError, match="no option 'max_inflight'; did you mean 'max_in_flight'"):
        Guardrails(shop(None, GUARDRAILS_MAX_INFLIGHT=7))
    app = shop(None)
    Guardrails(app)
    with pytest.raises(ConfigurationError, match="already"):
        Guardrails(app)


# --- Django ----------------------------------------------------------------------------------------

PLACE = {}
"""What the views below work with in the present test."""


def orders(_request, number=None):
    """A synchronous view."""
    return HttpResponse(PLACE["work"]())


named = Guard("named", max_concurrent_calls=3)


@requires(named)
def marked(request):
    """A view that says what it cannot do without."""
    return orders(request)


async def orders_async(_request, number=None):
    """An asynchronous view."""
    await asyncio.sleep(0)
    return HttpResponse(PLACE["work"]())


def stream(request):
    """A view whose answer goes on after it, in the way of the server."""

    async def pieces():
        yield b"part"
        yield b"part"

    asynchronous = isinstance(request, ASGIRequest)
    return StreamingHttpResponse(pieces() if asynchronous else iter([b"part", b"part"]))


urlpatterns = [
    path("orders/<int:number>", orders),
    path("orders-async/<int:number>", orders_async),
    path("orders", orders),
    path("marked", marked),
    path("orders-async", orders_async),
    path("stream", stream),
]


def inner_refusal(get_response):
    """Another middleware further in, which runs into a guard."""

    def middleware(request):
        PLACE["db"].run(len, "x")
        return get_response(request)

    return middleware


class Site:
    """A Django project under one kind of server."""

    def __init__(self, ask, environment, handler):
        self.ask = ask
        self.environment = environment
        self.handler = handler

    def get(self, where, method="GET", headers=()):
        """Serves one request to its end."""
        seen = self.ask(self.handler, self.environment(where, method=method, headers=headers))
        assert seen.raised is None
        return seen


@pytest.fixture(params=["WSGI", "ASGI"])
def project(request):
    """Makes projects with the middleware installed, for each kind of server."""

    def make(*inner, wrap=lambda handler: handler, **options):
        middleware = ["guardrails.integrations.django.GuardrailsMiddleware", *inner]
        changed.append(override_settings(MIDDLEWARE=middleware, ROOT_URLCONF=__name__, GUARDRAILS=options))
        changed[-1].enable()
        if request.param == "WSGI":
            return Site(wsgi_client.ask, wsgi_client.environment, wrap(WSGIHandler()))
        return Site(asgi_client.ask, asgi_client.http, wrap(ASGIHandler()))

    changed = []
    yield make
    for settings_of_project in changed:
        settings_of_project.disable()
    PLACE.clear()
    gc.collect()  # the traceback of a view's error holds an executor of asgiref's, and so its thread


@pytest.mark.parametrize("view", ["/orders", "/orders-async"])
def test_django_answers_without_logging_an_error(project, view, caplog):
    """No unhandled exception, no mail to the administrators; views of both kinds, servers of both kinds."""
    db = refusing()
    PLACE["work"] = lambda: db.run(len, "four")
    site = project(guards=[db])
    refused = site.get(view)
    assert (refused.status, refused.problem["code"]) == (503, "circuit_open")
    assert not [record for record in caplog.records if record.exc_info]
    db.reset()
    answer = site.get(view)
    assert (answer.status, answer.body) == (200, b"4")


@pytest.fixture
def mails():
    """What Django mails to the administrators."""
    address = "operations@shop.example"
    admins = [address if django.VERSION >= (6, 0) else ("Operations", address)]
    backend = "django.core.mail.backends.locmem.EmailBackend"
    if django.VERSION >= (6, 1):
        sending = {"MAILERS": {"default": {"BACKEND": backend}}}
    else:
        sending = {"EMAIL_BACKEND": backend}
    with override_settings(ADMINS=admins, **sending):
        mail.outbox = []
        yield mail.outbox
        del mail.outbox


@pytest.mark.parametrize("view", ["/orders", "/orders-async"])
def test_django_mails_no_refusal_to_the_administrators(mails, project, view, caplog):
    """Nor are refusals and timeouts errors in its log, wherever they are answered."""
    db = refusing()
    site = project(guards=[db], requires={"/health": [db]})
    PLACE["work"] = lambda: db.run(len, "four")
    assert site.get(view).status == 503
    PLACE["work"] = raise_timeout
    assert site.get(view).status == 504
    assert site.get("/health").status == 503
    assert ([record for record in caplog.records if record.name == "django.request"], mails) == ([], [])
    logging.getLogger("django.request").error("an error is mailed")
    assert len(mails) == 1


def raise_timeout():
    raise CallTimeoutError("db", 1.0)


def test_django_head_and_html(project):
    """The answer is worded for the client, and HEAD gets its headers."""
    db = refusing()
    PLACE["work"] = lambda: db.run(len, "x")
    site = project(guards=[db])
    page = site.get("/orders", headers=[("accept", "text/html")])
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    head = site.get("/orders", method="HEAD")
    assert (head.status, head.body, int(head.headers["content-length"]) > 100) == (503, b"", True)


def test_django_finds_guards_by_name(project):
    """Settings name objects that are made elsewhere."""
    PLACE["work"] = lambda: named.run(len, "x")
    named.force_open()
    try:
        here = f"{__name__}.named"
        refused = project(guards=[here], requires={"/orders": [here]}).get("/orders")
        assert (refused.status, refused.problem["guard"]) == (503, "named")
    finally:
        named.reset()


def test_django_bug_stays_a_bug(project, caplog):
    """Everything else is Django's."""
    PLACE["work"] = lambda: 1 // 0
    assert project().get("/orders").status == 500
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("guards", ["its own", "another"])
def test_django_refusal_in_a_middleware(project, guards):
    """Django makes a 500 of it before ours is asked; another guard's is left to the middleware around."""
    db = PLACE["db"] = refusing()
    mine = [db] if guards == "its own" else [refusing("other")]

    def wrap(handler):
        kind = ASGIMiddleware if isinstance(handler, ASGIHandler) else WSGIMiddleware
        return handler if guards == "its own" else kind(handler, guards=[db])

    refused = project(f"{__name__}.inner_refusal", wrap=wrap, guards=mine).get("/orders")
    assert (refused.status, refused.problem["guard"]) == (503, "db")


@pytest.mark.parametrize("view", ["/orders", "/orders-async"])
def test_django_request_timeout_reaches_the_view(project, view, clock):
    """In the view's thread or task; and it is gone afterwards."""
    PLACE["work"] = lambda: str(remaining())
    site = project(request_timeout=2.0, deadline_headers=["X-Request-Timeout-Ms"], clock=clock)
    assert site.get(view).body == b"2.0"
    assert site.get(view, headers=[("x-request-timeout-ms", "500")]).body == b"0.5"
    assert remaining() is None


@pytest.mark.parametrize("view", ["/orders", "/orders-async"])
def test_django_routes_have_a_class(project, view):
    """In the view's thread or task; the word of a trusted header outranks it."""
    PLACE["work"] = class_here
    site = project(criticality={view: "SHEDDABLE"}, criticality_header="X-Criticality")
    assert site.get(view).body == b"SHEDDABLE"
    assert site.get(view, headers=[("x-criticality", "CRITICAL_PLUS")]).body == b"CRITICAL_PLUS"
    assert class_here() == "CRITICAL"


@pytest.mark.parametrize("view", ["orders", "orders-async"])
def test_django_compartments_form_by_templates(project, view, tmp_path):
    """All orders are one workload, from whichever thread they come to the pool."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", poolclass=QueuePool)
    db = protect(engine, compartments="auto")
    PLACE["work"] = lambda: str(engine.connect().close())
    site = project()
    assert {site.get(f"/{view}/{number}").status for number in range(30)} == {200}
    assert [part.name for part in db.compartments] == [f"GET /{view}/{{number:int}}"]
    assert site.get(f"/{view}/x").status == 404
    engine.dispose()


@pytest.mark.parametrize("view", ["orders", "orders-async"])
def test_django_view_that_lives_of_a_guard_is_not_called_while_that_refuses(project, view, clock):
    """Once enough of its requests have come to the guard, and one was refused by it; not where it is off."""
    for settings_of_project, expected in [({}, 0), ({"learn_routes": False}, 1)]:
        db, called = Guard("db", max_concurrent_calls=3), []
        PLACE["work"] = lambda db=db, called=called: called.append(1) or db.run(len, "four")
        site = project(guards=[db], clock=clock, **settings_of_project)
        for number in range(20):
            assert site.get(f"/{view}/{number}").body == b"4"
        db.force_open()
        assert site.get(f"/{view}/7").problem["code"] == "circuit_open"
        called.clear()
        assert site.get(f"/{view}/7").problem["code"] == "circuit_open"
        assert len(called) == expected


def test_django_view_may_say_itself_what_it_requires(project):
    """From the first request on, and not for a path that is exempt."""
    named.force_open()
    try:
        PLACE["work"] = lambda: "served"
        assert project().get("/marked").problem["guard"] == "named"
        assert project(exempt=["/marked"]).get("/marked").body == b"served"
    finally:
        named.reset()


def test_django_request_is_over_when_its_response_is_closed(project):
    """Whatever became of it."""
    site = project(max_in_flight=1)
    PLACE["work"] = lambda: "fine"
    for where in ["/stream", "/orders", "/missing", "/stream", "/orders"]:
        assert site.get(where).status in {200, 404}
    PLACE["work"] = lambda: 1 // 0
    assert [site.get("/orders").status for _ in range(2)] == [500, 500]


@pytest.mark.parametrize("project", ["WSGI"], indirect=True)
def test_django_stream_counts_until_it_is_closed(project):
    """A place is taken while a stream is under way."""
    site = project(max_in_flight=1)
    request = wsgi_client.Request(site.handler, wsgi_client.environment("/stream")).begin()
    request.step()
    assert site.get("/stream").problem["code"] == "bulkhead_full"
    request.close()
    assert site.get("/stream").status == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guard": []}, "settings.GUARDRAILS has no option 'guard'; did you mean 'guards'?"),
        ({"guards": "db"}, "guards must be a list of Guard objects"),
        (
            {"guards": ["no_such_shop.db"]},
            "GUARDRAILS: 'no_such_shop.db' cannot be imported: No module named",
        ),
        ({"requires": {"/": ["json.db"]}}, "GUARDRAILS: 'json.db' cannot be imported"),
        ({"clock": 1}, "clock must be callable"),
        ({"threads": 1}, "threads must be a whole number from 2"),
        ({"max_in_flight": 0, "request_timeout": -1}, r"request_timeout must be .*max_in_flight must be"),
        ({"requires": "db"}, "requires must be "),
        ({"criticality": {"/": "HIGH"}}, "criticality.* must be 'SHEDDABLE' or "),
    ],
    ids=str,
)
def test_django_wrong_settings_are_named(project, options, words):
    """When the server starts."""
    with pytest.raises(ConfigurationError, match=words):
        project(**options)


def test_django_backend_without_its_guard_ends_the_start(project):
    """Not the first request."""
    with (
        django_lab.known("unguarded", {"ENGINE": django_lab.ENGINE, "NAME": "shop", "OPTIONS": {}}),
        pytest.raises(ConfigurationError, match=r"DATABASES\['unguarded'\]: OPTIONS\['guard'\] must be"),
    ):
        project()


@pytest.mark.parametrize(("threads", "warned"), [(2, True), (3, False)])
def test_django_slots_that_can_take_every_thread_are_warned_of(project, request, caplog, threads, warned):
    """Under WSGI: under ASGI each request has a thread of its own."""
    project(guards=[Guard("db", max_concurrent_calls=2)], threads=threads)
    under_wsgi = "WSGI" in request.node.callspec.params.values()
    assert (f"2 slots and the server has {threads} threads" in caplog.text) is (warned and under_wsgi)


@pytest.mark.parametrize("name", ["redis://:hunter2@cache.internal/0", "hunter2." * 12])
def test_django_a_dotted_name_that_is_none_is_not_repeated(project, name):
    """It may be an address with a password, in the wrong setting."""
    with pytest.raises(ConfigurationError, match=r"GUARDRAILS: .* cannot be imported: .*Error$") as refusal:
        project(guards=[name])
    assert str(refusal.value).count("hunter2") <= 5 * ("://" not in name)
    assert refusal.value.__suppress_context__


# --- Litestar --------------------------------------------------------------------------------------


@pytest.mark.parametrize("install", ["as its middleware", "around it"])
@pytest.mark.parametrize("threaded", [True, False])
def test_litestar(install, threaded, caplog):
    """Its exception handler stands further out than a middleware, so both ways see the error."""
    db = refusing()

    def work() -> str:
        return str(db.run(len, "four"))

    async def work_async() -> str:
        return work()

    handler = (
        litestar.get("/orders", sync_to_thread=True)(work)
        if threaded
        else litestar.get("/orders")(work_async)
    )
    options = {"guards": [db], "exempt": ["/livez"]}
    if install == "around it":
        app = ASGIMiddleware(litestar.Litestar([handler], openapi_config=None), **options)
    else:
        middleware = [DefineMiddleware(ASGIMiddleware, **options)]
        app = litestar.Litestar([handler], middleware=middleware, openapi_config=None)
    scope = asgi_client.http("/orders")
    refused = asgi_client.ask(app, scope)
    assert (refused.status, refused.problem["code"]) == (503, "circuit_open")
    db.reset()
    assert asgi_client.ask(app, asgi_client.http("/orders")).body == b"4"
