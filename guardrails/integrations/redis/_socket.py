"""A socket whose every read and write ends by one moment. Knows no Redis.

A socket's own timeout is for one read: a server that sends a byte now and then would extend it for
ever. So the time left is measured again before each.
"""

from __future__ import annotations

import select
import socket
from time import monotonic
from typing import Any

__all__ = ["BoundedSocket", "Bounds"]

_SLACK = 0.02
"""Seconds by which a timeout in force may be too long. Setting one is a system call; most reads come
microseconds after the write before them, and need none."""


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
    """

    __slots__ = ("_bounds", "_in_force", "_poll", "_raw", "_timeout")

    def __init__(self, raw: socket.socket, bounds: Bounds, timeout: float | None) -> None:
        self._raw = raw
        self._bounds = bounds
        self._timeout = timeout
        self._in_force = raw.gettimeout()
        self._poll: select.poll | None = None
        if type(raw) is socket.socket and hasattr(select, "poll"):  # TLS may have read ahead
            self._poll = select.poll()
            self._poll.register(raw, select.POLLIN)

    def recv(self, *args: Any) -> bytes:
        """See socket.socket."""
        self._bound()
        return self._raw.recv(*args)

    def recv_into(self, *args: Any) -> int:
        """See socket.socket."""
        self._bound()
        return self._raw.recv_into(*args)

    def sendall(self, *args: Any) -> None:
        """See socket.socket."""
        self._bound()
        self._raw.sendall(*args)

    def settimeout(self, seconds: float | None) -> None:
        """See socket.socket; in force from the next read or write on."""
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        """See socket.socket."""
        return self._timeout

    def is_silent(self) -> bool:
        """Whether there is surely nothing to read, not even an end of file."""
        if self._poll is None:
            return False
        return not self._poll.poll(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def _bound(self) -> None:
        timeout = self._bounds.within(self._timeout)
        in_force = self._in_force
        if timeout == in_force or (timeout and in_force and 0 <= in_force - timeout < _SLACK):
            return
        self._raw.settimeout(timeout)
        self._in_force = timeout
