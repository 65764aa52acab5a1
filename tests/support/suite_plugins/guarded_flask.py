"""The extension in every application that Flask's tests make."""

from __future__ import annotations

import _pytest.monkeypatch
from flask import Flask
from guarding import after_init, count, pytest_sessionfinish
from guarding_edge import SETTINGS

from guardrails.integrations.flask import Guardrails

__all__ = ["pytest_sessionfinish"]

EXTENSION = Guardrails(**SETTINGS)

if not hasattr(_pytest.monkeypatch, "notset"):  # pytest 9.2 has renamed what the tests import
    _pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET


def extend(app):
    """Installs the extension."""
    EXTENSION.init_app(app)
    count()


after_init(Flask, extend)
