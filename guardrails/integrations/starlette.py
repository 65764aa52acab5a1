"""Probes, figures and steering over HTTP, as an application to mount. Knows Starlette, and no dependency."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

try:
    from starlette.applications import Starlette
    from starlette.datastructures import Headers
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("Starlette is missing: pip install 'guardrails-db[starlette]'") from error

from guardrails._guard.guard import Guard, with_parts
from guardrails._http.dashboard import HEADERS as DASHBOARD_HEADERS
from guardrails._http.dashboard import PAGE
from guardrails._http.settings import StatusSettings
from guardrails._http.status import HEADERS, Page, Probes, as_page, figures
from guardrails._util.checks import Faults

try:
    from guardrails.integrations import prometheus
except ImportError:  # without the extra, its page says what to install
    _COUNTED = False
else:
    _COUNTED = True

__all__ = ["StatusApp", "status_app"]

Auth = Callable[[Request], object | Awaitable[object]]

_MOVES: dict[str, Callable[[Guard], None]] = {
    "force-open": Guard.force_open,
    "disable": Guard.disable,
    "metrics-only": Guard.metrics_only,
    "reset": Guard.reset,
}


class StatusApp(Starlette):
    """The application that `status_app` makes."""

    def __init__(self, probes: Probes, auth: Auth | None) -> None:
        # With and without a slash at the end: some routers add one when they mount, and a probe that is
        # redirected is a probe that fails.
        routes = [
            Route(path + slash, endpoint)
            for path, endpoint in [
                *((path, _showing(page)) for path, page in probes.pages.items()),
                ("/metrics", _scraping(probes.guards)),
            ]
            for slash in ("", "/")
        ]
        # Not without the slash, where a browser would look for the figures one step too high.
        routes.append(Route("/", _dashboard))
        if auth is not None:
            control = _controlling(probes.guards, auth)
            # A guard may have any name, one with a slash included.
            routes.append(Route("/control/{guard:path}/{move}", control, methods=["POST"]))
        super().__init__(routes=routes)
        self._probes = probes

    def drain(self) -> None:
        """Makes ``/readyz`` fail from now on: this process is about to stop."""
        self._probes.drain()


def status_app(
    guards: Iterable[Guard],
    *,
    auth: Auth | None = None,
    stuck_after: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> StatusApp:
    """Makes the application with ``/livez``, ``/readyz``, ``/status.json`` and ``/metrics``, to mount.

    At ``/`` there is a page for browsers, which shows what ``/status.json`` says every two seconds. All of
    them are open to everybody who can reach them and show the guards' names and figures, nothing else. Mount
    them outside what sheds load, or name the mount in the middleware's ``exempt``.

    Args:
        guards: The guards to show, each with its compartments.
        auth: Called with the request before anything is steered; a true result, or an awaitable that
            comes to one, allows it. With it there is
            ``POST /control/{guard}/{force-open,disable,metrics-only,reset}``; without it there is not.
            It runs on the event loop: one that asks somebody else must be asynchronous.
        stuck_after: Seconds after which a guard that is full and gets no slot back makes ``/readyz`` fail.
        clock: Where the time comes from; a monotonic reading in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """
    settings = StatusSettings.checked(Faults("status_app"), locals())  # each parameter is a setting
    return StatusApp(Probes(settings), settings.auth)


def _showing(page: Callable[[], Page]) -> Callable[[Request], Awaitable[Response]]:
    # On the loop and from counters: a probe must not wait for a thread that hung calls have taken.
    async def endpoint(_request: Request) -> Response:
        status, body = page()
        return _response(status, body)

    return endpoint


async def _dashboard(_request: Request) -> Response:
    return Response(PAGE, headers=DASHBOARD_HEADERS)


def _scraping(guards: Iterable[Guard]) -> Callable[[Request], Awaitable[Response]]:
    read = prometheus.page(guards) if _COUNTED else None

    async def endpoint(_request: Request) -> Response:
        if read is None:
            return _fault(404, "prometheus-client is missing: pip install 'guardrails-db[prometheus]'")
        return _response(200, read(), prometheus.CONTENT_TYPE)

    return endpoint


def _controlling(guards: Iterable[Guard], auth: Auth) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not await _allowed(request, auth):
            return _fault(403, "not allowed")
        move = _MOVES.get(request.path_params["move"])
        if move is None:
            return _fault(404, "the moves are " + ", ".join(_MOVES))
        named = list(_named(guards, request.path_params["guard"]))
        if len(named) != 1:
            return _fault(409, "several guards have this name") if named else _fault(404, "no such guard")
        move(named[0])
        return _response(200, as_page(figures(named[0])))

    return endpoint


async def _allowed(request: Request, auth: Auth) -> bool:
    if not _is_same_origin(request.headers):
        return False
    verdict = auth(request)
    return bool(await verdict if inspect.isawaitable(verdict) else verdict)


def _is_same_origin(headers: Headers) -> bool:
    """Refuses what a page of another site makes a browser send, with what that is logged in with.

    Browsers say ``Sec-Fetch-Site``. Older ones do not, but say ``Origin`` with a POST. Other clients say
    neither, and have no cookies that a page could use.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in {"none", "same-origin"}
    origins, hosts = headers.getlist("origin"), headers.getlist("host")
    if not origins:
        return True
    if len(origins) != 1 or len(hosts) != 1:
        return False
    scheme, _, asked_from = origins[0].lower().partition("://")
    return bool(asked_from) and asked_from == hosts[0].lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""The default ports: a browser leaves them out of an origin, a proxy may add them to the host."""


def _named(guards: Iterable[Guard], name: str) -> Iterator[Guard]:
    # Looked up each time: compartments may be made after this application.
    return (guard for guard in with_parts(guards) if guard.name == name)


def _fault(status: int, why: str) -> Response:
    return _response(status, as_page({"error": why}))


def _response(status: int, body: bytes, kind: str = "application/json") -> Response:
    return Response(body, status, headers=dict(HEADERS) | {"content-type": kind})
