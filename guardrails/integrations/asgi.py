"""The ASGI middleware: it answers for guards that refuse or run late, and for a server that is full.

Knows no framework: Starlette, FastAPI and every other ASGI application are the same to it.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from guardrails._checks import Faults, unknown_option
from guardrails._deadline import Clock, RequestScope, Scope, close, current, enter, note_trouble
from guardrails._guard import Guard
from guardrails.integrations._edge import Edge
from guardrails.integrations._http import Problem

__all__ = ["GuardrailsMiddleware"]

Message = MutableMapping[str, Any]
ASGIScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]

_TRY_AGAIN_LATER = 1013


class GuardrailsMiddleware:
    """Answers 503 for what a guard refused and 504 for what it stopped, and leaves all else alone.

    ::

        app.add_middleware(GuardrailsMiddleware, guards=[db])   # Starlette, FastAPI
        app = GuardrailsMiddleware(app, guards=[db])            # around any ASGI application

    Both ways give the same answers. Durations are seconds. A *path* in a setting covers itself and all
    below it: ``/orders`` covers ``/orders`` and ``/orders/7``, not ``/orders-old``. It is compared with
    the request's path below ``root_path``, and of several that cover it the longest decides.

    Args:
        app: The application.
        guards: Whose refusals and timeouts to answer, compartments included, compared by name. Empty
            is every guard.
        requires: For a path, the guards without which its requests cannot be served. While the circuit
            of one of them refuses, they are answered before the body is read and before a thread is
            taken; the probes of a half-open circuit get through.
        exempt: Paths that ``max_in_flight`` and ``requires`` do not hold for, such as health checks.
        request_timeout: What each request is given until it starts to answer; None is unbounded. The
            rest of it bounds every guarded call; the application itself is not interrupted.
        deadline_headers: Request headers by which clients may lower that: any of
            ``X-Request-Timeout-Ms``, ``X-Envoy-Expected-Rq-Timeout-Ms``, ``grpc-timeout`` and
            ``Connect-Timeout-Ms``. None by default.
        max_in_flight: HTTP requests inside the application at once; the next one is answered 503
            without waiting. None is unbounded.
        clock: Where the time comes from; a monotonic reading in seconds.
        random: Where the jitter of ``Retry-After`` comes from; returns a float in [0, 1).

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    if not TYPE_CHECKING:  # frameworks' own types for middleware allow no catch-all in the signature

        def __new__(cls, *_args: Any, **options: Any) -> Any:
            """Refuses a misspelt setting, naming the nearest one."""
            for option in options:
                if option not in _OPTIONS:
                    raise unknown_option("GuardrailsMiddleware", option, _OPTIONS)
            return super().__new__(cls)

    def __init__(
        self,
        app: ASGIApp,
        *,
        guards: Iterable[Guard] = (),
        requires: Mapping[str, Iterable[Guard]] | None = None,
        exempt: Iterable[str] = (),
        request_timeout: float | None = None,
        deadline_headers: Iterable[str] = (),
        max_in_flight: int | None = None,
        clock: Clock = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        faults = Faults("GuardrailsMiddleware")
        faults.callable("app", app, none=False)
        faults.callable("clock", clock, none=False)
        faults.raise_if_any()
        self.app = app
        self._clock = clock
        self._edge = Edge(
            "GuardrailsMiddleware",
            guards=guards,
            exempt=exempt,
            request_timeout=request_timeout,
            max_in_flight=max_in_flight,
            requires=requires,
            deadline_headers=deadline_headers,
            random=random,
        )
        self._timed = self._edge.timed
        self._selective = self._edge.selective

    @property
    def in_flight(self) -> int:
        """Requests counted against ``max_in_flight`` now."""
        return self._edge.in_flight

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serves one request, or passes on what is none."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        budget = self._edge.budget(scope["headers"]) if self._timed else None
        at = None if budget is None else self._clock() + budget
        exchange = enter(_Exchange(at, self._clock, current(), send))
        try:
            problem = self._edge.admit(exchange, _path(scope)) if self._selective else None
            if problem is None:
                await self.app(scope, receive, exchange.send)
                problem = self._unsaid(exchange) if exchange.held else None
            if problem is not None:
                await _answer(problem, scope, send)
            elif exchange.held:
                await exchange.let_go()
        except Exception as error:
            problem = None if exchange.started else self._edge.problem(error)
            if problem is None:
                await exchange.give_up()
                raise
            await _answer(problem, scope, send)
        finally:
            close(exchange)
            if self._selective:
                self._edge.release(exchange)

    def _unsaid(self, exchange: _Exchange) -> Problem | None:
        # Frameworks that answer 500 for an unhandled exception and keep the exception to themselves.
        return None if exchange.trouble is None else self._edge.problem(exchange.trouble)

    async def _other(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        handshake = _Handshake(send)
        problem = self._edge.refuse(_path(scope)) if self._selective else None
        if problem is None:
            try:
                await self.app(scope, receive, handshake.send)
            except Exception as error:
                problem = None if handshake.decided else self._edge.problem(error)
                if problem is None:
                    raise
        if problem is not None:
            await _deny(problem, scope, send)


class _Exchange(RequestScope):
    """One request and its response, as far as it has come.

    A framework's outermost handler may answer 500 for a guard's error before the error gets here. A
    500 in a request that had trouble is therefore held back until the application ends and it is
    known what the trouble was to it.

    Attributes:
        started: Whether a response has been passed on; from then on nothing else can be answered.
        held: The messages of the 500 that is held back.
    """

    __slots__ = ("_send", "held", "started")

    def __init__(self, at: float | None, clock: Clock, outer: Scope | None, send: Send) -> None:
        super().__init__(at, clock, outer)
        self._send = send
        self.started = False
        self.held: list[Message] = []

    def send(self, message: Message) -> Awaitable[None]:
        # No coroutine of its own: the server's is handed on, so that a chunk costs no extra frame.
        return self._send(message) if self.started else self._begin(message)

    def _begin(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if self.held or (
            kind == "http.response.start" and message["status"] == 500 and self.trouble is not None  # noqa: PLR2004
        ):
            return self._hold(message)
        if kind == "http.response.start":
            self._start()
        return self._send(message)

    async def _hold(self, message: Message) -> None:
        self.held.append(message)
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        if len(self.held) > 1 and not (whole and len(self.held) == 2):  # noqa: PLR2004
            await self.let_go()  # a stream is no error handler's answer, and might be long

    async def let_go(self) -> None:
        """Sends what was held back."""
        self._start()
        messages, self.held = self.held, []
        for message in messages:
            await self._send(message)

    async def give_up(self) -> None:
        """Leaves the application's exception to whoever is outside."""
        if self.held:
            await self.let_go()
        if self.trouble is not None and self.outer is not None:
            close(self)
            note_trouble(self.trouble)

    def _start(self) -> None:
        # The budget is for the first byte: a stream may be long, and a background task is nobody's wait.
        self.started = True
        if self.at is not None:
            outer = self.outer
            self.at = None if outer is None else outer.at
            if outer is not None:
                self.owner, self.clock = outer.owner, outer.clock


class _Handshake:
    """A websocket's opening.

    Attributes:
        decided: Whether the application has accepted, closed or denied it.
    """

    __slots__ = ("_send", "decided")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.decided = False

    def send(self, message: Message) -> Awaitable[None]:
        self.decided = True
        return self._send(message)


def _path(scope: ASGIScope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if not root:
        return path
    below = path[len(root) :]
    return below if path.startswith(root) and below[:1] in {"", "/"} else path


async def _answer(problem: Problem, scope: ASGIScope, send: Send) -> None:
    accept, expect = _accept_and_expect(scope)
    status, headers, body = problem.answer(accept)
    if expect and scope["http_version"].startswith("1"):
        # The client waits to be told to send its body, and may now leave it out. Only a closed
        # connection tells the two cases apart.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _deny(problem: Problem, scope: ASGIScope, send: Send) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": ""})
        return
    status, headers, body = problem.answer(_accept_and_expect(scope)[0])
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _accept_and_expect(scope: ASGIScope) -> tuple[bytes, bytes]:
    accept = expect = b""
    for name, value in scope["headers"]:
        if name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"expect":
            expect = value
    return accept, expect


_OPTIONS = (
    "app",
    "clock",
    "deadline_headers",
    "exempt",
    "guards",
    "max_in_flight",
    "random",
    "request_timeout",
    "requires",
)
