"""The extension in every application that Flask's tests make."""

from __future__ import annotations

import _pytest.monkeypatch
from flask import Flask
from guarding import after_init, count, pytest_sessionfinish

from guardrails import Guard
from guardrails.integrations.flask import Guardrails

__all__ = ["pytest_sessionfinish"]

EXTENSION = Guardrails(
    guards=[Guard("suite", max_concurrent_calls=100)],
    requires=[Guard("needed", max_concurrent_calls=100)],
    exempt=["/exempt"],
    request_timeout=60.0,
    deadline_headers=["X-Request-Timeout-Ms"],
    max_in_flight=1000,
    criticality={"/": "CRITICAL"},
)
"""Every setting that makes the middleware do more and does not change an answer."""

if not hasattr(_pytest.monkeypatch, "notset"):  # pytest 9.2 has renamed what the tests import
    _pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET


def extend(app):
    """Installs the extension."""
    EXTENSION.init_app(app)
    count()


after_init(Flask, extend)
