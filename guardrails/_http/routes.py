"""The routes of a Starlette or FastAPI application. Must not import either.

A middleware runs before the router. To find the route of a request it reads the table that the router will
use: each route's ``path_regex``, ``methods`` and ``endpoint``. Memory grows with the routes of the
application, not with the paths that clients make up.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from guardrails._guard.guard import Guard
from guardrails._http.policy import gates_of
from guardrails._http.route_stats import RouteStats
from guardrails._runtime.scope import RequestScope
from guardrails._util.names import known_method

__all__ = ["Route", "RouteTable", "requires", "routes_for"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__guardrails_requires__"
_DEEPEST = 20
"""The number of nested middlewares that are searched for an application's routes."""

WEBSOCKET = "websocket"


def requires(*guards: Guard) -> Callable[[F], F]:
    """Marks an endpoint whose requests cannot be served without these guards.

    ::

        @app.get("/orders/{number}")
        @requires(db)
        async def order(number: int): ...

    The middleware then waits for a slot, or refuses, before the request takes a thread; see ``requires``
    of `GuardrailsMiddleware`. The endpoint itself is returned unchanged. Put the mark below the framework's
    own decorator. It works where the middleware can see the routes (Starlette, FastAPI and their mounts),
    and in Flask and Django, where the view is not called while a circuit refuses.

    Args:
        *guards: The guards, or compartments of guards.

    Raises:
        TypeError: An argument is not a guard.
    """
    for guard in guards:
        if not isinstance(guard, Guard):
            raise TypeError(f"requires() takes guards, got {type(guard).__name__}: write @requires(guard)")

    def mark(endpoint: F) -> F:
        setattr(endpoint, _MARK, (*required_by(endpoint), *guards))
        return endpoint

    return mark


def required_by(endpoint: object) -> tuple[Guard, ...]:
    """Returns the guards that an endpoint is marked with, also below a partial or the user's decorator."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    marked: tuple[Guard, ...] = getattr(endpoint, _MARK, ())
    return marked


class Route:
    """One endpoint.

    Attributes:
        endpoint: The callable; kept, so that no other object gets its ``id``.
        template: The template of its path, mounts included, such as ``/orders/{id}``.
        gates: The gates of the guards it is marked with.
        stats: The guards that its requests use, learnt from them, by their method and template: a circuit of
            the requests that read must not refuse those that write. The number of these is bounded.
        elsewhere: Whether the same endpoint has another path, too.
    """

    __slots__ = ("elsewhere", "endpoint", "gates", "stats", "template")

    def __init__(self, endpoint: object, template: str) -> None:
        self.endpoint = endpoint
        self.template = template
        self.gates = gates_of(required_by(endpoint))
        self.stats: dict[tuple[str, str], RouteStats] = {}
        self.elsewhere = False

    def stats_of(self, method: str, template: str) -> RouteStats:
        """The record of the requests with a method and template."""
        key = known_method(method), template
        return self.stats.get(key) or self.stats.setdefault(key, RouteStats())


class _Entry(NamedTuple):
    """An entry of the table: a route, or the table of a mount."""

    regex: Any
    methods: frozenset[str] | None
    target: Route | RouteTable
    template: str


class RouteTable:
    """Finds the route of a request as the router will, before the router does.

    Args:
        routes: The framework's own list.
        previous: The table that this one replaces; it keeps the routes of that one and what they learnt.
        mounted: The template of the mount that the routes are below.
        by_path: Whether the middleware sees the paths with which the router compares its routes.

    Attributes:
        size: The length of the list.
        known: The routes by the ``id`` of their endpoints.
        needs_guards: True once a route needs a guard; before that, no request has to be matched.
    """

    def __init__(
        self,
        routes: Sequence[object],
        previous: RouteTable | None = None,
        mounted: str = "",
        *,
        by_path: bool = True,
    ) -> None:
        self.size = len(routes)
        self._by_path = by_path
        self._mounted = mounted
        self.known: dict[int, Route] = {} if previous is None else previous.known
        self._by_segment: dict[str, list[_Entry]] = {}
        self._any_segment: list[_Entry] = []
        for route in _unfold(routes):
            self._add(route)
        self.needs_guards = any(
            route.gates or any(stats.needed for stats in route.stats.values())
            for route in self.known.values()
        )

    def find(self, endpoint: object, path: str, method: str) -> tuple[Route | None, str | None]:
        """Returns the route of a request and its template.

        The route is found by its endpoint if the router has set one, else by its path; the template by the
        path if the endpoint has several. Both are None for a request that will be a 404 or a 405, and for one
        whose route is unknown.
        """
        route = self.known.get(id(endpoint))
        if route is not None and not route.elsewhere:
            return route, route.template
        entry = self._entry(path, method) if self._by_path else None
        if entry is None:
            return route, None if route is None else route.template
        return route or (entry.target if isinstance(entry.target, Route) else None), entry.template

    def _entry(self, path: str, method: str) -> _Entry | None:
        segment = path[1:_LONGEST_SEGMENT].partition("/")[0]
        for entry in self._by_segment.get(segment, self._any_segment):
            match = entry.regex.match(path)
            if match is None or not (entry.methods is None or method in entry.methods):
                continue
            if isinstance(entry.target, Route):
                return entry
            return entry.target._entry("/" + match["path"], method)  # noqa: SLF001 - of its own class
        return None

    def learn(
        self, endpoint: object, path: str, method: str, request: RequestScope, began: float, *, served: bool
    ) -> None:
        """Learns from a request that has reached its endpoint; see `RouteStats.learn`."""
        route, template = self.find(endpoint, path, method) if id(endpoint) in self.known else (None, None)
        if route is not None and template is not None:
            stats = route.stats_of(method, template)
            stats.learn(request, began, served=served)
            if stats.needed:
                self.needs_guards = True

    def _add(self, route: Any) -> None:
        regex, endpoint = getattr(route, "path_regex", None), getattr(route, "endpoint", None)
        below: Sequence[object] = getattr(route, "routes", None) or ()
        if regex is None or (endpoint is None and not below):
            return
        target: Route | RouteTable
        template = self._mounted + (getattr(route, "path", None) or "")
        if endpoint is None:
            target = RouteTable(below, self, template)
        else:
            target = self.known.setdefault(id(endpoint), Route(endpoint, template))
            target.elsewhere |= target.template != template
        methods = getattr(route, "methods", None)
        if _is_websocket(route):
            methods = {WEBSOCKET}
        entry = _Entry(regex, None if methods is None else frozenset(methods), target, template)
        segment = _first_segment(getattr(route, "path", None))
        if segment is None:
            self._any_segment.append(entry)
            for entries in self._by_segment.values():
                entries.append(entry)
        else:
            # The order of the router is kept, also between entries of one segment and of any segment.
            self._by_segment.setdefault(segment, [*self._any_segment]).append(entry)


_LONGEST_SEGMENT = 256


def _first_segment(path: str | None) -> str | None:
    """Returns the first segment of a template, by which entries are indexed; None if it can be any."""
    segment = (path or "").removeprefix("/").partition("/")[0]
    return None if not segment or "{" in segment or len(segment) >= _LONGEST_SEGMENT - 1 else segment


def _is_websocket(route: Any) -> bool:
    original = getattr(route, "original_route", route)
    return any(cls.__name__ == "WebSocketRoute" for cls in type(original).__mro__)


def _unfold(routes: Sequence[object]) -> Iterator[object]:
    """Yields the routes one by one: newer versions of FastAPI keep an included router as one route."""
    flatten = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    return iter(routes) if flatten is None else flatten(routes)


def routes_for(middleware: object, inner: object, outer: object) -> tuple[list[object] | None, bool]:
    """Returns the routes behind a middleware, and whether it sees the paths that they are matched with.

    Args:
        middleware: The middleware.
        inner: The application that it calls. Its routes come first.
        outer: The framework's application, for an inner application that hides its routes. The paths of the
            outer one differ if the middleware is below a mount or a route of it.
    """
    routes = _routes_below(inner)
    if routes is not None:
        return routes, True
    own = any(item is middleware for item in _below(getattr(outer, "middleware_stack", None)))
    return _routes_below(outer), own


def _routes_below(app: object) -> list[object] | None:
    return next(
        (item.routes for item in _below(app) if isinstance(getattr(item, "routes", None), list)), None
    )


def _below(app: Any) -> Iterator[Any]:
    """Yields an application and those it wraps, each through the attribute ``app`` of the one before."""
    for _ in range(_DEEPEST):
        yield app
        app = getattr(app, "app", None)
