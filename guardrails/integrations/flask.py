"""The WSGI middleware as a Flask extension. Knows Flask, and nothing of what the guards protect."""

from __future__ import annotations

from typing import Any

try:
    from flask import Flask, Response, request
except ImportError as error:
    raise ImportError("Flask is missing: pip install flask") from error

from guardrails.errors import CallTimeoutError, ConfigurationError, GuardrailsError, RejectedError
from guardrails.integrations._wsgi import answer_of
from guardrails.integrations.wsgi import GuardrailsMiddleware

__all__ = ["Guardrails"]

_KEY = "guardrails"


class Guardrails:
    """Puts the middleware around an application, and its answers where Flask looks for error handlers.

    ::

        guardrails = Guardrails(guards=[db], exempt=["/livez"])
        guardrails.init_app(app)

    Refusals and timeouts of views are answered by an error handler, so Flask does not log each of them as
    an unhandled exception; the application's own handlers for these errors come first. The middleware
    itself is ``app.extensions["guardrails"]``.

    Args:
        app: The application, or None to call `init_app` later.
        **settings: Those of `guardrails.integrations.wsgi.GuardrailsMiddleware`. What is not given here is
            taken from the application's configuration: ``GUARDRAILS_MAX_IN_FLIGHT`` and so on.

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
        middleware = GuardrailsMiddleware(app.wsgi_app, **settings)

        def answer(error: GuardrailsError) -> Response:
            problem = middleware.problem(error)
            if problem is None:
                raise error
            status, headers, body = answer_of(problem, request.environ)
            return Response(body, status, headers)

        for kind in (RejectedError, CallTimeoutError):
            app.register_error_handler(kind, answer)
        app.extensions[_KEY] = middleware
        app.wsgi_app = middleware  # type: ignore[method-assign]  # the way Flask documents
