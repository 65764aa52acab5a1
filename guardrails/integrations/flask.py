"""The WSGI middleware as a Flask extension. Depends on Flask; must not import a protected library."""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

try:
    from flask import Flask, Response, current_app, request
except ImportError as error:
    raise ImportError("Flask is missing: pip install flask") from error

from guardrails._http.answers import Problem
from guardrails._http.environ import answer_of
from guardrails._http.routes import requires
from guardrails._http.settings import HTTPSettings
from guardrails._util.names import request_name
from guardrails.errors import CallTimeoutError, ConfigurationError, GuardrailsError, RejectedError
from guardrails.integrations.wsgi import GuardrailsMiddleware

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Guardrails", "requires"]

_KEY = "guardrails"
_AUTOMATIC = "provide_automatic_options"  # an attribute that Flask adds to a Werkzeug rule


class Guardrails:
    """Wraps an application in the middleware, and registers its answers as Flask's error handlers.

    ::

        guardrails = Guardrails(guards=[db], exempt=["/livez"])
        guardrails.init_app(app)

    An error handler answers the refusals and timeouts of views, so Flask does not log each of them as an
    unhandled exception; the application's own handlers for these errors come first. The middleware itself is
    ``app.extensions["guardrails"]``. The guards that a view needs, marked with `requires` or learnt from its
    requests, are checked before the view is called.

    Args:
        app: The application, or None to call `init_app` later.
        **settings: The settings of `guardrails.integrations.wsgi.GuardrailsMiddleware`, and ``learn_routes``.
            A setting that is not given here is taken from the application's configuration, such as
            ``GUARDRAILS_MAX_IN_FLIGHT``.

    Raises:
        ConfigurationError: A setting is wrong, or the application has the extension already.
    """

    def __init__(self, app: Flask | None = None, **settings: Any) -> None:
        self._settings = settings
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Installs the extension in an application; one object may serve several."""
        if _KEY in app.extensions:
            raise ConfigurationError("this Flask application has guardrails already")
        settings = app.config.get_namespace("GUARDRAILS_") | self._settings
        HTTPSettings.refuse_unknown(
            "GuardrailsMiddleware", settings, without=("server_timing", "cancel_on_disconnect")
        )
        wrapped = "wsgi_app" in vars(app)  # by another middleware, which keeps the application alive
        middleware = _Middleware(app.wsgi_app if wrapped else _Unwrapped(app), settings)
        views = middleware.views()

        def check_view() -> Response | None:
            rule = request.url_rule
            if rule is None or (request.method == "OPTIONS" and getattr(rule, _AUTOMATIC, False)):
                return None  # a 404, or a request that Flask answers itself, such as a preflight
            name, view = request_name(request.method, rule.rule), current_app.view_functions[rule.endpoint]
            problem = views.check_view(view, name, request.path)
            return None if problem is None else _response(problem)

        def answer(error: GuardrailsError) -> Response:
            problem = middleware.problem(error)
            if problem is None:
                raise error
            return _response(problem)

        app.before_request(check_view)
        for kind in (RejectedError, CallTimeoutError):
            app.register_error_handler(kind, answer)
        app.extensions[_KEY] = middleware
        if wrapped:
            app.wsgi_app = middleware  # type: ignore[method-assign]  # the way Flask documents
        else:
            app.__class__ = _guarded(type(app))


class _Middleware(GuardrailsMiddleware):
    def __init__(self, app: WSGIApplication, given: Mapping[str, Any]) -> None:
        self._configure(app, given)  # with a setting that the middleware itself does not have: learn_routes


class _Unwrapped:
    """An application's own ``wsgi_app``, without a reference that keeps the application alive."""

    def __init__(self, app: Flask) -> None:
        self._method = weakref.WeakMethod(app.wsgi_app)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = self._method()
        if method is None:
            raise RuntimeError("the Flask application of this middleware is gone: keep the application")
        return method(environ, start_response)


def _wsgi_app(app: Flask, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Serves one request through the middleware."""
    answer: Iterable[bytes] = app.extensions[_KEY](environ, start_response)
    return answer


def _guarded(kind: type[Flask]) -> type[Flask]:
    # A class, because an attribute of the application would be a reference cycle.
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    guarded: type[Flask] = types.new_class(kind.__name__, (kind,))
    for name, value in {"wsgi_app": _wsgi_app, **names}.items():
        setattr(guarded, name, value)
    return guarded


def _response(problem: Problem) -> Response:
    status, headers, body = answer_of(problem, request.environ)
    return Response(body, status, headers)
