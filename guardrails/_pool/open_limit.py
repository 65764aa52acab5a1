"""The connections that a pool has open, where idle ones hold no slot. Must not import a pool or a driver.

A slot counts a connection in use. A fleet's budget counts the open connections, also those that a thread or a
pool keeps. So each has an *entry* here, from before it is opened until the server has closed it.
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

__all__ = ["OpenLimit", "PoolEntry"]

_MAX_WAIT = 2.0
"""Maximum seconds for which a caller waits until it may open a connection."""

_POLL_INTERVAL = 0.02
"""Seconds between two checks whether a connection may be opened."""

_MIN_POLL_INTERVAL = 0.001
"""Minimum seconds between two checks."""

_CLOSING = 0.25
"""Seconds for which a closed connection counts as open if its end at the server cannot be seen."""

_MAX_CLOSING = 5.0
"""Seconds after which a connection counts as closed although the server has not closed it."""


class PoolEntry:
    """One connection as `OpenLimit` counts it.

    Args:
        ended: Called with this entry when the connection is closed.

    Attributes:
        closed_at: When the connection was closed; None while it may be open.
    """

    __slots__ = ("_descriptor", "_ended", "closed_at")

    def __init__(self, ended: Callable[[PoolEntry], object]) -> None:
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
        return seconds >= _MAX_CLOSING or _is_at_end(self._descriptor)

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

    `reserve` makes every new entry. There are never more entries than slots of the guard, or than taken slots
    if those are more because the guard has just been given fewer. So the larger of `count` and the taken
    slots is the most that can be open until the guard gets more slots.

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
        self._open: set[PoolEntry] = set()
        self._closing: set[PoolEntry] = set()
        self._ended: deque[PoolEntry] = deque()  # a finaliser takes no lock

    def reserve(self) -> PoolEntry:
        """Returns an entry for a connection to be opened; closes an idle one, or waits for a close.

        For a guard that does not enforce, it never waits.

        Raises:
            BulkheadFullError: No connection was closed in time.
        """
        return run_to_end(self._reserve(_wait_for_close))

    async def reserve_async(self) -> PoolEntry:
        """Returns an entry without blocking the event loop; see `reserve`."""
        return await self._reserve(_sleep_on_loop)

    async def _reserve(self, wait: Callable[[list[PoolEntry], float], Awaitable[None]]) -> PoolEntry:
        until = time.monotonic() + _MAX_WAIT
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
                self._gate.refuse("bulkhead_full")
            await wait(closing, min(left, _POLL_INTERVAL))

    def adopt(self) -> PoolEntry:
        """Returns the entry of a connection that is open already."""
        entry = PoolEntry(self._ended.append)
        with self.lock:
            self._open.add(entry)
        return entry

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
            entry = self._ended.popleft()
            self._open.discard(entry)
            self._closing.add(entry)
        now = time.monotonic()
        for entry in [entry for entry in self._closing if entry.is_gone(now)]:
            self._closing.discard(entry)


async def _wait_for_close(closing: list[PoolEntry], seconds: float) -> None:
    """Waits in this thread until the server has closed one of some connections, or until the time is over."""
    with selectors.DefaultSelector() as selector:
        for entry in closing:
            entry.watch(selector)
        selector.select(seconds)
    time.sleep(_MIN_POLL_INTERVAL)  # noqa: ASYNC251 - a socket that was shut both ways is ready too early


async def _sleep_on_loop(closing: list[PoolEntry], seconds: float) -> None:  # noqa: ARG001 - as `_wait_for_close`
    import asyncio  # noqa: PLC0415 - its import takes long, and only this needs it

    await asyncio.sleep(seconds / 4)
