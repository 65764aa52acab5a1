"""The middleware around every application that Starlette's tests call, or inside every Starlette."""

from __future__ import annotations

import os

from guarding import after_init, count, pytest_sessionfinish
from guarding_edge import SETTINGS
from starlette.applications import Starlette
from starlette.testclient import TestClient

from guardrails.integrations.asgi import GuardrailsMiddleware

__all__ = ["pytest_sessionfinish"]


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
