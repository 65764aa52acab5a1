"""The WSGI middleware around every application that a test client of Werkzeug's calls."""

from __future__ import annotations

from guarding import after_init, count, pytest_sessionfinish
from guarding_edge import SETTINGS
from werkzeug.test import Client

from guardrails.integrations.wsgi import GuardrailsMiddleware

__all__ = ["pytest_sessionfinish"]


def wrap(client):
    """Puts the middleware around the application of a test client."""
    client.application = GuardrailsMiddleware(client.application, **SETTINGS)
    count()


after_init(Client, wrap)
