"""The WSGI middleware around every application that a test client of Werkzeug's calls."""

from __future__ import annotations

from guarding import after_init, count, pytest_sessionfinish
from werkzeug.test import Client

from guardrails import Guard
from guardrails.integrations.wsgi import GuardrailsMiddleware

__all__ = ["pytest_sessionfinish"]

SETTINGS = {
    "guards": [Guard("suite", max_concurrent_calls=100)],
    "requires": [Guard("needed", max_concurrent_calls=100)],
    "exempt": ["/exempt"],
    "request_timeout": 60.0,
    "deadline_headers": ["X-Request-Timeout-Ms"],
    "max_in_flight": 1000,
    "criticality": {"/": "CRITICAL"},
}
"""Every setting that makes the middleware do more and does not change an answer."""


def wrap(client):
    """Puts the middleware around the application of a test client."""
    client.application = GuardrailsMiddleware(client.application, **SETTINGS)
    count()


after_init(Client, wrap)
