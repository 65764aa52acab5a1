"""Client-side caching of a synchronous client: the replies that it keeps, and the connections that read them.

Depends on redis-py's cache and guarded connections; must not import pools. The server sends an invalidation
to the connection that has read a key, so a kept reply is as good as that connection. redis-py reads the
invalidations of a connection while another thread may use it, takes that thread's replies, and waits for the
reply of a command that it has not sent (its issues 3600, 3470 and 4306). Here a connection is read only by
the thread that has it, and others look whether something waits to be read. A reply is kept once it was read.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

import redis
from redis.cache import CacheKey

from guardrails.integrations.redis._checkout import current_checkout
from guardrails.integrations.redis._local_cache import MISSING, LocalCache
from guardrails.integrations.redis._socket import WatchedSocket

__all__ = ["CachedConnection", "execute_in_cluster_with", "execute_with"]

LONGEST_SILENCE = 5.0
"""Seconds after the last data of a connection for which the replies that it has read are used. Without this
limit a network that is cut silently would leave them in use without end."""


class CachedConnection:
    """The methods and attributes of redis-py's connection with a cache, around a guarded connection.

    As with `Guarded`, a class is derived from redis-py's own with these members.

    Attributes:
        plain: The class before the guard.
        local: The cache.
        heard: When the last reply or invalidation was read from it, on `time.monotonic`.
    """

    plain: Any
    pid: int
    is_connected: bool
    disconnect: Any
    local: LocalCache
    _conn: Any
    heard = 0.0
    _key: CacheKey | None = None
    _reply: Any = MISSING
    _flushes = 0
    _watching = False

    # --- the guarded connection inside -------------------------------------------------------------

    @property
    def work(self) -> Any:
        """See Guarded."""
        return self._conn.work

    @property
    def port(self) -> Any:
        """The port of the server. redis-py keeps the one from before a Sentinel named the server."""
        return self._conn.port

    @property
    def checkout(self) -> Any:
        """See Guarded."""
        return self._conn.checkout

    @checkout.setter
    def checkout(self, checkout: Any) -> None:
        self._conn.checkout = checkout
        self._watching = False

    @property
    def close_on_release(self) -> Any:
        """See Guarded."""
        return self._conn.close_on_release

    @close_on_release.setter
    def close_on_release(self, value: bool) -> None:
        self._conn.close_on_release = value

    @property
    def retry(self) -> Any:
        """See Guarded."""
        return self._conn

    @retry.setter
    def retry(self, policy: Any) -> None:
        self.__dict__["retry"] = self._conn.retry = policy

    @property
    def _cache_lock(self) -> Any:
        return self.local.lock

    def __getattr__(self, name: str) -> Any:
        """The other attributes that guarded connections have and redis-py's class has not."""
        if name.startswith("__") or "_conn" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["_conn"], name)

    # --- invalidations -------------------------------------------------------------------------------

    def can_read(self, timeout: float = 0) -> bool:
        """True if there is something to read. Invalidations are read before the connection leaves its pool.

        Raises:
            ConnectionError: It has an unread reply, or was closed.
        """
        if current_checkout.get() is not None and not self._conn.is_working:
            self._drain()
            return False
        ready: bool = self._conn.can_read(timeout)
        return ready

    def is_current(self) -> bool:
        """True if no reply that this connection has read can have changed without its being known.

        Another thread may have the connection. It takes no lock: finalisers of redis-py take the pool's.
        """
        if self.pid != os.getpid() or monotonic() - self.heard > LONGEST_SILENCE:
            return False
        sock = self._conn._sock  # noqa: SLF001 - no public getter
        return isinstance(sock, WatchedSocket) and sock.is_handled()

    def _drain(self) -> bool:
        """Reads the invalidations that have arrived; False if one has arrived in part."""
        connection = self._conn
        while connection.has_data():
            try:
                pushed = connection.plain.read_response(
                    connection, push_request=True, timeout=0, disconnect_on_error=False
                )
            except redis.TimeoutError:
                return False
            if pushed is not None:
                raise redis.ConnectionError("Connection has data")
            self.heard = monotonic()
        self._note_handled()
        return True

    def _note_handled(self) -> None:
        sock = self._conn._sock  # noqa: SLF001
        if isinstance(sock, WatchedSocket):
            sock.note_handled()

    # --- commands ------------------------------------------------------------------------------------

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """Sends a command, unless its reply is kept."""
        self._key, self._reply = None, MISSING
        if self.checkout is not None and self.checkout.subscriber:  # its messages are for its PubSub
            self._conn.send_command(*args, **kwargs)
            return
        if args[0] in {"RESET", "CLIENT TRACKING"} or args[:2] == ("CLIENT", "TRACKING"):
            self.close_on_release = True  # the server may tell it nothing any more
        if args[0] in {"WATCH", "UNWATCH"}:
            self._watching = args[0] == "WATCH"
        # A transaction builds on what it reads after WATCH, so a message under way must not be missed.
        key = self.local.key(args, kwargs) if not self._watching else None
        if self.is_connected and not self._drain():
            key = None
        if key is not None:
            self._reply = self.local.reply(key)
            if self._reply is not MISSING:
                if self.checkout is not None:
                    self.checkout.proves = False  # the server was not asked
                return
            self._key, self._flushes = key, self.local.flushes
        self._conn.send_command(*args, **kwargs)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
        """See redis-py. The replies of pipelines are not kept. Only the EXEC comes here after a WATCH."""
        self._key, self._reply, self._watching = None, MISSING, False
        self._conn.send_packed_command(command, check_health)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Reads the reply of a command, or returns the one that is kept."""
        (key, self._key), (reply, self._reply) = (self._key, None), (self._reply, MISSING)
        if reply is not MISSING:
            return reply
        reply = self._conn.read_response(*args, **kwargs)
        self.heard = monotonic()
        if not self._conn.has_buffered_data():
            self._note_handled()
        if key is not None:
            self.local.keep(key, reply, self, self._flushes)
        return reply


class CachedReply:
    """Stands for a connection in redis-py's ``parse_response``: its next reply is one that was kept."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    def read_response(self, *_: Any, **__: Any) -> Any:
        """Returns the reply."""
        return self._reply


def execute_with(cache: LocalCache, base: Any) -> Any:
    """Makes the method of a client that executes a command, unless its reply is kept.

    Args:
        cache: The cache.
        base: The client's class.
    """

    def _execute_command(self: Any, *args: Any, **options: Any) -> Any:
        reply = cache.find(args, options)
        if reply is not MISSING:
            return self.parse_response(CachedReply(reply), args[0], **options)
        return base._execute_command(self, *args, **options)  # noqa: SLF001 - redis-py's own hook

    return _execute_command


def execute_in_cluster_with(cache: LocalCache, execute: Any) -> Any:
    """The same for a cluster client, whose method is ``execute``."""

    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        reply = MISSING if "target_nodes" in options else cache.find(args, options)
        if reply is MISSING:
            return execute(self, *args, **options)
        node = self.get_redis_connection(self.get_default_node())
        parsed = node.parse_response(CachedReply(reply), args[0], **options)
        callback = self.cluster_response_callbacks.get(args[0])
        return parsed if callback is None else callback(parsed)

    return execute_command
