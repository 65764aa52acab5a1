"""Deadlines for calls that block their thread: one thread watches them all. Knows moments, not databases.

Arming and disarming cost two dictionary operations and take no lock: whoever removes an entry from
``armed`` owns it. The thread looks at the few entries there are (never more than the pools hold
connections), sleeps until the earliest is due, and is woken only for one that is due earlier still.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from guardrails._runtime.fork import check_process, in_child

__all__ = ["AGAIN", "GRACE", "Watched", "watch"]

_monotonic = time.monotonic

GRACE = 0.25
"""Seconds between asking the server to stop and cutting the connection."""

AGAIN = 0.15
"""Seconds between asking the server to stop and asking again.

An order that overtakes its statement finds nothing to stop and is lost. After the cut nobody could repeat it.
"""


class Stop(Protocol):
    """How a blocking call on a connection is stopped; a part of Driver."""

    def cancel(self, connection: Any, within: float) -> None:
        """Asks it to stop; may block, so it gets a thread of its own."""

    def insist(self, connection: Any, within: float) -> None:
        """Asks again; likewise."""

    def kill(self, connection: Any) -> None:
        """Makes it fail at once; never blocks."""

    def retire(self, connection: Any) -> None:
        """Closes it for good, once the call is over; never blocks."""


class Watched:
    """One blocking call and how to stop it; made by `watch`.

    Attributes:
        at: When its deadline is, on ``time.monotonic``.
        stop: How it is stopped.
        connection: What it runs on.
        asked: How often it was asked to stop.
    """

    __slots__ = ("asked", "at", "connection", "stop")

    asked: int
    at: float
    stop: Stop
    connection: Any

    @property
    def late(self) -> bool:
        """Whether time is up, asked to stop or not."""
        return time.monotonic() >= self.at

    def end(self) -> bool:
        """Ends the watch; True if it was asked to stop, so that its connection must not be used again."""
        return _watchdog.armed.pop(self, self) is not None and _watchdog.settle(self)

    def failed(self, error: BaseException) -> bool:
        """Ends the watch of a call that raised; True if being stopped was the reason."""
        return self.end() and isinstance(error, Exception)


class _Watchdog:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Starts from nothing, as a child process must, which has neither the thread nor the calls."""
        self.armed: dict[Watched, None] = {}
        self._asked: dict[Watched, float] = {}
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._planned = math.inf
        self._thread: threading.Thread | None = None

    def watch(self, stop: Stop, connection: Any, seconds: float) -> Watched:
        """Watches a call that may take some seconds from now, until it is told that it ended."""
        check_process()
        call = Watched()  # no constructor: one frame less for each statement
        call.at = at = _monotonic() + seconds
        call.stop = stop
        call.connection = connection
        call.asked = 0
        if self._thread is None:
            self._start()
        self.armed[call] = None
        if at < self._planned:
            self._planned = at
            self._bell.set()
        return call

    def settle(self, call: Watched) -> bool:
        """Ends the watch of a call that is not armed any more; True if that is because it was late."""
        with self._lock:  # a hard stop in progress ends before the caller may close the connection
            self._asked.pop(call, None)
        if not call.asked:
            return False
        with suppress(Exception):  # it may have been closed meanwhile
            call.stop.retire(call.connection)
        return True

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True, name="guardrails-watchdog")
                self._thread.start()

    def _watch(self) -> None:
        while True:
            # Cleared before looking: what is armed from here on either is seen or rings again.
            self._bell.clear()
            self._planned = math.inf
            self._planned = due = min(self._planned, self._look(time.monotonic()))
            wait = None if due == math.inf else max(0.0, due - time.monotonic())
            self._bell.wait(wait)

    def _look(self, now: float) -> float:
        for call in [call for call in list(self.armed) if call.at <= now]:
            if self._take_over(call):
                _send(call.stop.cancel, call.connection)
        overtaken: list[Watched] = []
        with self._lock:
            for call in [call for call, due in self._asked.items() if due <= now]:
                if call.asked == 1:
                    call.asked = 2
                    self._asked[call] = call.at + GRACE
                    overtaken.append(call)
                else:
                    del self._asked[call]
                    call.stop.kill(call.connection)
            moments = [*self._asked.values(), *(call.at for call in list(self.armed))]
        for call in overtaken:
            _send(call.stop.insist, call.connection)
        return min(moments, default=math.inf)

    def _take_over(self, call: Watched) -> bool:
        with self._lock:
            if self.armed.pop(call, self) is not None:
                return False  # it has just ended by itself
            call.asked = 1
            self._asked[call] = call.at + AGAIN
        return True


def _send(order: Callable[[Any, float], None], connection: Any) -> None:
    """Has an order to stop sent, by a thread of its own."""
    messenger = threading.Thread(
        target=_quietly, args=(order, connection), daemon=True, name="guardrails-cancel"
    )
    with suppress(RuntimeError):  # no thread to be had: the hard stop must come all the same
        messenger.start()


def _quietly(order: Callable[[Any, float], None], connection: Any) -> None:
    # The server may be gone, or the call over: the hard stop follows in either case.
    with suppress(Exception):
        order(connection, GRACE)


_watchdog = _Watchdog()

in_child(_watchdog.forget)

watch = _watchdog.watch
