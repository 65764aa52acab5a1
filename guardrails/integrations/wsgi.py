"""The WSGI middleware: it answers for guards that refuse or run late, and for a server that is full.

Knows no framework: Flask, Django and every other WSGI application are the same to it. The work of a
request ends when the server closes the body, not when the application returns.
"""

from __future__ import annotations

import logging
import random as _random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Never

from guardrails._core.criticality import Criticality
from guardrails._guard.guard import Guard
from guardrails._http.answers import Problem
from guardrails._http.applications import WSGI, check_application
from guardrails._http.criticality import CriticalityRules
from guardrails._http.environ import budgets_of, path_of, rank_in, status_line
from guardrails._http.error_causes import follow_frameworks
from guardrails._http.policy import RequestPolicy
from guardrails._http.status import HEADERS, Probes, as_page
from guardrails._http.tracked_request import Views
from guardrails._http.wsgi_request import WSGIRequest
from guardrails._runtime.scope import Clock, current
from guardrails._util.checks import Faults, unknown_option

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["GuardrailsMiddleware", "StatusApp", "status_app"]

_log = logging.getLogger("guardrails")


class GuardrailsMiddleware:
    """Answers 503 for what a guard refused and 504 for what it stopped, and leaves all else alone.

    ::

        app.wsgi_app = GuardrailsMiddleware(app.wsgi_app, guards=[db])    # Flask
        application = GuardrailsMiddleware(get_wsgi_application())        # around any WSGI application

    The settings mean what they mean in `guardrails.integrations.asgi.GuardrailsMiddleware`. Durations
    are seconds; a *path* in a setting covers itself and all below it, and is compared with ``PATH_INFO``.

    Args:
        app: The application.
        guards: Whose refusals and timeouts to answer, compartments included, compared by name. Empty
            is every guard.
        requires: For a path or a template, the guards without which its requests cannot be served; or
            the guards without which none can. While the circuit of one of them refuses, they are
            answered before the application is asked.
        exempt: Paths that ``max_in_flight`` and ``requires`` do not hold for, such as health checks.
        request_timeout: What each request is given until its first byte; None is unbounded. The rest of
            it bounds every guarded call; the application itself is not interrupted.
        deadline_headers: Request headers by which clients may lower that. None by default.
        max_in_flight: Requests inside the application at once; the next one is answered 503 without
            waiting. None is unbounded.
        criticality: For a path or a template, how much its requests matter: ``"CRITICAL_PLUS"``,
            ``"CRITICAL"`` (what they are otherwise), ``"SHEDDABLE_PLUS"`` or ``"SHEDDABLE"``.
        criticality_header: The name of a request header that says it and outranks the path. For services
            whose callers are trusted: whoever can send it can say ``CRITICAL_PLUS``. None by default.
        threads: How many requests the server runs at once in one process. With it, a warning is logged
            when the guards' slots can take all of these threads. Needs ``guards``.
        clock: Where the time comes from; a monotonic reading in seconds.
        random: Where the jitter of ``Retry-After`` comes from; returns a float in [0, 1).

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
        criticality: Mapping[str, Criticality] | None = None,
        criticality_header: str | None = None,
        threads: int | None = None,
        clock: Clock = time.monotonic,
        random: Callable[[], float] = _random.random,
        **unknown: Never,
    ) -> None:
        for option in unknown:
            raise unknown_option("GuardrailsMiddleware", option, _OPTIONS)
        faults = Faults("GuardrailsMiddleware")
        faults.count("threads", threads, least=2, none=True)
        check_application(faults, app, WSGI)
        self._importance = CriticalityRules.checked(faults, clock, criticality, criticality_header)
        self.app = app
        self._clock = clock
        self._policy = RequestPolicy(
            "GuardrailsMiddleware",
            guards=guards,
            exempt=exempt,
            request_timeout=request_timeout,
            max_in_flight=max_in_flight,
            requires=requires,
            deadline_headers=deadline_headers,
            random=random,
        )
        follow_frameworks()
        self._timed = self._policy.timed
        self._selective = self._policy.selective
        if threads is not None:
            _compare(threads, self._policy.slots, max_in_flight)

    @property
    def in_flight(self) -> int:
        """Requests counted against ``max_in_flight`` now."""
        return self._policy.in_flight

    def views(self, *, learns: bool) -> Views:
        """The endpoints behind this middleware, for a framework that says when a request has come to one."""
        return Views(self._policy, self._clock, learns=learns)

    def problem(self, error: BaseException) -> Problem | None:
        """What this middleware would answer for an exception; None for one it leaves alone.

        For frameworks that want to be asked before they log an error of their own.
        """
        return self._policy.problem(error)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serves one request."""
        budget = self._policy.budget(budgets_of(environ)) if self._timed else None
        at = None if budget is None else self._clock() + budget
        path = path_of(environ)
        rank = rank_in(environ, self._importance, path)
        request = WSGIRequest(at, self._clock, current(), rank, self._policy, environ, start_response)
        problem = self._policy.admit(request.place, path) if self._selective else None
        return request.serve(self.app) if problem is None else request.answer(problem)


def status_app(
    guards: Iterable[Guard], *, stuck_after: float = 30.0, clock: Callable[[], float] = time.monotonic
) -> StatusApp:
    """Makes a WSGI application with ``/livez``, ``/readyz`` and ``/status.json``, to mount.

    The pages are those of `guardrails.integrations.starlette.status_app`; nothing can be steered here.

    Args:
        guards: The guards to show, each with its compartments.
        stuck_after: Seconds after which a guard that is full and gets no slot back makes ``/readyz`` fail.
        clock: Where the time comes from; a monotonic reading in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """
    return StatusApp(Probes("status_app", guards, stuck_after, clock))


class StatusApp:
    """The application that `status_app` makes."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def drain(self) -> None:
        """Makes ``/readyz`` fail from now on: this process is about to stop."""
        self._probes.drain()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Shows one page."""
        page = self._probes.pages.get(path_of(environ))
        method = environ["REQUEST_METHOD"]
        headers = [(name.title(), value) for name, value in HEADERS]
        if page is None:
            status, body = 404, as_page({"error": "no such page"})
        elif method not in {"GET", "HEAD"}:
            status, body = 405, as_page({"error": "only to be read"})
            headers.append(("Allow", "GET, HEAD"))
        else:
            status, body = page()
        start_response(status_line(status), [*headers, ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]


def _compare(threads: int, slots: int, max_in_flight: int | None) -> None:
    """Warns when calls that hang could take every thread of the server."""
    if not slots:
        faults = Faults("GuardrailsMiddleware")
        faults.add("guards", (), "named where threads is given, so that their slots can be compared with it")
        faults.raise_if_any()
    if min(slots, max_in_flight or slots) >= threads:
        _log.warning(
            "GuardrailsMiddleware: the guards have %d slots and the server has %d threads, so calls that "
            "hang may take every thread, and then nothing is answered: give the guards fewer slots in all, "
            "the server more threads, or set max_in_flight below %d",
            slots,
            threads,
            threads,
        )


_OPTIONS = (
    "app",
    "clock",
    "criticality",
    "criticality_header",
    "deadline_headers",
    "exempt",
    "guards",
    "max_in_flight",
    "random",
    "request_timeout",
    "requires",
    "threads",
)
