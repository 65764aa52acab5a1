"""Django: the middleware for WSGI and ASGI, and backends that put databases behind a guard."""

from __future__ import annotations

from guardrails.integrations.django._middleware import GuardrailsMiddleware, requires

__all__ = ["GuardrailsMiddleware", "requires"]
