"""Django: the middleware for WSGI and ASGI, and PostgreSQL behind a guard as a database backend."""

from __future__ import annotations

from guardrails.integrations.django._middleware import GuardrailsMiddleware, requires

__all__ = ["GuardrailsMiddleware", "requires"]
