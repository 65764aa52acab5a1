"""The ASGI middleware: answers for guards that refuse or time out, and for a server that is full.

Depends on ASGI; must not import a framework.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

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
from guardrails._http.policy import RequestPolicy, WithPolicy
from guardrails._http.routes import WEBSOCKET, RouteTable, requires, routes_for
from guardrails._http.settings import HTTPSettings
from guardrails._runtime.scope import Clock, Scope, close, current, enter
from guardrails._util.checks import Faults, refuse_unknown

__all__ = ["GuardrailsMiddleware", "requires"]


class GuardrailsMiddleware(WithPolicy):
    """Answers 503 for a call that a guard refused and 504 for one that it stopped; passes on all else.

    ::

        app.add_middleware(GuardrailsMiddleware, guards=[db])   # Starlette, FastAPI
        app = GuardrailsMiddleware(app, guards=[db])            # around any ASGI application

    Durations are seconds. A *path* in a setting covers itself and all paths below it: ``/orders`` covers
    ``/orders`` and ``/orders/7``, not ``/orders-old``. A *template* covers the paths of its form:
    ``/orders/{id}``. The middleware compares them with the request's path below ``root_path``: first the
    templates, in their order, then the paths, the longest first.

    Args:
        app: The application.
        guards: The guards whose refusals and timeouts are answered, with their compartments, by name. Empty
            means every guard.
        requires: By path or template, the guards without which its requests cannot be served; a list of
            guards applies to every request. Such a request waits for its slots on the event loop, before
            its body is read and before it takes a thread. It is answered at once if a circuit or a full
            bulkhead refuses. The first checkout or call inside takes the slot over.
        learn_routes: Whether to learn which guards an endpoint needs, and to treat them as required. Works
            where the middleware can see the routes: Starlette, FastAPI and their mounts.
        exempt: Paths to which neither ``requires`` nor ``max_in_flight`` applies, such as health checks.
        request_timeout: The time from the arrival of a request to the start of its answer; None is
            unbounded. The rest of it bounds every guarded call; the application itself is not interrupted.
        deadline_headers: Request headers with which clients can lower the timeout: any of
            ``X-Request-Timeout-Ms``, ``X-Envoy-Expected-Rq-Timeout-Ms``, ``grpc-timeout`` and
            ``Connect-Timeout-Ms``. None by default.
        max_in_flight: The number of HTTP requests that may be inside the application at once. The next one
            is answered 503 without waiting. None is unbounded.
        server_timing: Whether to add a ``Server-Timing`` header: milliseconds in our queue (``wait``) and
            in the application until its first byte (``app``).
        cancel_on_disconnect: Whether a request's statements, commands and guarded calls are stopped when its
            client closes the connection before the answer is complete: True for requests of safe methods
            (GET, HEAD, OPTIONS, TRACE), ``"all"`` for all requests. A ``commit()`` is never stopped.
        criticality: For a path or a template, the class of its requests: ``"CRITICAL_PLUS"``,
            ``"CRITICAL"`` (the class of all others), ``"SHEDDABLE_PLUS"`` or ``"SHEDDABLE"``.
        criticality_header: The name of a request header that gives the class and outranks the path. Use it
            only where you trust the callers: each of them can send ``CRITICAL_PLUS``. None by default.
        clock: The source of the time: a monotonic clock in seconds.
        random: The source of jitter for ``Retry-After``: returns a float in [0, 1).

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    if not TYPE_CHECKING:  # the frameworks' types for a middleware allow no catch-all in its signature

        def __new__(cls, *_args: Any, **options: Any) -> Any:
            """Refuses a misspelt setting, and names the nearest one."""
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
        cancel_on_disconnect: bool | Literal["all"] = False,
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
        self._cancels = bool(settings.cancel_on_disconnect)
        self._learns = settings.learn_routes
        self._routes: list[object] | None = None
        self._table = RouteTable(())
        self._has_read_routes, self._by_path = False, True

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:  # noqa: C901 - hot
        """Serves one HTTP request or websocket, and passes on all else."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        now, needed, problem, inside = self._clock(), None, None, False
        receive = receive if scope.get("http_version", "1.1") < "2" else UnreadBody(receive)
        table, routes = self._table, self._routes
        if not self._has_read_routes or (routes is not None and len(routes) != table.size):
            table = self._read_routes(scope)
        if self._selective or table.needs_guards:
            needed, problem = self._check_before_body(scope, table, now)
            if problem is not None:
                timing = server_timing(0.0, self._clock() - now) if self._server_timing else None
                await answer(problem, scope, receive, send, timing)
                return
        ranked = self._criticality.enter(headers_of(scope), path_of(scope)) if self._criticality else None
        request = enter(ASGIRequest(now, self._clock, current(), send, timed=self._server_timing))
        if self._timed:
            self._policy.limit(request, headers_of(scope), now)
        request.set_destination(scope, table, by_path=self._by_path)
        if self._cancels and request.client is None and self._policy.ends_with_client(scope["method"]):
            receive = request.listen(receive, self._policy.note_disconnect)
        try:
            if needed is not None:
                problem = (needed and await self._reserve(request, needed)) or self._policy.count_in(request)
            if problem is None:
                inside = True
                await self.app(scope, receive, request.send)
                problem = await self._problem_of_500(request) if request.held else None
            if problem is not None:
                await answer(problem, scope, receive, send, request.timing())
        except Exception as error:
            if not await self._answer_error(error, request, scope, receive, send):
                raise
        finally:
            close(request)
            self._finish(request, ranked, inside=inside)

    async def _answer_error(
        self, error: Exception, request: ASGIRequest, scope: ASGIScope, receive: Receive, send: Send
    ) -> bool:
        """Answers an error of the application; False if it is none of this library's, or comes too late."""
        request.served = False
        problem = self._policy.problem(error)
        if problem is not None and not request.started:
            await answer(problem, scope, receive, send, request.timing())
            return True
        if request.held:
            await request.flush_held_response()
        # Stopped in the middle of its answer, because its client has left: nothing for the server's log.
        return problem is not None and request.client_left

    def _finish(self, request: ASGIRequest, ranked: Scope | None, *, inside: bool) -> None:
        """Returns the slots that a request has not used, and learns from it if it reached the application."""
        request.release_slots()
        left = request.client_left
        request.stop_listening()
        if ranked is not None:
            close(ranked)
        if self._selective:
            self._policy.release(request)
        if inside and self._learns and self._routes is not None and not left:
            request.learn(request.let_in, served=request.served)
        if request.request_errors is not None:
            request.forget_error()

    # --- before the application ------------------------------------------------------------------

    def _check_before_body(
        self, scope: ASGIScope, table: RouteTable, now: float
    ) -> tuple[tuple[LockedGate, ...] | None, Problem | None]:
        """Returns the gates at which a request needs a slot (None if it is exempt), or why it is refused.

        Most refusals end here, before any object is made for the request. All circuits are checked first, so
        that a request does not wait for a slot of one guard while the circuit of another refuses it.
        """
        policy, path = self._policy, path_of(scope) if scope.get("root_path") else scope["path"]
        if policy.exempt.find(path):
            return None, None
        if not table.needs_guards:
            held = policy.requires.find(path) or ()
            return held, policy.missing(held) or policy.check_room()
        held, late = self._needs(table, scope, path, scope["method"], now)
        return held, policy.missing(held) or policy.missing(late) or policy.check_room()

    async def _reserve(self, request: ASGIRequest, needed: tuple[LockedGate, ...]) -> Problem | None:
        """Waits for the slots that a request needs; returns why it is refused if it cannot have them."""
        for gate in needed:
            refusal = await request.reserve(gate)
            request.let_in = self._clock()
            if refusal is not None:
                return self._policy.problem_of_refusal(gate, refusal)
            if request.client_left:
                guard, compartment = gate.identity
                return Problem("client_gone", guard, None, compartment)
        return None

    def _needs(
        self, table: RouteTable, scope: ASGIScope, path: str, method: str, now: float
    ) -> tuple[tuple[LockedGate, ...], tuple[LockedGate, ...]]:
        """Returns the gates at which to reserve a slot, and those reached too late to reserve one."""
        declared = self._policy.requires.find(path) or ()
        if not table.needs_guards:
            return declared, ()
        route, template = table.find(scope.get("endpoint"), path, method)
        stats = None if route is None or template is None else route.stats_of(method, template)
        if route is None or stats is None or not (route.gates or stats.needed):
            return declared, ()
        held: list[LockedGate] = [*declared, *route.gates]
        late: list[LockedGate] = []
        if stats.needed:
            for needed_guard in self._policy.needed_by(stats, now):
                (held if needed_guard.prompt else late).extend(needed_guard.call_settings.gates)
        return tuple(dict.fromkeys(held)), tuple(late)

    def _read_routes(self, scope: ASGIScope) -> RouteTable:
        """Reads the application's routes at the first request, and again when their number has changed."""
        if not self._has_read_routes:
            self._has_read_routes = True
            self._routes, self._by_path = routes_for(self, self.app, scope.get("app"))
        if self._routes is not None and len(self._routes) != self._table.size:
            self._table = RouteTable(self._routes, self._table, by_path=self._by_path)
        return self._table

    # --- after the application, and websockets -----------------------------------------------------

    async def _problem_of_500(self, request: ASGIRequest) -> Problem | None:
        # For frameworks that answer 500 for an unhandled exception and do not raise it again.
        error = None if request.request_errors is None else request.request_errors.unhandled
        problem = None if error is None else self._policy.problem(error)
        if problem is None:
            await request.flush_held_response()
        return problem

    async def _serve_other(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        handshake = Handshake(send)
        problem = self._refuse_handshake(scope)
        if problem is None:
            ranked = self._criticality.enter(headers_of(scope), path_of(scope)) if self._criticality else None
            try:
                await self.app(scope, receive, handshake.send)
            except Exception as error:
                problem = None if handshake.decided else self._policy.problem(error)
                if problem is None:
                    raise
            finally:
                if ranked is not None:
                    close(ranked)
        if problem is not None:
            await deny(problem, scope, send)

    def _refuse_handshake(self, scope: ASGIScope) -> Problem | None:
        # A connection may last for hours, so it reserves no slot: only the circuits are checked.
        table, path = self._read_routes(scope), path_of(scope)
        if not (self._selective or table.needs_guards) or self._policy.exempt.find(path):
            return None
        held, _ = self._needs(table, scope, path, WEBSOCKET, self._clock())
        return self._policy.missing(held)
