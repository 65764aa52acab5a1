"""What travels through a `FaultProxy`: pairs of sockets and the bytes between them.

Knows what may be wrong with a wire; never who asked for it. All of it runs in the proxy's own thread.
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
"""Bytes held in one direction before its source is made to wait, as a real wire would."""


@dataclass
class Wire:
    """What is wrong now, and what has passed.

    Attributes:
        delay: Seconds a chunk is held, by where it goes.
        hung: Where nothing arrives.
        slice_size: Most bytes the client gets at once; None for any number.
        slice_every: Seconds between two such slices.
        cut_after: Bytes towards clients until the connection that carries the last one is reset.
        hang_after: Bytes towards clients until nothing arrives there any more.
        sent: Bytes delivered, by where they went.
        turns: How often a connection's direction changed to client -> server.
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
        """Notes bytes that reached a client; True when the connection that carried them is to be reset."""
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
        """Nothing is wrong any more; what has passed stays counted."""
        healthy = Wire()
        self.delay, self.hung = healthy.delay, healthy.hung
        self.slice_size, self.slice_every = None, 0.0
        self.cut_after = self.hang_after = None


class _Stream:
    """One direction of a pair: what has left its source and not reached its sink.

    Args:
        towards: The side it leads to.
        source: Where the bytes come from.
        sink: Where they go.
    """

    def __init__(self, towards: Side, source: socket.socket, sink: socket.socket) -> None:
        self.towards = towards
        self.source = source
        self.sink = sink
        self.open = True
        self.blocked = False
        self._held: deque[tuple[float, bytes]] = deque()  # when it came; no bytes are the end
        self._size = 0
        self._reading = True
        self._not_before = 0.0

    @property
    def wants_more(self) -> bool:
        """Whether the source is to be read."""
        return self.open and self._reading and self._size < _MOST_HELD

    def read(self, now: float) -> bool:
        """Takes what the source has; True if there was something.

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
        """The moment from which `write` has something to do; infinity if there is none."""
        if not self._held or not self.open or self.blocked or self.towards in wire.hung:
            return math.inf
        return max(self._held[0][0] + wire.delay[self.towards], self._not_before)

    def write(self, wire: Wire, now: float) -> bool:
        """Delivers what is due; False when the wire is to be cut here.

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
        """Tells the sink that nothing more comes."""
        self.open = False
        self._held.clear()
        with suppress(OSError):  # it has gone already
            self.sink.shutdown(socket.SHUT_WR)

    def _most(self, wire: Wire) -> int | None:
        limits = (wire.slice_size, wire.cut_after, wire.hang_after) if self.towards == "client" else ()
        return min((limit for limit in limits if limit is not None), default=None)

    def _send(self, data: bytes) -> int:
        try:
            sent = self.sink.send(data)
        except BlockingIOError:
            sent = 0
        # Until the sink can take more; the proxy's selector says when.
        self.blocked = sent < len(data)
        return sent


class Pair:
    """A client's connection and ours to the server.

    Args:
        client: The accepted socket.
        server: A socket that is connected, or about to be.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.sockets = (client, server)
        self.streams = (_Stream("server", client, server), _Stream("client", server, client))
        self._last: Side = "client"

    @property
    def ended(self) -> bool:
        """Whether both sides have heard the end."""
        return not any(stream.open for stream in self.streams)

    def turn(self, ready: set[socket.socket], wire: Wire, now: float) -> bool:
        """Moves what can be moved; False when the pair is to be reset."""
        try:
            for stream in self.streams:
                if stream.source in ready and stream.wants_more and stream.read(now):
                    self._note_turn(stream.towards, wire)
                if stream.sink in ready:
                    stream.blocked = False
                if not stream.write(wire, now):
                    return False
        except OSError:  # one side is gone: the other must hear of it
            return False
        return True

    def _note_turn(self, towards: Side, wire: Wire) -> None:
        if towards == "server" and self._last != "server":
            wire.turns += 1
        self._last = towards

    def events(self, end: socket.socket) -> int:
        """What to wait for on one of the sockets, as the selector's flags."""
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
