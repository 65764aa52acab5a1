"""Whether an application is of the kind that a middleware calls. Knows signatures, and calls nothing."""

from __future__ import annotations

import inspect

from guardrails._checks import Faults

__all__ = ["ASGI", "WSGI", "check_application"]

WSGI, ASGI = 2, 3
"""With how many arguments an application of each kind is called."""

_MIDDLEWARE = {
    1: "guardrails.integrations.django.GuardrailsMiddleware",
    WSGI: "guardrails.integrations.wsgi.GuardrailsMiddleware",
    ASGI: "guardrails.integrations.asgi.GuardrailsMiddleware",
}


def check_application(faults: Faults, app: object, kind: int) -> None:
    """Notes what cannot be called, or only in the way of another kind, whose middleware is then named.

    What says nothing of its arguments is believed.
    """
    faults.callable("app", app, none=False)
    if not callable(app) or _takes(app, kind):
        return
    other = next((other for other in _MIDDLEWARE if _takes(app, other)), None)
    hint = "" if other is None else f", which takes {other}: {_MIDDLEWARE[other]} is made for it"
    faults.add("app", app, f"an application that takes {kind} arguments", hint)


def _takes(app: object, arguments: int) -> bool:
    try:
        signature = inspect.signature(app)  # type: ignore[arg-type] # it is callable
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True
