"""Each setting of the middlewares and status pages is defined once; the public signatures agree with it."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields

import flask
import pytest

from guardrails import ConfigurationError, Guard
from guardrails._http.settings import HTTPSettings, StatusSettings
from guardrails._util.checks import Faults
from guardrails.integrations import asgi, starlette, wsgi
from guardrails.integrations.flask import Guardrails


async def asgi_app(scope, receive, send):
    """Answers nothing."""


def wsgi_app(environ, start_response):
    """Answers nothing."""


@pytest.mark.parametrize(
    ("public", "settings", "without"),
    [
        pytest.param(asgi.GuardrailsMiddleware.__init__, HTTPSettings, {"threads"}, id="asgi"),
        pytest.param(
            wsgi.GuardrailsMiddleware.__init__,
            HTTPSettings,
            {"learn_routes", "server_timing", "cancel_on_disconnect"},
            id="wsgi",
        ),
        pytest.param(starlette.status_app, StatusSettings, set(), id="starlette status_app"),
        pytest.param(wsgi.status_app, StatusSettings, {"auth"}, id="wsgi status_app"),
    ],
)
def test_public_signatures_have_the_names_and_defaults_of_the_settings(public, settings, without):
    """An editor shows them there, so they are written there a second time."""
    parameters = {
        parameter.name: parameter.default
        for parameter in inspect.signature(public).parameters.values()
        if parameter.name not in {"self", "app", "unknown"}
    }
    if settings is StatusSettings:
        assert parameters["guards"] is inspect.Parameter.empty
        parameters["guards"] = ()
    assert parameters == {each.name: each.default for each in fields(settings) if each.name not in without}


@pytest.mark.parametrize("make", [starlette.status_app, wsgi.status_app])
@pytest.mark.parametrize("guards", [[], (), iter([])])
def test_status_pages_without_a_guard_are_refused(make, guards):
    """They would show nothing and be ready for ever."""
    with pytest.raises(ConfigurationError, match="guards must be a list of Guard objects, at least 1, got"):
        make(guards)


@pytest.mark.parametrize(
    ("middleware", "app"),
    [
        pytest.param(asgi.GuardrailsMiddleware, asgi_app, id="asgi"),
        pytest.param(wsgi.GuardrailsMiddleware, wsgi_app, id="wsgi"),
    ],
)
def test_a_request_timeout_that_is_likely_in_milliseconds_is_logged(middleware, app, caplog):
    middleware(app, request_timeout=499)
    assert caplog.messages == []
    middleware(app, request_timeout=5000)
    assert caplog.messages == ["middleware: its request_timeout is 5000 seconds; are these milliseconds?"]


WRONG = {
    "guards": 1,
    "requires": 1,
    "exempt": 1,
    "request_timeout": 0,
    "deadline_headers": 1,
    "max_in_flight": 0,
    "criticality": 1,
    "criticality_header": "",
    "clock": 1,
    "random": 1,
}


@pytest.mark.parametrize(
    ("middleware", "more"),
    [
        (
            asgi.GuardrailsMiddleware,
            {"learn_routes": "no", "server_timing": "no", "cancel_on_disconnect": "no"},
        ),
        (wsgi.GuardrailsMiddleware, {"threads": 1}),
        (
            lambda app, **settings: Guardrails(flask.Flask("shop"), **settings),
            {"learn_routes": None, "threads": 1},
        ),
    ],
    ids=["asgi", "wsgi", "flask"],
)
def test_all_wrong_settings_are_named_in_one_error(middleware, more):
    """The application counts as one of them."""
    with pytest.raises(ConfigurationError) as refusal:
        middleware(None, **WRONG, **more)
    for name in WRONG | more:
        assert f" {name} must be " in str(refusal.value)


def test_a_setting_of_another_middleware_is_refused():
    """Each middleware has those that it can keep."""
    with pytest.raises(ConfigurationError, match="no option 'threads'"):
        asgi.GuardrailsMiddleware(asgi_app, threads=8)
    with pytest.raises(ConfigurationError, match="no option 'server_timing'"):
        wsgi.GuardrailsMiddleware(wsgi_app, server_timing=True)
    with pytest.raises(ConfigurationError, match="no option 'server_timing'"):
        Guardrails(flask.Flask("shop"), server_timing=True)


def test_flask_names_the_nearest_of_its_own_settings():
    """``learn_routes`` is one of them, though the WSGI middleware does not have it."""
    with pytest.raises(ConfigurationError, match="no option 'learn_route'; did you mean 'learn_routes'"):
        Guardrails(flask.Flask("shop"), learn_route=False)


def test_status_app_names_a_wrong_auth_with_the_rest():
    """One error for all that is wrong."""
    with pytest.raises(ConfigurationError, match=r"guards must be .*auth must be .*stuck_after must be"):
        starlette.status_app("db", auth="secret", stuck_after=0)


def test_checked_settings_cannot_be_changed():
    """A middleware has read them when it was made: a later change would reach a part of it only."""
    guard = Guard("db", max_concurrent_calls=1)
    settings = HTTPSettings.checked(Faults("test"), {"guards": iter([guard]), "requires": [guard]})
    assert (settings.guards, settings.requires) == ((guard,), {"/": (guard,)})
    with pytest.raises(FrozenInstanceError):
        settings.guards = ()
