"""A socket whose every read and write ends by one moment. Knows no Redis.

A socket's own timeout is for one read: a server that sends a byte now and then would extend it for
ever. So the time left is measured again before each.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["BoundedSocket", "Bounds"]

_TOO_LONG = 0.02
_TOO_SHORT = 0.004
"""Seconds by which a timeout in force may miss the time left. Setting one is a system call; most reads come
microseconds after the write before them, and most commands after one that was given as much, and need none.
A read that ends so little early still counts as stopped at the deadline; see ``CommandRunner.is_late``."""


class Bounds:
    """What the work on a connection may take now; shared by the connection and its socket.

    Attributes:
        at: The moment of `time.monotonic` by which it must be over; None is never.
        patient: Whether it waits on the server on purpose, so that redis-py's socket timeout is not for it.
    """

    __slots__ = ("at", "patient")

    def __init__(self) -> None:
        self.at: float | None = None
        self.patient = False

    def within(self, timeout: float | None) -> float | None:
        """The smaller of a timeout and the time left, in seconds.

        Raises:
            TimeoutError: No time is left.
        """
        if timeout == 0:
            return timeout  # a look at what is there
        if self.patient:
            timeout = None
        if self.at is None:
            return timeout
        left = self.at - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left if timeout is None or left < timeout else timeout


class BoundedSocket:
    """Stands in for a connected socket; what is not here goes to it.

    Args:
        raw: The socket.
        bounds: What its reads and writes may take together.
        timeout: What each may take.

    Attributes:
        bounds: The same.
        poll: Looks for something to read, an end of file too, for so many milliseconds; what it returns is
            empty if there is none. None where one look cannot tell.
    """

    __slots__ = ("_least", "_most", "_raw", "_timeout", "bounds", "poll")

    def __init__(self, raw: socket.socket, bounds: Bounds, timeout: float | None) -> None:
        self._raw = raw
        self.bounds = bounds
        self.poll: Callable[[float], list[Any]] | None = None
        if type(raw) is socket.socket and hasattr(select, "poll"):  # TLS may have read ahead
            poll = select.poll()
            poll.register(raw, select.POLLIN)
            self.poll = poll.poll
        self.settimeout(timeout)

    # Each asks for itself whether the timeout in force will do: two calls for each command are worth that.

    def recv(self, size: int, flags: int = 0) -> bytes:
        """See socket.socket."""
        at = self.bounds.at
        if at is None or not self._least <= at - monotonic() <= self._most:
            self._bound()
        return self._raw.recv(size, flags)

    def recv_into(self, *args: Any) -> int:
        """See socket.socket."""
        at = self.bounds.at
        if at is None or not self._least <= at - monotonic() <= self._most:
            self._bound()
        return self._raw.recv_into(*args)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """See socket.socket."""
        at = self.bounds.at
        if at is None or not self._least <= at - monotonic() <= self._most:
            self._bound()
        self._raw.sendall(data, flags)

    def settimeout(self, seconds: float | None) -> None:
        """See socket.socket; in force from the next read or write on."""
        self._timeout = seconds
        self.reconsider()

    def reconsider(self) -> None:
        """Has the timeout set anew before the next read or write."""
        self._least, self._most = math.inf, -math.inf

    def gettimeout(self) -> float | None:
        """See socket.socket."""
        return self._timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def _bound(self) -> None:
        bounds = self.bounds
        timeout = bounds.within(self._timeout)
        if self._raw.gettimeout() != timeout:
            self._raw.settimeout(timeout)
        self.reconsider()
        if bounds.at is not None and not bounds.patient and timeout:
            # For how much time left this will do: what is left now, or redis-py's own if that is smaller.
            self._least = max(0.0, timeout - _TOO_LONG)
            self._most = math.inf if timeout == self._timeout else timeout + _TOO_SHORT
