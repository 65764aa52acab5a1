"""The middleware around every application that Starlette's tests call, or inside every Starlette."""

from __future__ import annotations

import os

from guarding import after_init, count, pytest_sessionfinish
from starlette.applications import Starlette
from starlette.testclient import TestClient

from guardrails import Guard
from guardrails.integrations.asgi import GuardrailsMiddleware

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
    client.app = client._transport.app = GuardrailsMiddleware(client.app, **SETTINGS)
    count()


def add(app):
    """Puts the middleware into an application, as its first one."""
    app.add_middleware(GuardrailsMiddleware, **SETTINGS)
    count()


if os.environ["SUITE_PLACE"] == "around":
    after_init(TestClient, wrap)
else:
    after_init(Starlette, add)
