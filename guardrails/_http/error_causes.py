"""Finds the exception that an answer is for. Imports no framework; must not import `_policy`.

Starlette raises it again after its 500, so a middleware sees it. The frameworks here keep it to themselves,
and report it. A refusal earlier in the request is no cause of a 500: the application may have handled it, and
failed by itself later.
"""

from __future__ import annotations

import sys
from typing import Any

from guardrails._runtime.scope import RequestScope, current

__all__ = ["follow_frameworks", "note_caught", "note_fatal"]

_SIGNALS = ("flask.signals", "quart.signals", "django.core.signals")
"""Modules with a signal ``got_request_exception``: the application did not handle an exception."""

_CATCHING = ("litestar.",)
"""Frameworks without such a signal, which answer inside their ``except``."""


def follow_frameworks() -> None:
    """Connects to the signals of the frameworks that are loaded. A second time changes nothing."""
    for name in _SIGNALS:
        module = sys.modules.get(name)
        if module is not None:
            module.got_request_exception.connect(_on_exception)


def note_caught() -> None:
    """Notes the exception for which a framework is just sending its 500."""
    error = sys.exception()
    trace = None if error is None else error.__traceback__
    # The first frame of a traceback is the one that caught the exception.
    if trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_CATCHING):
        _on_exception(exception=error)


def note_fatal(name: str) -> None:
    """Notes with the current request that a guard's refusal became its answer."""
    request = _request()
    if request is not None:
        request.record_errors().fatal = name


def _on_exception(_sender: object = None, *, exception: BaseException | None = None, **_: Any) -> None:
    request = _request()
    if request is not None and request.request_errors is not None:
        # Django sends no exception along; it sends the signal while it handles it.
        request.request_errors.unhandled = exception or sys.exception()


def _request() -> RequestScope | None:
    scope = current()
    return None if scope is None else scope.request
