"""Notices that the client of an ASGI request has left, and ends the request's work on databases and Redis.

Depends on ASGI, timers and the watchdog; must not import settings or a framework.

Only ``receive()`` tells of a disconnect, and an application that computes its answer does not call it. So a
task calls it meanwhile. The application gets the messages that the task has read, each once and in their
order.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from guardrails._dbapi.watchdog import end_work_of
from guardrails._runtime.loop_timers import Timer, timers
from guardrails._runtime.scope import Client

__all__ = ["DisconnectListener"]

Message = MutableMapping[str, Any]

_LISTEN_AFTER = 0.1
"""Seconds without a call of the application to ``receive()`` after which the task starts. Most requests are
answered sooner, and then cost no task."""

_WHOLE = {"http.response.pathsend", "http.response.zerocopysend"}
"""Messages that are the body of a response as a whole."""


class DisconnectListener(Client, Timer):
    """Wraps ``receive`` and ``send`` of one request.

    The task holds at most one piece of the body that the application has not asked for, so a large upload
    waits in the client as before. Behind the last piece it waits for the disconnect. A request with
    ``Expect`` is read only after the application has begun to: the server would ask the client for the body.

    Args:
        scope: The ASGI connection scope.
        receive: The server's ``receive``.
        send: The server's ``send``.
        on_leave: Called when the client has left before its response was complete.

    Attributes:
        left: True if the client has left before its response was complete. It stays True, unlike ``gone``.
    """

    __slots__ = (
        "_asked",
        "_complete",
        "_context",
        "_error",
        "_held",
        "_on_leave",
        "_reader",
        "_receive",
        "_receiving",
        "_scope",
        "_send",
        "_timers",
        "_woken",
        "due",
        "left",
    )

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        on_leave: Callable[[], None],
    ) -> None:
        self.gone = self.left = self._asked = self._complete = False
        self._scope, self._receive, self._send, self._on_leave = scope, receive, send, on_leave
        self._receiving = 0
        self._held: list[Message] = []
        self._error: Exception | None = None
        self._reader: asyncio.Task[None] | None = None
        self._woken: asyncio.Event | None = None
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._timers = timers()
        self._timers.arm(self, _LISTEN_AFTER)

    def end(self) -> None:
        """Ends the listening: the request has ended. What it has left running is not the client's."""
        self.finish()
        if self._reader is not None:
            self._reader.cancel()
        self._context = None  # it refers to the request

    # --- messages to the client ------------------------------------------------------------------

    def send(self, message: Message) -> Awaitable[None]:
        """Sends a message; behind the last one a disconnect changes nothing."""
        kind = message["type"]
        if (kind == "http.response.body" and not message.get("more_body", False)) or kind in _WHOLE:
            self.finish()  # before it is sent: then the server tells of a disconnect in any case
        return self._send(message)

    def finish(self) -> None:
        """Notes that the application has sent its whole answer: from then on a disconnect changes nothing."""
        self._complete, self.gone = True, False
        self._timers.disarm(self)

    # --- messages from the client ----------------------------------------------------------------

    async def receive(self) -> Message:
        """Returns the next message, which the task may have read already."""
        self._asked = True
        while True:
            if self._held:
                message = self._held[0]
                if message["type"] != "http.disconnect":  # that one is for every later call, too
                    del self._held[0]
                    self._listen_later()
                return message
            if self._error is not None:
                raise self._error
            if self._reader is None:
                break
            assert self._woken is not None, "the task has an event"  # noqa: S101
            self._woken.clear()
            await self._woken.wait()
        self._receiving += 1
        try:
            message = await self._receive()
        finally:
            self._receiving -= 1
            self._listen_later()
        self._note(message)
        return message

    def _listen_later(self) -> None:
        if not (self._complete or self.left or self in self._timers.armed):
            self._timers.arm(self, _LISTEN_AFTER)

    def fire(self) -> float | None:
        """See Timer. Starts the task, unless the application is the one to read the next message."""
        if not (self._receiving or self._held or self._reader or self._error) and self._may_read():
            self._woken = self._woken or asyncio.Event()
            self._reader = asyncio.get_running_loop().create_task(self._read(), context=self._context)
        return None

    def _may_read(self) -> bool:
        return self._asked or all(name != b"expect" for name, _ in self._scope.get("headers", ()))

    async def _read(self) -> None:
        try:
            for _ in range(2):  # the last piece of the body, and the disconnect behind it
                message = await self._receive()
                self._held.append(message)
                self._note(message)
                self._wake()
                if message.get("more_body", False) or message["type"] == "http.disconnect":
                    break
        except Exception as error:  # noqa: BLE001 - raised where the application asks
            self._error = error
        finally:
            self._reader = None
            self._wake()

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    def _note(self, message: Message) -> None:
        if message["type"] == "http.disconnect" and not (self._complete or self.left):
            self.gone = self.left = True
            self._timers.disarm(self)
            self._timers.end_work_of(self)
            end_work_of(self)
            self._on_leave()
