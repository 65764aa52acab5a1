"""The status pages as URLs of a Django project, under WSGI and ASGI.

::

    urlpatterns = [path("internal/", include("guardrails.integrations.django.urls")), ...]

The pages are those of `guardrails.integrations.wsgi.status_app`. They show the guards of ``DATABASES`` and
those of ``GUARDRAILS["guards"]``. Anybody who reaches the URLs may read them. They use no database, also with
``ATOMIC_REQUESTS``, and need no login. Importing this module needs Django's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from guardrails._http.settings import StatusSettings, checked_guards
from guardrails._http.status import HEADERS, Page, Probes, as_page
from guardrails._util.checks import Faults
from guardrails.integrations._status_pages import status_pages
from guardrails.integrations.django._database.registry import guard_of_alias
from guardrails.integrations.django._names import named

__all__ = ["app_name", "drain", "urlpatterns"]

app_name = "guardrails"


def drain() -> None:
    """Makes ``readyz`` fail from now on, because this process is about to stop."""
    _probes.drain()


def _guards() -> Iterator[Any]:
    for alias in connections:
        if "guard" in connections.settings[alias].get("OPTIONS", {}):
            yield guard_of_alias(alias)
    given = getattr(settings, "GUARDRAILS", {}).get("guards", ())
    for guard in given:
        yield named("settings.GUARDRAILS", guard)


def _view(make: Callable[[], Page]) -> Callable[[HttpRequest], HttpResponse]:
    def view(request: HttpRequest) -> HttpResponse:
        if request.method in {"GET", "HEAD"}:
            page = make()
        else:
            page = Page(405, as_page({"error": "only to be read"}), (*HEADERS, ("allow", "GET, HEAD")))
        body = b"" if request.method == "HEAD" else page.body
        response = HttpResponse(body, status=page.status, headers=dict(page.headers))
        response["content-length"] = str(len(page.body))
        # Otherwise a process that is not ready would mail the administrators; see the middleware.
        response._has_been_logged = True  # noqa: SLF001 - what Django's log_response reads
        return response

    view.login_required = False  # type: ignore[attr-defined]  # as Django's login_not_required, from 5.1 on
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def _settings() -> StatusSettings:
    faults = Faults("settings.GUARDRAILS")
    # None is allowed: a project may have a guarded database in production alone.
    guards = checked_guards(faults, "guards", list(dict.fromkeys(_guards())))
    faults.raise_if_any()
    return StatusSettings(guards=guards)


_probes = Probes(_settings())

# With and without a slash at the end: a redirected probe fails.
urlpatterns = [
    path(where.removeprefix("/") + slash, _view(make))
    for where, make in status_pages(_probes).items()
    for slash in (("",) if where == "/" else ("", "/"))
]
