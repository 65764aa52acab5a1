"""Every page of a status application, for ASGI and WSGI alike. Must not import a framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from guardrails._guard.guard import Guard
from guardrails._http.dashboard import HEADERS as DASHBOARD_HEADERS
from guardrails._http.dashboard import PAGE
from guardrails._http.status import HEADERS, Page, Probes, as_page

try:
    from guardrails.integrations import prometheus
except ImportError:  # without the extra, its page says what to install
    _COUNTED = False
else:
    _COUNTED = True

__all__ = ["status_pages"]


def status_pages(probes: Probes) -> Mapping[str, Callable[[], Page]]:
    """Returns the functions that make the pages, by path, the page for browsers at ``/``."""
    return {**probes.pages, "/metrics": _metrics(probes.guards), "/": _dashboard}


def _dashboard() -> Page:
    return Page(200, PAGE, tuple(DASHBOARD_HEADERS.items()))


def _metrics(guards: Iterable[Guard]) -> Callable[[], Page]:
    if not _COUNTED:
        missing = as_page({"error": "prometheus-client is missing: pip install prometheus-client"})
        return lambda: Page(404, missing)
    render = prometheus.page(guards)
    headers = tuple((dict(HEADERS) | {"content-type": prometheus.CONTENT_TYPE}).items())
    return lambda: Page(200, render(), headers)
