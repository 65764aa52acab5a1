"""The thread of a `FaultProxy`: accepts connections, waits for sockets and moments, and moves bytes.

Depends on sockets and one `Wire`. Other threads give it steps, which it runs in its own thread.
"""

from __future__ import annotations

import errno
import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from guardrails.testing._wire import Pair, Wire

__all__ = ["Relay"]

_BACKLOG = 128
_REBIND_LIMIT = 5.0


class Relay:
    """Listens on the loopback address and forwards bytes, subject to the faults of the wire.

    Args:
        upstream: The server's host and port.

    Attributes:
        wire: The present faults; changed only by steps.
        pairs: The open connections.
        accepted: Connections ever accepted.
        address: The address on which it listens.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.wire = Wire()
        self.pairs: dict[Pair, None] = {}
        self.accepted = 0
        self.address = ("127.0.0.1", 0)
        self._upstream = upstream
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._lock = threading.Lock()  # no step after the end
        self._closed = False
        self._steps: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="guardrails-fault-proxy")
        self._thread.start()

    # --- from any thread -----------------------------------------------------------------------

    def do(self, step: Callable[[], None]) -> None:
        """Runs a step in the relay's thread and waits for it; its exception is raised here.

        Raises:
            RuntimeError: The relay is closed.
        """
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("this proxy is closed")
            self._steps.append((step, done))
            self._bell.send(b".")
        done.result()

    def close(self) -> None:
        """Resets open connections and ends the thread; may be called again."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._bell.send(b".")
        self._thread.join()
        # Closed here and not in the thread, which may end before it is woken.
        self._bell.close()
        self._ear.close()

    # --- steps ---------------------------------------------------------------------------------

    def listen(self) -> None:
        """Accepts new connections, always on the same port; no effect if it does already."""
        limit = time.monotonic() + _REBIND_LIMIT
        while self._listener is None:
            listener = socket.socket()
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(self.address)
                listener.listen(_BACKLOG)
            except OSError as error:
                listener.close()
                # Another process that got the port meanwhile may need it for one short connection only.
                if error.errno != errno.EADDRINUSE or time.monotonic() > limit:
                    raise
                time.sleep(0.05)
            else:
                listener.setblocking(False)
                self._listener, self.address = listener, listener.getsockname()
                self._selector.register(listener, selectors.EVENT_READ)

    def stop_listening(self) -> None:
        """Refuses new connections."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def reset(self) -> None:
        """Resets every open connection."""
        for pair in list(self.pairs):
            self._drop(pair, Pair.reset)

    def half_close(self) -> None:
        """Ends the stream towards every client (FIN)."""
        for pair in self.pairs:
            for stream in pair.streams:
                if stream.towards == "client":
                    stream.finish()

    # --- the thread ----------------------------------------------------------------------------

    def _serve(self) -> None:
        ready: set[socket.socket] = set()
        while not self._closed:
            if self._ear in ready:
                self._ear.recv(1024)
            self._take_steps()
            if self._listener is not None and self._listener in ready:
                self._accept(self._listener)
            now = time.monotonic()
            for pair in list(self.pairs):
                if not pair.turn(ready, self.wire, now):
                    self._drop(pair, Pair.reset)
                elif pair.ended:
                    self._drop(pair, Pair.close)
                else:
                    self._watch(pair)
            ready = self._wait()
        self._end()

    def _take_steps(self) -> None:
        while self._steps:
            step, done = self._steps.popleft()
            try:
                done.set_result(step())
            except OSError as error:
                done.set_exception(error)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the client has left already
            client, _ = listener.accept()
            server = socket.socket(socket.AF_INET6 if ":" in self._upstream[0] else socket.AF_INET)
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.connect_ex(self._upstream)  # reading shows if the connect worked
            self.pairs[Pair(client, server)] = None
            self.accepted += 1

    def _watch(self, pair: Pair) -> None:
        watched = self._selector.get_map()
        for end in pair.sockets:
            events = pair.events(end)
            known = watched.get(end)
            if known is None and events:
                self._selector.register(end, events)
            elif known is not None and not events:
                self._selector.unregister(end)
            elif known is not None and known.events != events:
                self._selector.modify(end, events)

    def _wait(self) -> set[socket.socket]:
        moments = [stream.due(self.wire) for pair in self.pairs for stream in pair.streams]
        due = min(moments, default=math.inf)
        wait = None if due == math.inf else max(0.0, due - time.monotonic())
        found = (key.fileobj for key, _ in self._selector.select(wait))
        return {end for end in found if isinstance(end, socket.socket)}

    def _drop(self, pair: Pair, how: Callable[[Pair], None]) -> None:
        watched = self._selector.get_map()
        for end in pair.sockets:
            if end in watched:
                self._selector.unregister(end)
        how(pair)
        self.pairs.pop(pair, None)

    def _end(self) -> None:
        self.stop_listening()
        self.reset()
        self._selector.close()
        for _, done in self._steps:
            done.set_exception(RuntimeError("this proxy is closed"))
