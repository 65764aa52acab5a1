"""The routes of a Starlette or FastAPI application, as far as a middleware can see them. Imports neither.

A middleware runs before the router. To know where a request is going it reads the table that the router
will use: each route's ``path_regex``, ``methods`` and ``endpoint``. Memory grows with the routes an
application has, never with the paths that clients make up.
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

__all__ = ["Route", "RouteTable", "requires", "routes_for"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__guardrails_requires__"
_DEEPEST = 20
"""How many middleware may stand around an application before its routes count as out of reach."""

WEBSOCKET = "websocket"


def requires(*guards: Guard) -> Callable[[F], F]:
    """Says of an endpoint that its requests cannot be served without these guards.

    ::

        @app.get("/orders/{number}")
        @requires(db)
        async def order(number: int): ...

    The middleware then waits for a slot, or refuses, before the request takes a thread; see ``requires``
    of `GuardrailsMiddleware`. The endpoint itself is returned as it is. Put it below the framework's own
    decorator. It counts where the middleware can see the routes: Starlette, FastAPI, their mounts; and
    in Flask and Django, where the view is not called while a circuit refuses.

    Args:
        *guards: The guards, or compartments of guards.

    Raises:
        TypeError: One of them is no guard.
    """
    for guard in guards:
        if not isinstance(guard, Guard):
            raise TypeError(f"requires() takes guards, got {type(guard).__name__}: write @requires(guard)")

    def mark(endpoint: F) -> F:
        setattr(endpoint, _MARK, (*required_by(endpoint), *guards))
        return endpoint

    return mark


def required_by(endpoint: object) -> tuple[Guard, ...]:
    """The guards an endpoint was marked with, also below a partial or a decorator of the user's."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    marked: tuple[Guard, ...] = getattr(endpoint, _MARK, ())
    return marked


class Route:
    """One endpoint.

    Attributes:
        endpoint: What the framework calls; kept, so that its ``id`` stays its own.
        template: Its path as the application wrote it down, mounts included, such as ``/orders/{id}``.
        gates: Those of the guards it was marked with.
        stats: The guards its requests need, learnt from them.
        elsewhere: Whether the same endpoint stands at another path, too.
    """

    __slots__ = ("elsewhere", "endpoint", "gates", "stats", "template")

    def __init__(self, endpoint: object, template: str) -> None:
        self.endpoint = endpoint
        self.template = template
        self.gates = gates_of(required_by(endpoint))
        self.stats = RouteStats()
        self.elsewhere = False


class _Line(NamedTuple):
    """A line of the table: an endpoint, or the table of what is mounted there."""

    regex: Any
    methods: frozenset[str] | None
    target: Route | RouteTable
    template: str


class RouteTable:
    """Finds the route of a request as the router will, before it does.

    Args:
        routes: The framework's own list.
        before: The table that this one replaces; what was learnt of its endpoints is kept.
        mounted: The template of the mount that the routes are below.
        by_path: Whether the middleware sees the paths that the router compares its routes with.

    Attributes:
        size: How long the list was.
        known: The routes by the ``id`` of their endpoints.
        demanding: Whether any route was ever known to need a guard; before that, nobody has to look.
    """

    def __init__(
        self,
        routes: Sequence[object],
        before: RouteTable | None = None,
        mounted: str = "",
        *,
        by_path: bool = True,
    ) -> None:
        self.size = len(routes)
        self._by_path = by_path
        self._mounted = mounted
        self.known: dict[int, Route] = {} if before is None else before.known
        self._lines: dict[str, list[_Line]] = {}
        self._anywhere: list[_Line] = []
        for route in _unfold(routes):
            self._add(route)
        self.demanding = any(route.gates or route.stats.usual for route in self.known.values())

    def find(self, endpoint: object, path: str, method: str) -> Route | None:
        """The route of a request: by its endpoint once it has come to one, else by its path.

        None for one that will be a 404 or a 405, and for one whose route is not known.
        """
        return self.known.get(id(endpoint)) or (self.match(path, method) if self._by_path else None)

    def match(self, path: str, method: str) -> Route | None:
        """The first route with this path and method."""
        line = self._line(path, method)
        return line.target if line is not None and isinstance(line.target, Route) else None

    def template(self, endpoint: object, path: str, method: str) -> str | None:
        """The template of a request's route; see `find`."""
        route = self.known.get(id(endpoint))
        if route is not None and not route.elsewhere:
            return route.template
        line = self._line(path, method) if self._by_path else None
        if line is None:
            return None if route is None else route.template
        return line.template

    def _line(self, path: str, method: str) -> _Line | None:
        head = path[1:_LONGEST_HEAD].partition("/")[0]
        for line in self._lines.get(head, self._anywhere):
            match = line.regex.match(path)
            if match is None or not (line.methods is None or method in line.methods):
                continue
            if isinstance(line.target, Route):
                return line
            return line.target._line("/" + match["path"], method)  # noqa: SLF001 - of its own class
        return None

    def learn(self, endpoint: object, request: RequestScope, began: float, *, served: bool) -> None:
        """Learns from a request that has come to an endpoint; see `RouteStats.learn`."""
        route = self.known.get(id(endpoint))
        if route is not None:
            route.stats.learn(request, began, served=served)
            if route.stats.usual:
                self.demanding = True

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
        line = _Line(regex, None if methods is None else frozenset(methods), target, template)
        head = _head(getattr(route, "path", None))
        if head is None:
            self._anywhere.append(line)
            for lines in self._lines.values():
                lines.append(line)
        else:
            # The order of the router is kept: what may be anywhere stands where it stood.
            self._lines.setdefault(head, [*self._anywhere]).append(line)


_LONGEST_HEAD = 256


def _head(path: str | None) -> str | None:
    """The first segment of a template, by which the table is sorted; None if it may be any."""
    head = (path or "").removeprefix("/").partition("/")[0]
    return None if not head or "{" in head or len(head) >= _LONGEST_HEAD - 1 else head


def _is_websocket(route: Any) -> bool:
    original = getattr(route, "original_route", route)
    return any(cls.__name__ == "WebSocketRoute" for cls in type(original).__mro__)


def _unfold(routes: Sequence[object]) -> Iterator[object]:
    """FastAPI keeps an included router as one route, and tells on request what is in it."""
    tell = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    return iter(routes) if tell is None else tell(routes)


def routes_for(middleware: object, inner: object, outer: object) -> tuple[list[object] | None, bool]:
    """The routes that a middleware's requests may go to, and whether it sees the paths they are matched with.

    Args:
        middleware: The middleware.
        inner: What it calls. The routes below it are the right ones.
        outer: The framework's application, in case that what is below hides its routes. Those of the outer
            application have other paths if the middleware stands at a mount or a route of it.
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
    """An application, and what it calls one after the other, as far as it says so."""
    for _ in range(_DEEPEST):
        yield app
        app = getattr(app, "app", None)
