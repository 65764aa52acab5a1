"""The connections of a `FaultProxy`: pairs of sockets, the bytes between them, and the faults of the wire.

Depends on sockets alone. All of it runs in the proxy's own thread.
"""

from __future__ import annotations

import math
import selectors
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Pair", "Side", "Wire"]

Side = Literal["client", "server"]

_CHUNK = 64 * 1024
_MOST_HELD = 1024 * 1024
"""Bytes held in one direction before its source has to wait, as on a real network."""


@dataclass
class Wire:
    """The present faults, and counts of the traffic.

    Attributes:
        delay: Seconds for which a chunk is held, by its direction.
        hung: The directions in which nothing arrives.
        slice_size: Most bytes the client gets at once; None for any number.
        slice_every: Seconds between two such slices.
        cut_after: Bytes towards clients until the connection that carries the last one is reset.
        hang_after: Bytes towards clients until nothing more arrives there.
        sent: Bytes delivered, by direction.
        turns: Changes of a connection's direction to client -> server.
    """

    delay: dict[Side, float] = field(default_factory=lambda: {"client": 0.0, "server": 0.0})
    hung: set[Side] = field(default_factory=set)
    slice_size: int | None = None
    slice_every: float = 0.0
    cut_after: int | None = None
    hang_after: int | None = None
    sent: dict[Side, int] = field(default_factory=lambda: {"client": 0, "server": 0})
    turns: int = 0

    def count_down(self, sent: int) -> bool:
        """Counts bytes that reached a client; True if their connection is to be reset."""
        if self.hang_after is not None:
            self.hang_after -= sent
            if self.hang_after <= 0:
                self.hang_after = None
                self.hung.add("client")
        if self.cut_after is not None:
            self.cut_after -= sent
            if self.cut_after <= 0:
                self.cut_after = None
                return True
        return False

    def heal(self) -> None:
        """Ends all faults; the counts stay."""
        healthy = Wire()
        self.delay, self.hung = healthy.delay, healthy.hung
        self.slice_size, self.slice_every = None, 0.0
        self.cut_after = self.hang_after = None


class _Stream:
    """One direction of a pair: the bytes that have left its source and not reached its sink.

    Args:
        towards: The side of the sink.
        source: The socket that is read.
        sink: The socket that is written.
    """

    def __init__(self, towards: Side, source: socket.socket, sink: socket.socket) -> None:
        self.towards = towards
        self.source = source
        self.sink = sink
        self.open = True
        self.blocked = False
        self._held: deque[tuple[float, bytes]] = deque()  # with its arrival time; no bytes mean the end
        self._size = 0
        self._reading = True
        self._not_before = 0.0

    @property
    def wants_more(self) -> bool:
        """True if the source is to be read."""
        return self.open and self._reading and self._size < _MOST_HELD

    def read(self, now: float) -> bool:
        """Reads the source; True if there were bytes.

        Raises:
            ConnectionError: The source was reset.
        """
        try:
            data = self.source.recv(_CHUNK)
        except BlockingIOError:
            return False
        self._reading = bool(data)
        self._size += len(data)
        self._held.append((now, data))
        return bool(data)

    def due(self, wire: Wire) -> float:
        """Returns the moment from which `write` can deliver; infinity if there is none."""
        if not self._held or not self.open or self.blocked or self.towards in wire.hung:
            return math.inf
        return max(self._held[0][0] + wire.delay[self.towards], self._not_before)

    def write(self, wire: Wire, now: float) -> bool:
        """Delivers the bytes that are due; False if the connection is to be cut.

        Raises:
            ConnectionError: The sink was reset.
        """
        while self.due(wire) <= now:
            came, data = self._held.popleft()
            if not data:
                self.finish()
                break
            sent = self._send(data[: self._most(wire)])
            self._size -= sent
            wire.sent[self.towards] += sent
            if sent < len(data):
                self._held.appendleft((came, data[sent:]))
            if self.towards == "client":
                self._not_before = now + wire.slice_every
                if wire.count_down(sent):
                    return False
        return True

    def finish(self) -> None:
        """Ends the stream towards the sink (FIN)."""
        self.open = False
        self._held.clear()
        with suppress(OSError):  # the sink has closed already
            self.sink.shutdown(socket.SHUT_WR)

    def _most(self, wire: Wire) -> int | None:
        limits = (wire.slice_size, wire.cut_after, wire.hang_after) if self.towards == "client" else ()
        return min((limit for limit in limits if limit is not None), default=None)

    def _send(self, data: bytes) -> int:
        try:
            sent = self.sink.send(data)
        except BlockingIOError:
            sent = 0
        # The sink is full; the proxy's selector reports when it accepts more.
        self.blocked = sent < len(data)
        return sent


class Pair:
    """A client's connection and the proxy's connection to the server.

    Args:
        client: The accepted socket.
        server: A socket that is connected, or connecting.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.sockets = (client, server)
        self.streams = (_Stream("server", client, server), _Stream("client", server, client))
        self._last: Side = "client"

    @property
    def ended(self) -> bool:
        """True if both sides have got the end of the stream."""
        return not any(stream.open for stream in self.streams)

    def turn(self, ready: set[socket.socket], wire: Wire, now: float) -> bool:
        """Moves the bytes that can be moved; False if the pair is to be reset."""
        try:
            for stream in self.streams:
                if stream.source in ready and stream.wants_more and stream.read(now):
                    self._note_turn(stream.towards, wire)
                if stream.sink in ready:
                    stream.blocked = False
                if not stream.write(wire, now):
                    return False
        except OSError:  # one side has reset: the other gets a reset, too
            return False
        return True

    def _note_turn(self, towards: Side, wire: Wire) -> None:
        if towards == "server" and self._last != "server":
            wire.turns += 1
        self._last = towards

    def events(self, end: socket.socket) -> int:
        """Returns the events to wait for on one of the sockets, as the selector's flags."""
        events = 0
        for stream in self.streams:
            if stream.source is end and stream.wants_more:
                events |= selectors.EVENT_READ
            if stream.sink is end and stream.blocked and stream.open:
                events |= selectors.EVENT_WRITE
        return events

    def reset(self) -> None:
        """Ends both connections at once; each side gets an RST instead of an end of file."""
        for end in self.sockets:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Closes both sockets."""
        for end in self.sockets:
            end.close()
