"""Probes, figures and manual control over HTTP, as an application to mount. Depends on Starlette."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial

try:
    from starlette.applications import Starlette
    from starlette.datastructures import Headers
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("Starlette is missing: pip install 'guardrails-db[starlette]'") from error

from guardrails._core.shadow import MODES
from guardrails._guard.compartments import with_compartments
from guardrails._guard.guard import Guard
from guardrails._http.settings import StatusSettings
from guardrails._http.status import Page, Probes, as_page, figures
from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError
from guardrails.integrations._status_pages import status_pages

__all__ = ["StatusApp", "status_app"]

Auth = Callable[[Request], object | Awaitable[object]]

_ACTIONS: dict[str, Callable[..., None]] = {
    "force-open": Guard.force_open,
    "disable": Guard.disable,
    "metrics-only": Guard.metrics_only,
    "reset": Guard.reset,
    **{mode: partial(Guard.set_mode, mode=mode) for mode in MODES},
}


class StatusApp(Starlette):
    """The application that `status_app` makes."""

    def __init__(self, probes: Probes, auth: Auth | None) -> None:
        pages = {path: _showing(page) for path, page in status_pages(probes).items()}
        dashboard = pages.pop("/")
        # With and without a slash at the end: some routers add one to a mount, and a redirected probe fails.
        routes = [Route(path + slash, endpoint) for path, endpoint in pages.items() for slash in ("", "/")]
        # Only with the slash: without it a browser would ask for the figures one level too high.
        routes.append(Route("/", dashboard))
        if auth is not None:
            control = _controlling(probes.guards, auth)
            # The name of a guard may contain a slash.
            routes.append(Route("/control/{guard:path}/{action}", control, methods=["POST"]))
        super().__init__(routes=routes)
        self._probes = probes

    def drain(self) -> None:
        """Makes ``/readyz`` fail from now on, because this process is about to stop."""
        self._probes.drain()


def status_app(
    guards: Iterable[Guard],
    *,
    auth: Auth | None = None,
    stuck_after: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> StatusApp:
    """Makes the application with ``/livez``, ``/readyz``, ``/status.json`` and ``/metrics``, to mount.

    ``/`` is a page for browsers, which reads ``/status.json`` every two seconds. Every client that reaches
    the pages can read them; they show only the guards' names and figures. Mount them outside the middleware,
    or list the mount in its ``exempt``.

    Args:
        guards: The guards to show, each with its compartments.
        auth: Allows manual control, which is
            ``POST /control/{guard}/{force-open,disable,metrics-only,reset}`` for the circuit and
            ``POST /control/{guard}/{enforce,shadow,off}`` for the mode; without it there is none.
            Called with the request; a true result, or an awaitable with one, allows it. It runs on the
            event loop, so one that waits for another service must be asynchronous.
        stuck_after: Seconds after which a guard that is full and gets no slot back makes ``/readyz`` fail.
        clock: A monotonic clock in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """
    settings = StatusSettings.checked(
        Faults("status_app"), locals()
    )  # each parameter is a setting of that name
    return StatusApp(Probes(settings), settings.auth)


def _showing(page: Callable[[], Page]) -> Callable[[Request], Awaitable[Response]]:
    # Asynchronous, so that a probe does not wait for a thread: calls that hang may hold them all.
    async def endpoint(_request: Request) -> Response:
        return _response(page())

    return endpoint


def _controlling(guards: Iterable[Guard], auth: Auth) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not await _allowed(request, auth):
            return _fault(403, "not allowed")
        action = _ACTIONS.get(request.path_params["action"])
        if action is None:
            return _fault(404, "the actions are " + ", ".join(_ACTIONS))
        named = list(_named(guards, request.path_params["guard"]))
        if len(named) != 1:
            return _fault(409, "several guards have this name") if named else _fault(404, "no such guard")
        try:
            action(named[0])
        except ConfigurationError as error:  # the mode of a compartment
            return _fault(409, str(error))
        return _response(Page(200, as_page(figures(named[0]))))

    return endpoint


async def _allowed(request: Request, auth: Auth) -> bool:
    if not _is_same_origin(request.headers):
        return False
    verdict = auth(request)
    return bool(await verdict if inspect.isawaitable(verdict) else verdict)


def _is_same_origin(headers: Headers) -> bool:
    """Returns False for a request that a page of another site makes a browser send with the user's cookies.

    Browsers send ``Sec-Fetch-Site``. Older ones do not, but send ``Origin`` with a POST. Other clients send
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
"""The default ports. A browser omits them from an origin; a proxy may add them to the host."""


def _named(guards: Iterable[Guard], name: str) -> Iterator[Guard]:
    # Looked up for each request: compartments may be made after this application.
    return (guard for guard in with_compartments(guards) if guard.name == name)


def _fault(status: int, why: str) -> Response:
    return _response(Page(status, as_page({"error": why})))


def _response(page: Page) -> Response:
    return Response(page.body, page.status, headers=dict(page.headers))
