"""One request over ASGI: the messages sent and held back, and the slots reserved for it.

Depends on ASGI; must not import settings or a framework.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from guardrails._core.gate import Refusal
from guardrails._core.shadow import UNCOUNTED
from guardrails._guard.locked_gate import LockedGate
from guardrails._http.answers import Problem
from guardrails._http.asgi_routes import ASGIScope, RoutedRequest
from guardrails._http.disconnect import DisconnectListener
from guardrails._http.error_causes import note_caught
from guardrails._runtime.scope import Clock, RequestScope, Scope, time_left

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
    """One request and its response, as far as it has been sent.

    A framework's outermost handler may answer 500 for a guard's error, and the middleware sees the answer
    first. So a 500 is held back if a guard refused or stopped a call of the request. The exception behind
    it is known when the application ends.

    Attributes:
        started: Whether a response has been passed on; then no other answer is possible.
        held: The messages of the 500 that is held back.
        served: True if a guard refused or timed out and the answer was no 5xx all the same.
        began: The time at which the request arrived.
        let_in: The time at which its wait for slots ended.
        timed: Whether to add ``Server-Timing``.
        listener: Listens for the client's disconnect; None where the request's work continues without it.
    """

    __slots__ = ("_send", "began", "held", "let_in", "listener", "served", "started", "timed")

    def __init__(self, began: float, clock: Clock, outer: Scope | None, send: Send, *, timed: bool) -> None:
        RequestScope.__init__(self, None, clock, outer)  # super() would cost more than all it calls
        self._send = send
        self.started = self.served = False
        self.timed = timed
        self.held: list[Message] = []
        self.began = self.let_in = began
        self.listener: DisconnectListener | None = None

    def listen(self, receive: Receive, on_leave: Callable[[], None]) -> Receive:
        """Ends the request's work when its client leaves.

        Args:
            receive: The server's ``receive``.
            on_leave: Called when the client has left before its response was complete.

        Returns:
            The ``receive`` for the application, and for the rest of the body.
        """
        self.client = self.listener = listener = DisconnectListener(self.asgi, receive, self._send, on_leave)
        self._send = listener.send
        self.timed_task = (
            0  # a timer around the request does not hear of its client, so calls inside need their own
        )
        return UnreadBody(listener.receive) if isinstance(receive, UnreadBody) else listener.receive

    @property
    def client_left(self) -> bool:
        """True if the client has left before the response was complete, as far as anyone listens."""
        return self.listener is not None and self.listener.left

    def stop_listening(self) -> None:
        """Ends the listening; called when the request has ended."""
        if self.listener is not None:
            self.listener.end()
            self.client = self.listener = None

    # --- slots reserved for it -----------------------------------------------------------------

    async def reserve(self, gate: LockedGate) -> Refusal | None:
        """Waits for a slot, which the first checkout or call inside takes over.

        Returns:
            The refusal, if no slot came free in time. The listeners have been notified of it.
        """
        if self.reservations_at(gate.core) is not None:
            return None  # an outer middleware has one already
        if not gate.core.enforces and self._would_not_run():
            self.reserved[gate.core] = gate, UNCOUNTED
            return None
        left = time_left(self) if gate.core.enforces else self.remaining()
        if left is not None and left <= 0 and gate.core.enforces:
            refusal = gate.step(gate.core.refuse, "deadline_spent")
            gate.report_refusal(refusal, at_edge=True)
            return refusal
        verdict = await gate.reserve(budget=left)
        if not isinstance(verdict, int):
            return verdict
        self.reserved[gate.core] = gate, verdict
        return None

    def _would_not_run(self) -> bool:
        """True if a guard in shadow would have refused this request before."""
        return any(slot < 0 and not gate.core.would_run(slot) for gate, slot in self.reserved.values())

    def release_slots(self) -> None:
        """Returns the reserved slots that no call has taken over."""
        while self.reserved:
            _, (gate, slot) = self.reserved.popitem()
            gate.check_in(slot)

    # --- its answer ----------------------------------------------------------------------------

    def send(self, message: Message) -> Awaitable[None]:
        # Not a coroutine: it returns the server's, so that a chunk costs no extra frame.
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
        if whole and self.listener is not None:
            self.listener.finish()
        reported = self.request_errors is not None and self.request_errors.unhandled is not None
        if len(self.held) > 1 and not reported and not (whole and len(self.held) == 2):  # noqa: PLR2004
            await self.flush_held_response()  # an error handler's answer is not in parts, a stream is

    async def flush_held_response(self) -> None:
        """Sends the messages that were held back."""
        self._start()
        messages, self.held = self.held, []
        for message in messages:
            await self._send(message)

    def _start(self) -> None:
        # The deadline is for the first byte: a stream may be long, and no client waits for a background task.
        # For the same reason no slot stays reserved for them: their calls ask for slots themselves.
        self.started = True
        if self.reserved:
            self.release_slots()
        if self.at is not None:
            self.clear_deadline()

    def timing(self) -> tuple[bytes, bytes] | None:
        """Returns the ``Server-Timing`` header; None where it is switched off."""
        if not self.timed:
            return None
        return server_timing(self.let_in - self.began, self.clock() - self.let_in)


class UnreadBody:
    """The body of a request over HTTP/2 or 3, where one connection serves several requests at once.

    hypercorn closes the whole connection when a part of a body arrives after the answer. So before an early
    answer a small body is read and dropped.
    """

    MAX_BYTES = 1 << 20
    TIMEOUT = 1.0
    """Bytes and seconds to read at most; then the answer is sent all the same."""

    __slots__ = ("_ended", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)  # the last part, or the client has disconnected
        return message

    async def skip(self) -> None:
        """Reads and drops the rest of a small body."""
        left = self.MAX_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.TIMEOUT):
                while left > 0 and not self._ended:
                    left -= len((await self()).get("body", b""))


class Handshake:
    """The handshake of a websocket.

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
    """Returns the headers of a request; a scope made by hand may have none."""
    headers: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())
    return headers


def path_of(scope: ASGIScope) -> str:
    """Returns the request's path below the application's mount."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if not root:
        return path
    below = path[len(root) :]
    return below if path.startswith(root) and below[:1] in {"", "/"} else path


def server_timing(waited: float, worked: float) -> tuple[bytes, bytes]:
    """Returns a ``Server-Timing`` header, from the seconds in our queue and in the application."""
    return b"server-timing", b"wait;dur=%.1f, app;dur=%.1f" % (waited * 1e3, worked * 1e3)


async def answer(
    problem: Problem,
    scope: ASGIScope,
    receive: Receive,
    send: Send,
    timing: tuple[bytes, bytes] | None,
) -> None:
    """Answers an HTTP request, with the timing header if there is one.

    First reads the rest of its body where an unread body would end the connection.
    """
    if isinstance(receive, UnreadBody):
        await receive.skip()
    accept = expect = b""
    for name, value in scope.get("headers", ()):
        if name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"expect":
            expect = value
    status, headers, body = problem.answer(accept)
    if timing is not None:
        headers.append(timing)
    if expect and scope.get("http_version", "1.1").startswith("1"):
        # The client may send its body after this answer or leave it out. Closing the connection makes both
        # safe.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def deny(problem: Problem, scope: ASGIScope, send: Send) -> None:
    """Refuses a websocket handshake."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": ""})
        return
    accept = b",".join(value for name, value in headers_of(scope) if name == b"accept")
    status, headers, body = problem.answer(accept)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
