"""Checks the kind of an application by its signature. Must not call the application."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType, MethodType
from typing import Any

from guardrails._util.checks import Faults

__all__ = ["ASGI", "WSGI", "check_application"]

WSGI, ASGI = 2, 3
"""The number of arguments with which an application of each kind is called."""

_ASGI_2 = 1

_MIDDLEWARE = {
    _ASGI_2: "guardrails.integrations.django.GuardrailsMiddleware",
    WSGI: "guardrails.integrations.wsgi.GuardrailsMiddleware",
    ASGI: "guardrails.integrations.asgi.GuardrailsMiddleware",
}


def check_application(faults: Faults, app: object, kind: int) -> None:
    """Notes an application that cannot be called, or is of another kind; names the middleware of that kind.

    A callable whose parameters cannot be read is accepted.
    """
    faults.callable("app", app, none=False)
    if not callable(app) or _takes(app, kind):
        return
    faults.add("app", app, f"an application that takes {kind} arguments", _hint(app))


def _hint(app: object) -> str:
    if isinstance(app, type) and _takes(app, _ASGI_2):
        return ", not a class that takes 1: for ASGI 2, use asgiref.compatibility.guarantee_single_callable()"
    other = next((other for other in _MIDDLEWARE if _takes(app, other)), None)
    return "" if other is None else f", which takes {other}: {_MIDDLEWARE[other]} is made for it"


def _takes(app: object, arguments: int) -> bool:
    return _binds(app, (None,) * arguments, {})


def _binds(called: Any, args: tuple[object, ...], keywords: dict[str, object]) -> bool:
    """True if the code that is called takes these arguments, whatever signature a decorator has copied."""
    if isinstance(called, functools.partial):
        return _binds(called.func, (*called.args, *args), {**called.keywords, **keywords})
    if isinstance(called, MethodType):
        return _binds(called.__func__, (called.__self__, *args), keywords)
    if isinstance(called, FunctionType):
        called = _bare(called)
    elif not isinstance(called, type):
        method = inspect.getattr_static(type(called), "__call__").__get__(called, type(called))
        if isinstance(method, FunctionType | MethodType | functools.partial):
            return _binds(method, args, keywords)
    try:
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*args, **keywords)
    except TypeError:
        return False
    return True


def _bare(function: FunctionType) -> FunctionType:
    # Without ``__wrapped__`` and ``__signature__``, which describe another function.
    bare = FunctionType(function.__code__, {}, function.__name__, function.__defaults__, function.__closure__)
    bare.__kwdefaults__ = function.__kwdefaults__
    return bare
