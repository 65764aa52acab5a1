"""A socket whose reads and writes all end by one deadline.

Depends on sockets; must not import redis. A socket's own timeout applies to one read: a server that sends
a byte now and then would extend it forever. So the time left is measured before each read and write.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["BoundedSocket", "IOLimit", "WatchedSocket"]

_receive = socket.socket.recv
"""Read at import, because tests replace ``socket.socket``; a TLS socket's own refuses flags."""

_TOO_LONG = 0.02
_TOO_SHORT = 0.004
"""Seconds by which the socket's timeout may differ from the time left. Setting it is a system call. Most
reads come microseconds after a write, and most commands get as much time as the one before, so they need no
new timeout. A read that ends too early by this much is late, too; see `CommandRunner.is_late`.
"""


class IOLimit:
    """The deadline of the work on a connection; shared by the connection and its socket.

    Attributes:
        at: The deadline on `time.monotonic`; None is no deadline.
        blocking: Whether the work runs a blocking command, which redis-py's socket timeout must not end.
    """

    __slots__ = ("at", "blocking")

    def __init__(self) -> None:
        self.at: float | None = None
        self.blocking = False

    def within(self, timeout: float | None) -> float | None:
        """Returns the smaller of a timeout and the time left, in seconds.

        Raises:
            TimeoutError: No time is left.
        """
        if timeout == 0:
            return timeout  # a non-blocking read
        if self.blocking:
            timeout = None
        if self.at is None:
            return timeout
        left = self.at - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left if timeout is None or left < timeout else timeout


class BoundedSocket:
    """Wraps a connected socket; attributes that are not here are the socket's.

    Args:
        raw: The socket.
        limit: The deadline of all reads and writes together.
        timeout: Seconds for each read or write; None is no timeout.

    Attributes:
        limit: The same.
        poll: Waits the given milliseconds for data or an end of file; returns an empty list without. None for
            TLS, which may have read ahead.
    """

    __slots__ = ("_least", "_most", "_raw", "_timeout", "limit", "poll")

    def __init__(self, raw: socket.socket, limit: IOLimit, timeout: float | None) -> None:
        self._raw = raw
        self.limit = limit
        self.poll: Callable[[float], list[Any]] | None = None
        if type(raw) is socket.socket and hasattr(select, "poll"):
            poll = select.poll()
            poll.register(raw, select.POLLIN)
            self.poll = poll.poll
        self.settimeout(timeout)

    # Each method repeats the check: a common one would cost two calls for each command.

    def recv(self, size: int, flags: int = 0) -> bytes:
        """See socket.socket."""
        at = self.limit.at
        if at is None or not self._least <= at - monotonic() <= self._most:
            self._set_timeout()
        return self._raw.recv(size, flags)

    def recv_into(self, *args: Any) -> int:
        """See socket.socket."""
        at = self.limit.at
        if at is None or not self._least <= at - monotonic() <= self._most:
            self._set_timeout()
        return self._raw.recv_into(*args)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """See socket.socket."""
        at = self.limit.at
        if at is None or not self._least <= at - monotonic() <= self._most:
            self._set_timeout()
        self._raw.sendall(data, flags)

    def settimeout(self, seconds: float | None) -> None:
        """See socket.socket; applies from the next read or write on."""
        self._timeout = seconds
        self.reset_timeout()

    def reset_timeout(self) -> None:
        """Makes the next read or write set the socket's timeout."""
        self._least, self._most = math.inf, -math.inf

    def gettimeout(self) -> float | None:
        """See socket.socket."""
        return self._timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def _set_timeout(self) -> None:
        limit = self.limit
        timeout = limit.within(self._timeout)
        if self._raw.gettimeout() != timeout:
            self._raw.settimeout(timeout)
        self.reset_timeout()
        if limit.at is not None and not limit.blocking and timeout:
            # The range of time left for which this timeout is good enough.
            self._least = max(0.0, timeout - _TOO_LONG)
            self._most = math.inf if timeout == self._timeout else timeout + _TOO_SHORT


class WatchedSocket(BoundedSocket):
    """Shows other threads whether all data that has arrived was handled.

    The reader waits without reading, and clears the mark *handled* before it reads. So another thread never
    takes data that was read and not yet handled for data that has not arrived.
    """

    __slots__ = ("_handled",)

    def __init__(self, raw: socket.socket, limit: IOLimit, timeout: float | None) -> None:
        super().__init__(raw, limit, timeout)
        self._handled: object = None

    def recv(self, size: int, flags: int = 0) -> bytes:
        """See socket.socket. The parser has handled each whole message when it asks for more."""
        if not flags:
            self._await_data()
        return super().recv(size, flags)

    def recv_into(self, *args: Any) -> int:
        """See `recv`."""
        self._await_data()
        return super().recv_into(*args)

    def note_handled(self) -> None:
        """Notes that all bytes that were read are handled. For the thread that reads."""
        if not self._has_decrypted():
            self._handled = object()

    def is_handled(self) -> bool:
        """True if all data that has arrived was handled. Any thread may ask."""
        handled = self._handled
        try:
            return handled is not None and not _is_readable(self._raw) and self._handled is handled
        except (OSError, ValueError):  # closed meanwhile
            return False

    def _await_data(self) -> None:
        """Waits for data or an end of file, and leaves it where it is."""
        self.note_handled()
        try:
            if not self._has_decrypted():
                self._set_timeout()
                _receive(self._raw, 1, socket.MSG_PEEK)
        finally:
            self._handled = None

    def _has_decrypted(self) -> bool:
        return isinstance(self._raw, ssl.SSLSocket) and self._raw.pending() > 0


def _is_readable(raw: socket.socket) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([raw], [], [], 0)[0])
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    return bool(poll.poll(0))
