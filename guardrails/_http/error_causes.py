"""Finds the exception behind a framework's 500. Must not import a framework or the request policy.

Starlette raises the exception again after its 500, so a middleware sees it. The frameworks here do not raise
it, but report it. A refusal earlier in the request is not taken for the cause: the application may have
handled it, and failed later for another reason.
"""

from __future__ import annotations

import sys
from typing import Any

from guardrails._runtime.scope import RequestScope, current
from guardrails._util.names import Identity

__all__ = ["follow_frameworks", "note_caught", "note_fatal"]

_SIGNALS = ("flask.signals", "quart.signals", "django.core.signals")
"""Modules with the signal ``got_request_exception``, sent for an exception that no handler took."""

_CATCHING = ("litestar.",)
"""Frameworks without such a signal. They answer inside their ``except``."""


def follow_frameworks() -> None:
    """Connects to the signals of the loaded frameworks. Idempotent."""
    for name in _SIGNALS:
        module = sys.modules.get(name)
        if module is not None:
            module.got_request_exception.connect(_on_exception)


def note_caught() -> None:
    """Records the exception for which a framework is sending its 500 now."""
    error = sys.exception()
    trace = None if error is None else error.__traceback__
    # The first frame of a traceback is the one that caught the exception.
    if trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_CATCHING):
        _on_exception(exception=error)


def note_fatal(refused_by: Identity) -> None:
    """Records with the current request that a refusal of this guard or compartment became its answer."""
    request = _request()
    if request is not None:
        request.record_errors().fatal = refused_by


def _on_exception(_sender: object = None, *, exception: BaseException | None = None, **_: Any) -> None:
    request = _request()
    if request is not None and request.request_errors is not None:
        # Django sends the signal without the exception, while it handles the exception.
        request.request_errors.unhandled = exception or sys.exception()


def _request() -> RequestScope | None:
    scope = current()
    return None if scope is None else scope.request
