"""One request over ASGI: what has been sent, what is still to be said, and what is held for it.

Knows no settings and no framework.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from guardrails._core.gate import Refusal
from guardrails._guard.locked_gate import LockedGate
from guardrails._http.answers import Problem
from guardrails._http.asgi_routes import ASGIScope, RoutedRequest
from guardrails._http.error_causes import note_caught
from guardrails._runtime.scope import Clock, RequestScope, Scope

__all__ = [
    "ASGIApp",
    "ASGIRequest",
    "ASGIScope",
    "Handshake",
    "Receive",
    "Send",
    "UnreadBody",
    "answer",
    "deny",
    "headers_of",
    "path_of",
    "server_timing",
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]

_TRY_AGAIN_LATER = 1013


class ASGIRequest(RoutedRequest):
    """One request and its response, as far as it has come.

    A framework's outermost handler may answer 500 for a guard's error before the error gets here. A
    500 in a request in which a guard refused or stopped something is therefore held back until the
    application ends and it is known which exception became the 500.

    Attributes:
        started: Whether a response has been passed on; from then on nothing else can be answered.
        held: The messages of the 500 that is held back.
        served: Whether the answer was no 5xx, in spite of a guard's refusal or timeout before it.
        began: When it came.
        let_in: When its wait for slots was over, and the application got it or it was refused.
        mine: The gates at which it reserved a slot, until it has given back what nothing used.
        timed: Whether to say in ``Server-Timing`` how long it waited and worked.
    """

    __slots__ = ("_send", "began", "held", "let_in", "mine", "served", "started", "timed")

    def __init__(self, at: float | None, began: float, clock: Clock, outer: Scope | None, send: Send) -> None:
        RequestScope.__init__(self, at, clock, outer)  # super() takes longer than all it calls here
        self._send = send
        self.mine: list[LockedGate] | None = None
        self.started = self.timed = self.served = False
        self.held: list[Message] = []
        self.began = self.let_in = began

    # --- slots held for it ---------------------------------------------------------------------

    async def reserve(self, gate: LockedGate) -> Refusal | None:
        """Waits for a slot, which the first checkout or call inside takes over.

        Returns:
            The refusal, if there is none in time; its listeners have been told.
        """
        if gate in self.reserved:
            return None  # an outer middleware has one already
        left = self.remaining()
        if left is not None and left <= 0:
            refusal = gate.step(gate.core.refuse, "deadline_spent")
            gate.tell_refusal(refusal)
            return refusal
        verdict = await gate.reserve(budget=left)
        if not isinstance(verdict, int):
            return verdict
        self.reserved[gate] = verdict
        if self.mine is None:
            self.mine = []
        self.mine.append(gate)
        return None

    def give_back(self) -> None:
        """Gives back the slots that nothing has taken over."""
        while self.mine:
            gate = self.mine.pop()
            slot = self.reserved.pop(gate, 0)
            if slot:
                gate.give_back(slot)

    # --- what it is answered -------------------------------------------------------------------

    def send(self, message: Message) -> Awaitable[None]:
        # No coroutine of its own: the server's is handed on, so that a chunk costs no extra frame.
        return self._send(message) if self.started else self._begin(message)

    def _begin(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if self.held:
            return self._hold(message)
        if kind == "http.response.start":
            if self.request_errors is not None:
                if message["status"] == 500:  # noqa: PLR2004
                    note_caught()
                    return self._hold(message)
                self.served = message["status"] < 500  # noqa: PLR2004
            self._start()
            if self.timed:
                message = {**message, "headers": [*message.get("headers", ()), self.timing()]}
        return self._send(message)

    async def _hold(self, message: Message) -> None:
        self.held.append(message)
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        reported = self.request_errors is not None and self.request_errors.unhandled is not None
        if len(self.held) > 1 and not reported and not (whole and len(self.held) == 2):  # noqa: PLR2004
            await self.flush_held_response()  # a stream is no error handler's answer, and might be long

    async def flush_held_response(self) -> None:
        """Sends what was held back."""
        self._start()
        messages, self.held = self.held, []
        for message in messages:
            await self._send(message)

    def _start(self) -> None:
        # The budget is for the first byte: a stream may be long, and a background task is nobody's wait.
        # For the same reason nothing is held for them: what they need they ask for themselves.
        self.started = True
        if self.mine:
            self.give_back()
        if self.at is not None:
            self.clear_deadline()

    def timing(self) -> tuple[bytes, bytes] | None:
        """The header that says where the time went, if it is to be said."""
        if not self.timed:
            return None
        return server_timing(self.let_in - self.began, self.clock() - self.let_in)


class UnreadBody:
    """The body of a request over HTTP/2 or 3, where the requests of one connection are served side by side.

    hypercorn ends the connection, and with it the others, when a piece arrives after the answer. So a small
    body is read and dropped before an answer that does not wait for it.
    """

    MOST = 1 << 20
    PATIENCE = 1.0
    """Bytes and seconds to read; then the answer is sent all the same."""

    __slots__ = ("_ended", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)  # an end of the body, or of the client
        return message

    async def skip(self) -> None:
        """Reads what is left of a small body."""
        left = self.MOST
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.PATIENCE):
                while left > 0 and not self._ended:
                    left -= len((await self()).get("body", b""))


class Handshake:
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


def headers_of(scope: ASGIScope) -> Iterable[tuple[bytes, bytes]]:
    """The headers of a request; a scope made by hand, as in tests, may have none."""
    headers: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())
    return headers


def path_of(scope: ASGIScope) -> str:
    """The request's path below the application's mount."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if not root:
        return path
    below = path[len(root) :]
    return below if path.startswith(root) and below[:1] in {"", "/"} else path


def server_timing(waited: float, worked: float) -> tuple[bytes, bytes]:
    """The header that says where the time went: milliseconds in our queue, and in the application."""
    return b"server-timing", b"wait;dur=%.1f, app;dur=%.1f" % (waited * 1e3, worked * 1e3)


async def answer(
    problem: Problem,
    scope: ASGIScope,
    receive: Receive,
    send: Send,
    timing: tuple[bytes, bytes] | None,
) -> None:
    """Answers an HTTP request, and says where its time went if there is anything to say.

    What is left of its body is read first where an unread body would end the connection.
    """
    if isinstance(receive, UnreadBody):
        await receive.skip()
    accept, expect = _accept_and_expect(scope)
    status, headers, body = problem.answer(accept)
    if timing is not None:
        headers.append(timing)
    if expect and scope.get("http_version", "1.1").startswith("1"):
        # The client waits to be told to send its body, and may now leave it out. Only a closed
        # connection tells the two cases apart.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def deny(problem: Problem, scope: ASGIScope, send: Send) -> None:
    """Refuses a websocket handshake."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": ""})
        return
    status, headers, body = problem.answer(_accept_and_expect(scope)[0])
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _accept_and_expect(scope: ASGIScope) -> tuple[bytes, bytes]:
    accept = expect = b""
    for name, value in headers_of(scope):
        if name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"expect":
            expect = value
    return accept, expect
