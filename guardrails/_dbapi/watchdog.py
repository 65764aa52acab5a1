"""Deadlines for calls that block their thread; one thread watches all of them.

Arming and disarming cost two dictionary operations and take no lock: the thread that removes an entry from
``armed`` owns it. The watchdog checks the entries (at most one for each pooled connection), sleeps until the
earliest deadline, and is woken only by an earlier one.

Depends on threads only; must not import a driver.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from guardrails._runtime.fork import check_process, in_child
from guardrails._runtime.scope import GONE, Client
from guardrails._runtime.threads import daemon

__all__ = ["AGAIN", "GRACE", "Canceller", "Watched", "end_work_of", "watch"]

_Request = Callable[[], None]

_monotonic = time.monotonic

GRACE = 0.25
"""Seconds between the first cancel request and the shutdown of the socket."""

AGAIN = 0.15
"""Seconds between the first cancel request and the second.

A cancel request that reaches the server before its statement has no effect. It cannot be repeated once the
socket is shut.
"""


class Canceller(Protocol):
    """The part of Driver that stops a blocking call on a connection."""

    def cancel_target(self, connection: Any) -> Any:
        """Reads what a cancel request must know of the connection, before the call can end; never blocks."""

    def cancel(self, target: Any, within: float) -> None:
        """Sends a cancel request. It may block, so it runs in a thread of its own."""

    def cancel_again(self, target: Any, within: float) -> None:
        """Sends a second cancel request, in a thread of its own."""

    def kill(self, connection: Any) -> None:
        """Shuts the socket, so that the call fails at once; never blocks."""

    def retire(self, connection: Any) -> None:
        """Closes the connection for good after the call; never blocks."""


class Watched:
    """One blocking call and how to stop it; made by `watch`.

    Attributes:
        at: The deadline, on ``time.monotonic``.
        canceller: Stops the call.
        connection: The connection it runs on.
        cancels_sent: Number of cancel requests sent.
        client: The client of the request that the call ends with; None if it ends with none.
    """

    __slots__ = ("at", "canceller", "cancels_sent", "client", "connection")

    cancels_sent: int
    at: float
    canceller: Canceller
    connection: Any
    client: Client | None

    @property
    def late(self) -> bool:
        """True once the deadline has passed, cancelled or not."""
        return time.monotonic() >= self.at

    def end_with(self, client: Client) -> None:
        """Lets the call end as soon as a client has left."""
        self.client = client  # first: a client that leaves from here on finds the call
        if client.gone:
            _watchdog.end_work_of(client)

    def end(self) -> bool:
        """Ends the watch; True if the call was cancelled: its connection must not be used again."""
        return _watchdog.armed.pop(self, self) is not None and _watchdog.settle(self)

    def failed(self, error: BaseException) -> bool:
        """Ends the watch of a call that raised; True if its cancellation was the reason."""
        return self.end() and isinstance(error, Exception)


class _Watchdog:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Resets the watchdog. A child process has neither the parent's thread nor its calls."""
        self.armed: dict[Watched, None] = {}
        self._cancelled: dict[Watched, float] = {}
        self._left: list[Client] = []
        self._lock = threading.RLock()  # a finaliser may return a connection in the middle
        self._wake = threading.Event()
        self._planned = math.inf
        self._thread: threading.Thread | None = None

    def watch(self, canceller: Canceller, connection: Any, seconds: float) -> Watched:
        """Watches a call that may take ``seconds`` from now, until its `end` is called."""
        check_process()
        call = Watched()  # no constructor: one frame less for each statement
        call.at = at = _monotonic() + seconds
        call.canceller = canceller
        call.connection = connection
        call.cancels_sent = 0
        call.client = None
        if self._thread is None:
            self._start()
        self.armed[call] = None
        if at < self._planned:
            self._planned = at
            self._wake.set()
        return call

    def end_work_of(self, client: Client) -> None:
        """Stops the calls that end with a client.

        The thread looks for them: of many clients that leave together it looks through the calls once.
        """
        if self.armed:
            self._left.append(client)
            self._wake.set()

    def settle(self, call: Watched) -> bool:
        """Ends the watch of a call that is no longer armed; True if it was cancelled."""
        with self._lock:  # a kill() in progress ends before the caller may close the connection
            self._cancelled.pop(call, None)
        if not call.cancels_sent:
            return False
        with suppress(Exception):  # it may have been closed meanwhile
            call.canceller.retire(call.connection)
        return True

    def _start(self) -> None:
        thread = daemon("guardrails-watchdog", self._watch)
        with self._lock:
            if self._thread is None:
                self._thread = thread
                thread.start()

    def _watch(self) -> None:
        while True:
            # Cleared before the check: a call armed from here on is either seen or wakes the thread again.
            self._wake.clear()
            self._planned = math.inf
            self._planned = due = min(self._planned, self._look(time.monotonic()))
            wait = None if due == math.inf else max(0.0, due - time.monotonic())
            self._wake.wait(wait)

    def _end_calls_of_left(self, now: float) -> None:
        left = set()
        while self._left:
            left.add(self._left.pop())  # one by one: others append meanwhile
        for call in [call for call in list(self.armed) if call.client in left]:
            call.client, call.at = GONE, min(call.at, now)

    def _look(self, now: float) -> float:
        if self._left:
            self._end_calls_of_left(now)
        for call in [call for call in list(self.armed) if call.at <= now]:
            request = self._take_over(call)
            if request is not None:
                _send(request)
        requests: list[_Request] = []
        with self._lock:
            for call in [call for call, due in list(self._cancelled.items()) if due <= now]:
                if call not in self._cancelled:
                    continue  # ended meanwhile by a finaliser in this thread
                if call.cancels_sent == 1:
                    call.cancels_sent = 2
                    self._cancelled[call] = call.at + GRACE
                    requests.append(_request(call.canceller.cancel_again, call))
                else:
                    del self._cancelled[call]
                    call.canceller.kill(call.connection)
            moments = [*self._cancelled.values(), *(call.at for call in list(self.armed))]
        for request in requests:
            _send(request)
        return min(moments, default=math.inf)

    def _take_over(self, call: Watched) -> _Request | None:
        """Takes the call's end from its thread and prepares the request; None if the call has just ended."""
        with self._lock:
            if self.armed.pop(call, self) is not None:
                return None
            call.cancels_sent = 1
            self._cancelled[call] = call.at + AGAIN
            return _request(call.canceller.cancel, call)


def _request(order: Callable[[Any, float], None], call: Watched) -> _Request:
    """Prepares a cancel request; the watchdog's lock is held.

    So the caller cannot close the connection meanwhile. A driver in C may crash the process when it reads a
    connection that is being closed.
    """
    try:
        return partial(order, call.canceller.cancel_target(call.connection), GRACE)
    except Exception:  # noqa: BLE001 - other code has closed the connection; kill() follows
        return _no_request


def _no_request() -> None:
    """Stands for the request about a connection that cannot be asked."""


def _send(request: _Request) -> None:
    """Sends a cancel request in a thread of its own."""
    with suppress(RuntimeError):  # no thread could start: kill() must follow all the same
        daemon("guardrails-cancel", _quietly, request).start()


def _quietly(request: _Request) -> None:
    # The server may be gone, or the call over: kill() follows in either case.
    with suppress(Exception):
        request()


_watchdog = _Watchdog()

in_child(_watchdog.forget)

watch, end_work_of = _watchdog.watch, _watchdog.end_work_of
