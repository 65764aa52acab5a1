"""The ASGI middleware: it answers for guards that refuse or run late, and for a server that is full.

Knows no framework: Starlette, FastAPI and every other ASGI application are the same to it.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from guardrails._core.criticality import Criticality
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._http.answers import Problem
from guardrails._http.applications import ASGI, check_application
from guardrails._http.asgi_request import (
    ASGIApp,
    ASGIRequest,
    ASGIScope,
    Handshake,
    Receive,
    Send,
    UnreadBody,
    answer,
    deny,
    headers_of,
    path_of,
    server_timing,
)
from guardrails._http.error_causes import follow_frameworks
from guardrails._http.policy import RequestPolicy
from guardrails._http.routes import WEBSOCKET, RouteTable, requires, routes_for
from guardrails._http.settings import HTTPSettings
from guardrails._runtime.scope import Clock, Scope, close, current, enter
from guardrails._util.checks import Faults, refuse_unknown

__all__ = ["GuardrailsMiddleware", "requires"]


class GuardrailsMiddleware:
    """Answers 503 for what a guard refused and 504 for what it stopped, and leaves all else alone.

    ::

        app.add_middleware(GuardrailsMiddleware, guards=[db])   # Starlette, FastAPI
        app = GuardrailsMiddleware(app, guards=[db])            # around any ASGI application

    Durations are seconds. A *path* in a setting covers itself and all below it: ``/orders`` covers
    ``/orders`` and ``/orders/7``, not ``/orders-old``. A *template* covers the paths of its form:
    ``/orders/{id}``. They are compared with the request's path below ``root_path``: the templates
    first, in their order, then the longest path.

    Args:
        app: The application.
        guards: Whose refusals and timeouts to answer, compartments included, by name. Empty is every guard.
        requires: For a path or a template, the guards without which its requests cannot be served; a
            list of guards holds for every request. Such a request waits for its slots on the event loop,
            before its body is read and before a thread is taken, and is answered there and then if a
            circuit or a full bulkhead refuses. The first checkout or call inside takes the slot over.
        learn_routes: Whether to learn which guards an endpoint cannot be answered without, and treat them
            as required. Works where the routes can be seen: Starlette, FastAPI and their mounts.
        exempt: Paths that none of this and no ``max_in_flight`` holds for, such as health checks.
        request_timeout: What each request is given until it starts to answer; None is unbounded. The
            rest of it bounds every guarded call; the application itself is not interrupted.
        deadline_headers: Request headers by which clients may lower that: any of
            ``X-Request-Timeout-Ms``, ``X-Envoy-Expected-Rq-Timeout-Ms``, ``grpc-timeout`` and
            ``Connect-Timeout-Ms``. None by default.
        max_in_flight: HTTP requests inside the application at once; the next one is answered 503
            without waiting. None is unbounded.
        server_timing: Whether to add a ``Server-Timing`` header: milliseconds in our queue (``wait``) and
            in the application until its first byte (``app``).
        criticality: For a path or a template, how much its requests matter: ``"CRITICAL_PLUS"``,
            ``"CRITICAL"`` (what they are otherwise), ``"SHEDDABLE_PLUS"`` or ``"SHEDDABLE"``.
        criticality_header: The name of a request header that says it and outranks the path. For services
            whose callers are trusted: whoever can send it can say ``CRITICAL_PLUS``. None by default.
        clock: Where the time comes from; a monotonic reading in seconds.
        random: Where the jitter of ``Retry-After`` comes from; returns a float in [0, 1).

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    if not TYPE_CHECKING:  # frameworks' own types for middleware allow no catch-all in the signature

        def __new__(cls, *_args: Any, **options: Any) -> Any:
            """Refuses a misspelt setting, naming the nearest one."""
            refuse_unknown("GuardrailsMiddleware", options, GuardrailsMiddleware.__init__)
            return super().__new__(cls)

    def __init__(
        self,
        app: ASGIApp,
        *,
        guards: Iterable[Guard] = (),
        requires: Mapping[str, Iterable[Guard]] | Iterable[Guard] | None = None,
        learn_routes: bool = True,
        exempt: Iterable[str] = (),
        request_timeout: float | None = None,
        deadline_headers: Iterable[str] = (),
        max_in_flight: int | None = None,
        server_timing: bool = False,
        criticality: Mapping[str, Criticality] | None = None,
        criticality_header: str | None = None,
        clock: Clock = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        faults = Faults("GuardrailsMiddleware")
        check_application(faults, app, ASGI)
        settings = HTTPSettings.checked(faults, locals())  # each parameter is a setting of that name
        follow_frameworks()
        self.app, self._clock = app, settings.clock
        self._policy = policy = RequestPolicy(settings)
        self._timed, self._selective, self._criticality = policy.timed, policy.selective, policy.criticality
        self._server_timing = settings.server_timing
        self._learns = settings.learn_routes
        self._routes: list[object] | None = None
        self._table = RouteTable(())
        self._looked, self._by_path = False, True

    @property
    def in_flight(self) -> int:
        """Requests counted against ``max_in_flight`` now."""
        return self._policy.in_flight

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serves one request, or passes on what is none."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        now, needed = self._clock(), None
        receive = receive if scope.get("http_version", "1.1") < "2" else UnreadBody(receive)
        table = self._table if self._looked and self._routes is None else self._look(scope)
        if self._selective or table.demanding:
            needed, problem = self._check_before_body(scope, table, now)
            if problem is not None:
                timing = server_timing(0.0, self._clock() - now) if self._server_timing else None
                await answer(problem, scope, receive, send, timing)
                return
        at = self._until(now, scope) if self._timed else None
        mattering = self._criticality.enter(headers_of(scope), path_of(scope)) if self._criticality else None
        request = enter(ASGIRequest(at, now, self._clock, current(), send))
        request.timed = self._server_timing
        request.goes_to(scope, table, by_path=self._by_path)
        inside, problem = False, None
        try:
            if needed is not None:
                problem = (needed and await self._reserve(request, needed)) or self._policy.count(request)
            if problem is None:
                inside = True
                await self.app(scope, receive, request.send)
                problem = await self._unsaid(request) if request.held else None
            if problem is not None:
                await answer(problem, scope, receive, send, request.timing())
        except Exception as error:
            problem = None if request.started else self._policy.problem(error)
            request.served = False
            if problem is None:
                if request.held:
                    await request.flush_held_response()
                raise
            await answer(problem, scope, receive, send, request.timing())
        finally:
            close(request)
            self._let_out(request, mattering, inside=inside)

    def _let_out(self, request: ASGIRequest, mattering: Scope | None, *, inside: bool) -> None:
        """Gives back what a request has not used, and learns what it came to if it was inside."""
        request.give_back()
        if mattering is not None:
            close(mattering)
        if self._selective:
            self._policy.release(request)
        if inside and self._learns and self._routes is not None:
            endpoint = request.asgi.get("endpoint")
            request.table.learn(endpoint, request, request.let_in, served=request.served)
        if request.request_errors is not None:
            request.forget_error()

    # --- coming in -----------------------------------------------------------------------------

    def _until(self, now: float, scope: ASGIScope) -> float | None:
        """When a request's time is up."""
        budget = self._policy.budget(headers_of(scope))
        return None if budget is None else now + budget

    def _check_before_body(
        self, scope: ASGIScope, table: RouteTable, now: float
    ) -> tuple[tuple[LockedGate, ...] | None, Problem | None]:
        """Says at which gates a request needs a slot (None: it is exempt), or why it cannot be served.

        Most of those that cannot are told so here, before anything has been made for them. The circuits are
        asked first, all of them: nobody waits for a slot in front of what is closed anyway.
        """
        policy, path = self._policy, path_of(scope)
        if policy.is_exempt(path):
            return None, None
        held, late = self._needs(table, scope, path, scope["method"], now)
        return held, policy.missing(held) or policy.missing(late) or policy.full()

    async def _reserve(self, request: ASGIRequest, needed: tuple[LockedGate, ...]) -> Problem | None:
        """Waits for the slots a request needs, or says why it cannot have them."""
        for gate in needed:
            refusal = await request.reserve(gate)
            request.let_in = self._clock()
            if refusal is not None:
                return self._policy.turned_away(gate, refusal)
        return None

    def _needs(
        self, table: RouteTable, scope: ASGIScope, path: str, method: str, now: float
    ) -> tuple[tuple[LockedGate, ...], tuple[LockedGate, ...]]:
        """The gates at which a request needs a slot, and those it will come to too late to hold one for."""
        declared = self._policy.required(path)
        route = table.find(scope.get("endpoint"), path, method) if table.demanding else None
        if route is None or not (route.gates or route.stats.usual):
            return declared, ()
        held: list[LockedGate] = [*declared, *route.gates]
        late: list[LockedGate] = []
        for needed_guard in self._policy.needs(route.stats, now):
            (held if needed_guard.prompt else late).extend(needed_guard.call_settings.gates)
        return tuple(dict.fromkeys(held)), tuple(late)

    def _look(self, scope: ASGIScope) -> RouteTable:
        """Reads the application's routes at the first request, and again when there are more of them."""
        if not self._looked:
            self._looked = True
            self._routes, self._by_path = routes_for(self, self.app, scope.get("app"))
        if self._routes is not None and len(self._routes) != self._table.size:
            self._table = RouteTable(self._routes, self._table, by_path=self._by_path)
        return self._table

    # --- what else there is to say -------------------------------------------------------------

    async def _unsaid(self, request: ASGIRequest) -> Problem | None:
        # Frameworks that answer 500 for an unhandled exception and keep the exception to themselves.
        error = None if request.request_errors is None else request.request_errors.unhandled
        problem = None if error is None else self._policy.problem(error)
        if problem is None:
            await request.flush_held_response()
        return problem

    async def _other(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        handshake = Handshake(send)
        problem = self._refuse_handshake(scope)
        if problem is None:
            mattering = (
                self._criticality.enter(headers_of(scope), path_of(scope)) if self._criticality else None
            )
            try:
                await self.app(scope, receive, handshake.send)
            except Exception as error:
                problem = None if handshake.decided else self._policy.problem(error)
                if problem is None:
                    raise
            finally:
                if mattering is not None:
                    close(mattering)
        if problem is not None:
            await deny(problem, scope, send)

    def _refuse_handshake(self, scope: ASGIScope) -> Problem | None:
        # A connection may last for hours: nothing is held for it, only the circuits are asked.
        table, path = self._look(scope), path_of(scope)
        if not (self._selective or table.demanding) or self._policy.is_exempt(path):
            return None
        held, _ = self._needs(table, scope, path, WEBSOCKET, self._clock())
        return self._policy.missing(held)
