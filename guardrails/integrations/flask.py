"""The WSGI middleware as a Flask extension. Knows Flask, and nothing of what the guards protect."""

from __future__ import annotations

from typing import Any

try:
    from flask import Flask, Response, request
except ImportError as error:
    raise ImportError("Flask is missing: pip install flask") from error

from guardrails.errors import CallTimeoutError, ConfigurationError, GuardrailsError, RejectedError
from guardrails.integrations._environ import answer_of
from guardrails.integrations._http import Problem
from guardrails.integrations._routes import requires
from guardrails.integrations.wsgi import GuardrailsMiddleware

__all__ = ["Guardrails", "requires"]

_KEY = "guardrails"


class Guardrails:
    """Puts the middleware around an application, and its answers where Flask looks for error handlers.

    ::

        guardrails = Guardrails(guards=[db], exempt=["/livez"])
        guardrails.init_app(app)

    Refusals and timeouts of views are answered by an error handler, so Flask does not log each of them as
    an unhandled exception; the application's own handlers for these errors come first. The middleware
    itself is ``app.extensions["guardrails"]``. What a view cannot do without, marked with `requires` or
    learnt from its requests, is asked before the view is called.

    Args:
        app: The application, or None to call `init_app` later.
        **settings: Those of `guardrails.integrations.wsgi.GuardrailsMiddleware`, and ``learn_routes``. What
            is not given here is taken from the application's configuration: ``GUARDRAILS_MAX_IN_FLIGHT``
            and so on.

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
        learns = settings.pop("learn_routes", True)
        middleware = GuardrailsMiddleware(app.wsgi_app, **settings)
        views = middleware.views(learns=learns)

        def arrive() -> Response | None:
            rule = request.url_rule
            if rule is None:
                return None  # on its way to a 404
            problem = views.arrive(app.view_functions[rule.endpoint], rule.rule, request.path)
            return None if problem is None else _response(problem)

        def answer(error: GuardrailsError) -> Response:
            problem = middleware.problem(error)
            if problem is None:
                raise error
            return _response(problem)

        app.before_request(arrive)
        for kind in (RejectedError, CallTimeoutError):
            app.register_error_handler(kind, answer)
        app.extensions[_KEY] = middleware
        app.wsgi_app = middleware  # type: ignore[method-assign]  # the way Flask documents


def _response(problem: Problem) -> Response:
    status, headers, body = answer_of(problem, request.environ)
    return Response(body, status, headers)
