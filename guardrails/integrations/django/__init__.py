"""Django: the middleware for WSGI and ASGI, and PostgreSQL, MySQL and MariaDB behind a guard as database backends."""

from __future__ import annotations

from guardrails.integrations.django._middleware import GuardrailsMiddleware, requires

__all__ = ["GuardrailsMiddleware", "requires"]
