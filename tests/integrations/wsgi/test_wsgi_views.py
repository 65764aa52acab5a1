"""What the WSGI side knows of views: the template that tells workloads apart, and what they require.

Flask says which view a request has come to, and so does Django (see test_frameworks.py); Bottle and a Flask
without the extension leave the route in the environ.
"""

from __future__ import annotations

import sys
import threading
import time

import bottle
import flask
import pytest
from sqlalchemy import QueuePool, create_engine

from guardrails import Guard, protect
from guardrails._http.error_causes import note_fatal
from guardrails._http.policy import RequestPolicy
from guardrails._http.settings import HTTPSettings
from guardrails._http.tracked_request import TrackedRequest, Views
from guardrails._runtime.scope import close, current, enter
from guardrails._util.checks import Faults
from guardrails.integrations.flask import Guardrails, requires
from guardrails.integrations.wsgi import GuardrailsMiddleware
from support.wsgi_client import ask, environment

ENOUGH = 20
"""Requests after which something is known of a view."""


# --- the template ------------------------------------------------------------------------------------


def with_the_extension(work):
    """Flask, as its users install it."""
    app = around_flask(work)
    Guardrails(app)
    return app


def around_flask(work):
    """A Flask application that knows of nothing."""
    app = flask.Flask("shop")
    shop = flask.Blueprint("shop", "shop", url_prefix="/shop")

    @shop.get("/orders/<int:number>")
    def order(number):
        return str(work())

    app.register_blueprint(shop)
    app.add_url_rule("/reports", view_func=lambda: str(work()), endpoint="reports")
    return app


def around_bottle(work):
    """Bottle, which has no extension of ours."""
    app = bottle.Bottle()
    app.get("/shop/orders/<number:int>", callback=lambda number: str(work()))
    app.get("/reports", callback=lambda: str(work()))
    return app


@pytest.mark.parametrize(
    ("framework", "template"),
    [
        (with_the_extension, "GET /shop/orders/{number:int}"),
        (around_flask, "GET /shop/orders/{number:int}"),
        (around_bottle, "GET /shop/orders/{number:int}"),
    ],
)
def test_compartments_form_by_templates(framework, template, tmp_path):
    """A thousand orders are one workload; what comes from outside of a route is nobody's."""
    engine = create_engine(f"sqlite:///{tmp_path}/db", poolclass=QueuePool)
    db = protect(engine, compartments="auto")
    app = framework(lambda: engine.connect().close())
    if framework is not with_the_extension:
        app = GuardrailsMiddleware(app)
    for path in [*(f"/shop/orders/{number}" for number in range(30)), "/reports", "/shop/orders/x", "/no"]:
        assert ask(app, environment(path)).status == (
            200 if path[-1].isdigit() or path == "/reports" else 404
        )
    admitted = {part.name: part.snapshot().admitted for part in db.compartments}
    assert admitted == {template: 30, "GET /reports": 1}
    engine.dispose()


@pytest.mark.parametrize("left", [None, "text", 7, [1]], ids=repr)
def test_what_others_left_in_the_environ_is_no_template(left):
    """A key of that name with something else in it."""
    seen = []

    def app(environ, start_response):
        seen.append(current().template())
        start_response("204 No Content", [])
        return []

    ask(GuardrailsMiddleware(app), environment(**{"werkzeug.request": left, "bottle.route": left}))
    assert seen == [None]


# --- what a view cannot do without ---------------------------------------------------------------------


@pytest.fixture
def db(make_guard):
    """What the views ask."""
    return make_guard("db")


@pytest.fixture
def shop(db, clock):
    """A Flask application with two views, one of which asks the guard; and which of them were called."""

    def make(mark=lambda view: view, **settings):
        app, called = flask.Flask("shop"), []

        @app.get("/orders/<int:number>")
        @mark
        def order(number):
            called.append("order")
            return str(db.run(len, "four"))

        @app.get("/ping")
        def ping():
            called.append("ping")
            return "pong"

        Guardrails(app, guards=[db], clock=clock, **settings)
        return (lambda path, method="GET": ask(app, environment(path, method=method))), called

    return make


def test_a_view_that_lives_of_a_guard_is_not_called_while_that_refuses(shop, db):
    """After one refusal: what it would do before it gets there is spared; the others are served."""
    get, called = shop()
    for number in range(ENOUGH):
        assert (get(f"/orders/{number}").body, get("/ping").body) == (b"4", b"pong")
    db.force_open()
    called.clear()
    assert (get("/orders/7").problem["guard"], called) == ("db", ["order"])
    called.clear()
    refused = get("/orders/7")
    assert (refused.status, refused.problem["code"], refused.problem["guard"]) == (503, "circuit_open", "db")
    assert get("/ping").body == b"pong"
    assert called == ["ping"]
    db.reset()
    assert get("/orders/7").body == b"4"


def test_probes_get_through(shop, db, clock):
    """Of a half-open circuit, which closes by them."""
    get, _ = shop()
    for number in range(ENOUGH):
        get(f"/orders/{number}")
    while db.state == "closed":
        with pytest.raises(OSError):
            db.run(fail)
    assert (db.state, get("/orders/1").status) == ("open", 503)
    clock.advance(3)
    assert [get("/orders/1").body for _ in range(3)] == [b"4"] * 3
    assert db.state == "closed"


def fail():
    """What a database says that is gone."""
    raise OSError


def test_a_view_may_say_so_itself(shop, db):
    """From the first request on; a path that is exempt is let in, and is refused further in."""
    db.force_open()
    for settings, expected in [({}, []), ({"exempt": ["/orders"]}, ["order"])]:
        get, called = shop(requires(db), **settings)
        assert get("/orders/7").problem["code"] == "circuit_open"
        assert called == expected


def test_preflight_of_a_view_is_answered_all_the_same(shop, db):
    """Flask answers it without the view; a browser could not read the refusal of the view otherwise."""
    db.force_open()
    get, called = shop(requires(db))
    allowed = get("/orders/7", "OPTIONS").headers["allow"]
    assert set(allowed.split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert get("/orders/7").status == 503
    assert called == []


def test_learning_can_be_switched_off(shop, db):
    """By an argument here; the configuration can say it too."""
    get, called = shop(learn_routes=False)
    for number in range(ENOUGH):
        get(f"/orders/{number}")
    db.force_open()
    called.clear()
    assert get("/orders/7").status == 503
    assert called == ["order"]


def test_requests_of_no_view_are_nobody_s(shop):
    """They get the answers that they always got."""
    get, called = shop()
    assert [get("/no").status, get("/ping", "POST").status] == [404, 405]
    assert called == []


def test_a_view_may_be_tried_without_a_server(db):
    """As Flask's users do in their own tests; nothing is learnt from it."""
    app = flask.Flask("shop")
    app.add_url_rule("/ping", view_func=lambda: "pong", endpoint="ping")
    Guardrails(app, guards=[db])
    with app.test_request_context("/ping"):
        assert app.full_dispatch_request().data == b"pong"


def test_endpoints_made_without_end_do_not_fill_the_memory(db, monkeypatch):
    """Beyond so many nothing is learnt; what they are marked with counts all the same."""
    monkeypatch.setattr(Views, "MOST", 3)
    views = Views(policy(), time.monotonic, learns=True)
    db.force_open()
    for number in range(10):
        assert views.check_view(lambda: None, f"/made/{number}", "/made") is None
        assert views.check_view(requires(db)(lambda: None), f"/made/{number}", "/made").code == "circuit_open"
    assert len(views._known) == 3


def policy():
    """A middleware's decisions, without settings."""
    return RequestPolicy(HTTPSettings.checked(Faults("test"), {}))


def test_many_threads_learn_of_one_view():
    """Requests for the same view end at the same moment, and each was at other guards."""
    guards = [Guard(f"guard {number}", max_concurrent_calls=9) for number in range(30)]
    views, failed = Views(policy(), time.monotonic, learns=True), []

    def serve(mine):
        try:
            for number in range(600):
                tracked = enter(TrackedRequest(time.monotonic, None, None))
                views.check_view(serve, "/orders", "/orders")
                for guard in (guards[0], mine[number % len(mine)]):
                    guard.run(len, "x")
                note_fatal(("guard 0", None))
                close(tracked)
                tracked.learn()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=serve, args=(guards[start::4],)) for start in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    [view] = views._known.values()
    assert [needed_guard.call_settings.name for needed_guard in view.stats.needed] == ["guard 0"]
