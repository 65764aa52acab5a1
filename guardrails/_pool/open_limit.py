"""The connections that a pool has open, where idle ones hold no slot. Must not import a pool or a driver.

A slot counts the connections in use. A fleet's budget counts those that are open, so a connection that a
thread or a pool keeps has a place here, from before it is opened until the server has closed it.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from guardrails._guard.guard import Guard
from guardrails._pool.idle_pool import run_to_end
from guardrails._runtime.fork import LockOwner, renew_after_fork

__all__ = ["OpenLimit", "Place"]

_PATIENCE = 2.0
"""Seconds for which a new connection waits for its place."""

_LOOK = 0.02
"""Seconds between two looks for a place."""

_SHORTEST = 0.001
"""Least seconds between two looks."""

_CLOSING = 0.25
"""Seconds for which a closed connection counts as open if its end at the server cannot be seen."""

_LONGEST_CLOSING = 5.0
"""Seconds after which a connection counts as closed although the server has not closed it."""


class Place:
    """The place of one connection.

    Args:
        ended: Is given the place when the connection is closed.

    Attributes:
        closed_at: When the connection was closed; None while it may be open.
    """

    __slots__ = ("_descriptor", "_ended", "closed_at")

    def __init__(self, ended: Callable[[Place], object]) -> None:
        self._ended = ended
        self._descriptor = -1
        self.closed_at: float | None = None

    def opened(self, descriptor: int | None) -> None:
        """Notes that the connection is open.

        Args:
            descriptor: That of its socket, which is duplicated: PostgreSQL, MariaDB and MySQL close their
                end of it when the session has ended. None if it is unknown.
        """
        if descriptor is not None and descriptor >= 0:
            with suppress(OSError):  # it is closed already, or there are no descriptors left
                self._descriptor = os.dup(descriptor)

    def end(self) -> None:
        """Notes that the connection was closed, or could not be opened. A finaliser may call it."""
        if self.closed_at is None:
            self.closed_at = time.monotonic()
            self._ended(self)

    def is_gone(self, now: float) -> bool:
        """Returns True if the session of a closed connection has ended at the server."""
        seconds = now - (now if self.closed_at is None else self.closed_at)
        if self._descriptor < 0:
            return seconds >= _CLOSING
        return seconds >= _LONGEST_CLOSING or _is_at_end(self._descriptor)

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Has a selector wait for the server's end of a closed connection."""
        if self._descriptor >= 0:
            selector.register(self._descriptor, selectors.EVENT_READ)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _is_at_end(descriptor: int) -> bool:
    """Returns True if the other end has closed a socket. The driver has closed its own descriptor of it."""
    handle = socket.socket(fileno=descriptor)
    try:
        handle.setblocking(False)
        with suppress(OSError):  # it was shut before
            handle.shutdown(socket.SHUT_WR)  # as the driver's close would do, without our duplicate
        while handle.recv(65536):
            pass
        if handle.family != getattr(socket, "AF_UNIX", None):
            handle.getpeername()  # an error once both ends are closed; a driver may have shut ours both ways
            return False
    except BlockingIOError:
        return False
    except OSError:
        return True
    else:
        return True
    finally:
        handle.detach()


class OpenLimit(LockOwner):
    """Keeps the open connections of one pool within the slots of its guard.

    Every place is taken in `reserve`. There are never more than the guard has slots, or than are taken if
    these are more, because the guard has just been given fewer. So the larger of `count` and the slots that
    are taken is the most that can be open until the guard gets more slots.

    Args:
        guard: The pool's guard.
        close_oldest: Closes the connection that has been idle for longest; False if none is idle.
    """

    def __init__(self, guard: Guard, close_oldest: Callable[[], Awaitable[bool]]) -> None:
        self._gate = guard.call_settings.gates[-1]
        self._close_oldest = close_oldest
        self.reset_in_child()
        renew_after_fork(self)

    def reset_in_child(self) -> None:
        """See ForkAware: the connections are the parent's. At first, too."""
        self.lock: Any = threading.RLock()
        self._open: set[Place] = set()
        self._closing: set[Place] = set()
        self._ended: deque[Place] = deque()  # a finaliser takes no lock

    def reserve(self) -> Place:
        """Takes the place of a connection to be opened; closes an idle one for it, or waits for one to close.

        A guard that does not enforce gives a place at once.

        Raises:
            BulkheadFullError: There was no place in time.
        """
        return run_to_end(self._reserve(_wait_for_one))

    async def reserve_async(self) -> Place:
        """Takes a place without blocking the event loop; see `reserve`."""
        return await self._reserve(_look_again)

    async def _reserve(self, wait: Callable[[list[Place], float], Awaitable[None]]) -> Place:
        until = time.monotonic() + _PATIENCE
        while True:
            with self.lock:
                self._collect()
                most = self._most()
                if not self._gate.core.enforces or len(self._open) + len(self._closing) < most:
                    return self.adopt()
                is_full = len(self._open) >= most
                closing = list(self._closing)
            if is_full and await self._close_oldest():
                continue
            left = until - time.monotonic()
            if left <= 0:
                self._gate.reject("bulkhead_full")
            await wait(closing, min(left, _LOOK))

    def adopt(self) -> Place:
        """Gives a connection its place that is open already."""
        place = Place(self._ended.append)
        with self.lock:
            self._open.add(place)
        return place

    def count(self) -> int:
        """Returns the number of connections that are open, being opened or being closed."""
        with self.lock:
            self._collect()
            return len(self._open) + len(self._closing)

    def open_count(self) -> int:
        """Returns the number of connections that are open or being opened."""
        with self.lock:
            self._collect()
            return len(self._open)

    def _most(self) -> int:
        slots = self._gate.core.bulkhead
        return max(slots.limit, slots.taken)

    def _collect(self) -> None:
        while self._ended:
            place = self._ended.popleft()
            self._open.discard(place)
            self._closing.add(place)
        now = time.monotonic()
        for place in [place for place in self._closing if place.is_gone(now)]:
            self._closing.discard(place)


async def _wait_for_one(closing: list[Place], seconds: float) -> None:
    """Waits in this thread until the server has closed one of some connections, or until the time is over."""
    with selectors.DefaultSelector() as selector:
        for place in closing:
            place.watch(selector)
        selector.select(seconds)
    time.sleep(_SHORTEST)  # noqa: ASYNC251 - a socket that was shut both ways is ready too early


async def _look_again(closing: list[Place], seconds: float) -> None:  # noqa: ARG001 - as `_wait_for_one`
    import asyncio  # noqa: PLC0415 - its import takes long, and only this needs it

    await asyncio.sleep(seconds / 4)
