"""The WSGI middleware: answers for guards that refuse or time out, and for a server that is full.

Depends on PEP 3333; must not import a framework. The work of a request ends when the server closes the
body, not when the application returns.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Never
from urllib.parse import quote

from guardrails._core.criticality import Criticality
from guardrails._guard.guard import Guard
from guardrails._http.answers import Problem
from guardrails._http.applications import WSGI, check_application
from guardrails._http.environ import budgets_of, path_of, rank_in, status_line
from guardrails._http.error_causes import follow_frameworks
from guardrails._http.policy import RequestPolicy, WithPolicy
from guardrails._http.server_threads import check_threads
from guardrails._http.settings import HTTPSettings, StatusSettings
from guardrails._http.status import HEADERS, Page, Probes, as_page
from guardrails._http.tracked_request import Views
from guardrails._http.wsgi_request import WSGIRequest
from guardrails._runtime.scope import Clock, current
from guardrails._util.checks import Faults, refuse_unknown
from guardrails.integrations._status_pages import status_pages

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["GuardrailsMiddleware", "StatusApp", "status_app"]


class GuardrailsMiddleware(WithPolicy):
    """Answers 503 for a call that a guard refused and 504 for one that it stopped; passes on all else.

    ::

        app.wsgi_app = GuardrailsMiddleware(app.wsgi_app, guards=[db])    # Flask
        application = GuardrailsMiddleware(get_wsgi_application())        # around any WSGI application

    The settings mean the same as in `guardrails.integrations.asgi.GuardrailsMiddleware`. Durations are
    seconds. A *path* covers itself and all paths below it, and is compared with ``PATH_INFO``.

    Args:
        app: The application.
        guards: The guards whose refusals and timeouts are answered, with their compartments, by name. Empty
            means every guard.
        requires: By path or template, the guards without which its requests cannot be served; a list of
            guards applies to every request. While the circuit of one of them refuses, such a request is
            answered before the application is called.
        exempt: Paths to which ``max_in_flight`` and ``requires`` do not apply, such as health checks.
        request_timeout: The time from the arrival of a request to its first byte; None is unbounded. The
            rest of it bounds every guarded call; the application itself is not interrupted.
        deadline_headers: Request headers with which clients can lower the timeout. None by default.
        max_in_flight: The number of requests that may be inside the application at once. The next one is
            answered 503 without waiting. None is unbounded.
        threads: The number of requests that the server runs at once in one process. With it, a warning is
            logged when the guards' slots can take all of these threads. Needs ``guards``.
        criticality: By path or template, the class of its requests: ``"CRITICAL_PLUS"``, ``"CRITICAL"`` (the
            default), ``"SHEDDABLE_PLUS"`` or ``"SHEDDABLE"``.
        criticality_header: A request header that gives the class and outranks the path. Only for services
            that trust their callers: a caller can send ``CRITICAL_PLUS``. None by default.
        clock: A monotonic clock in seconds.
        random: The source of the jitter of ``Retry-After``; returns a float in [0, 1).

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        guards: Iterable[Guard] = (),
        requires: Mapping[str, Iterable[Guard]] | Iterable[Guard] | None = None,
        exempt: Iterable[str] = (),
        request_timeout: float | None = None,
        deadline_headers: Iterable[str] = (),
        max_in_flight: int | None = None,
        threads: int | None = None,
        criticality: Mapping[str, Criticality] | None = None,
        criticality_header: str | None = None,
        clock: Clock = time.monotonic,
        random: Callable[[], float] = _random.random,
        **unknown: Never,
    ) -> None:
        refuse_unknown("GuardrailsMiddleware", unknown, GuardrailsMiddleware.__init__)
        self._configure(app, locals())  # each parameter is a setting of that name

    def _configure(self, app: WSGIApplication, given: Mapping[str, Any]) -> None:
        faults = Faults("GuardrailsMiddleware")
        check_application(faults, app, WSGI)
        settings = HTTPSettings.checked(faults, given)
        follow_frameworks()
        self.app, self._clock = app, settings.clock
        self._policy = policy = RequestPolicy(settings)
        self._timed, self._selective, self._criticality = policy.timed, policy.selective, policy.criticality
        self._learns = settings.learn_routes
        if settings.threads is not None:
            check_threads(settings.threads, self._policy.slots, settings.max_in_flight)

    def views(self) -> Views:
        """Makes the table of endpoints, for a framework that can report the endpoint of a request."""
        return Views(self._policy, self._clock, learns=self._learns)

    def problem(self, error: BaseException) -> Problem | None:
        """Returns the answer for an exception; None for one that this middleware passes on.

        For frameworks that log an error before the middleware sees it.
        """
        return self._policy.problem(error)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serves one request."""
        path = path_of(environ)
        rank = rank_in(environ, self._criticality, path)
        request = WSGIRequest(self._clock, current(), rank, self._policy, environ, start_response)
        if self._timed:
            self._policy.limit(request, budgets_of(environ), self._clock())
        problem = self._policy.admit(request, path, request.token) if self._selective else None
        return request.serve(self.app) if problem is None else request.answer(problem)


def status_app(
    guards: Iterable[Guard], *, stuck_after: float = 30.0, clock: Callable[[], float] = time.monotonic
) -> StatusApp:
    """Makes a WSGI application with ``/livez``, ``/readyz``, ``/status.json`` and ``/metrics``, to mount.

    The pages are those of `guardrails.integrations.starlette.status_app`, the page for browsers at ``/``
    included; there is no control here.

    Args:
        guards: The guards to show, each with its compartments.
        stuck_after: Seconds after which a guard that is full and gets no slot back makes ``/readyz`` fail.
        clock: A monotonic clock in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """
    return StatusApp(Probes(StatusSettings.checked(Faults("status_app"), locals())))


class StatusApp:
    """The application that `status_app` makes."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._pages = status_pages(probes)

    def drain(self) -> None:
        """Makes ``/readyz`` fail from now on, because this process is about to stop."""
        self._probes.drain()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Serves one page."""
        path = path_of(environ)
        make = self._pages.get(path.removesuffix("/") or path)
        method = environ["REQUEST_METHOD"]
        if not path and environ.get("SCRIPT_NAME"):
            page = _with_slash(environ["SCRIPT_NAME"])
        elif make is None:
            page = Page(404, as_page({"error": "no such page"}))
        elif method not in {"GET", "HEAD"}:
            page = Page(405, as_page({"error": "only to be read"}), (*HEADERS, ("allow", "GET, HEAD")))
        else:
            page = make()
        headers = [(name.title(), value) for name, value in page.headers]
        start_response(status_line(page.status), [*headers, ("Content-Length", str(len(page.body)))])
        return [] if method == "HEAD" else [page.body]


def _with_slash(mount: str) -> Page:
    """Redirects a browser to the mount with a slash: else it would ask for the figures one level too high."""
    # Relative, so that no path of a client can make it another host's address.
    last = quote(mount.rpartition("/")[2].encode("latin-1", "replace"), safe="")
    return Page(308, b"", (*HEADERS, ("location", f"{last}/")))
