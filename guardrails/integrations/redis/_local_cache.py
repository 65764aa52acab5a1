"""The replies that a client with client-side caching keeps.

Depends on redis-py's cache; must not import connections. redis-py uses its cache without a common lock, and
marks each command under way in it; a mark stays there if the command fails. It looks at every reply for each
invalidation, so ten thousand that arrive at once take a minute; here an index names the replies of a key.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from redis.cache import CacheEntry, CacheEntryStatus, CacheKey
from redis.client import NEVER_DECODE
from redis.observability.attributes import CSCResult
from redis.observability.recorder import record_csc_network_saved, record_csc_request

from guardrails._runtime.fork import LockOwner, renew_after_fork
from guardrails.errors import ConfigurationError
from guardrails.integrations.redis._blocking import block_time

__all__ = ["MISSING", "LocalCache", "reply_options_of"]

MISSING: Any = object()
"""Stands for a reply that is not kept."""

_ATTRIBUTE = "_guardrails_local_cache"

_REPLY_OPTIONS = {
    "host": "localhost",
    "port": 6379,
    "path": None,
    "db": 0,
    "username": None,
    "credential_provider": None,
    "decode_responses": False,
    "encoding": "utf-8",
    "encoding_errors": "strict",
}
"""Options on which replies depend, with redis-py's defaults."""

_UNTRACKED = {"SORT_RO", "XPENDING"}
"""Commands whose replies change without an invalidation of their keys: the first may read other keys, and a
delivery to a consumer is no change of a stream to the server."""

_SPARE = 1000
"""Keys without a reply that the index may hold besides as many as have one."""


class LocalCache(LockOwner):
    """The replies that the connections of one client, or of a cluster client's nodes, have kept.

    Args:
        cache: redis-py's cache.

    Attributes:
        lock: Held while ``cache`` is used. Nothing that takes a pool's lock is called while it is held.
        flushes: How often it was emptied. A reply that was asked for before is not kept.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.lock = threading.RLock()
        self.flushes = 0
        self._reply_options: Mapping[str, object] = {}
        self._users = 0
        self._of_key: dict[bytes, set[CacheKey]] = {}
        # For all clients that use the cache, unguarded ones included.
        self._set, cache.set, cache.delete_by_redis_keys = cache.set, self._set_indexed, self._delete
        renew_after_fork(self)

    @classmethod
    def of(cls, cache: Any) -> Self:
        """The one for a cache of redis-py's, which several clients may share."""
        known: Self | None = getattr(cache, _ATTRIBUTE, None)
        if known is None:
            known = cls(cache)
            setattr(cache, _ATTRIBUTE, known)
        return known

    def claim(self, options: Mapping[str, object]) -> None:
        """Notes that a client uses the cache, until `release`.

        Args:
            options: The options on which replies depend; see `reply_options_of`.

        Raises:
            ConfigurationError: A client uses it whose replies to the same commands may differ.
        """
        with self.lock:
            differ = [
                name for name in options if self._users and self._reply_options.get(name) != options[name]
            ]
            if differ:
                raise ConfigurationError(
                    f"protect: cache is used by a guarded client with another {', '.join(differ)}, "
                    "whose replies this client would get; give each its own: cache_config=CacheConfig()"
                )
            self._reply_options = options
            self._users += 1

    def release(self) -> None:
        """See `claim`."""
        with self.lock:
            self._users -= 1

    def key(self, args: Sequence[Any], options: Mapping[str, Any]) -> CacheKey | None:
        """The name of the reply to a command with redis-py's options in the cache; None if it is not kept."""
        keys = None if NEVER_DECODE in options else options.get("keys")
        # An invalidation has the bytes of a key: by them 42 would not be found, nor "é" in another encoding.
        if not keys or not all(map(_is_plain, keys)):
            return None
        # In a dictionary 1, 1.0 and True are the same, and the server gets three texts.
        if not all(type(each) is int or _is_plain(each) for each in args):
            return None
        key = CacheKey(command=args[0], redis_keys=tuple(keys), redis_args=tuple(args))
        # A blocking read gets what comes after it was sent, and the next one shall wait again.
        if args[0] in _UNTRACKED or not self._cache.is_cachable(key):
            return None
        return key if block_time(args) is None else None

    def find(self, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """The reply that is kept for a command with redis-py's options; `MISSING` as for `reply`."""
        key = self.key(args, options)
        return MISSING if key is None else self.reply(key)

    def reply(self, key: CacheKey) -> Any:
        """The reply that is kept for a command; `MISSING` if there is none that is still valid."""
        with self.lock:
            entry = self._cache.get(key)
        is_current = getattr(getattr(entry, "connection_ref", None), "is_current", None)
        if is_current is None or not is_current():
            return MISSING
        with self.lock:
            if self._cache.get(key) is not entry:  # it was invalid
                return MISSING
        reply = copy.deepcopy(entry.cache_value)
        record_csc_request(result=CSCResult.HIT)
        record_csc_network_saved(bytes_saved=len(reply) if hasattr(reply, "__len__") else 0)
        return reply

    def keep(self, key: CacheKey, reply: Any, connection: object, flushes: int) -> None:
        """Keeps the reply that a connection has read, to a command sent after so many ``flushes``."""
        record_csc_request(result=CSCResult.MISS)
        with self.lock:
            if reply is not None and flushes == self.flushes:
                # The caller may change the reply that it gets.
                made = CacheEntry(key, copy.deepcopy(reply), CacheEntryStatus.VALID, connection)
                self._cache.set(made)

    def flush(self) -> None:
        """Empties the cache: of the keys that a closed connection has read, no change is announced now."""
        with self.lock:
            self.flushes += 1
            self._cache.flush()
            self._of_key.clear()

    def _set_indexed(self, entry: CacheEntry) -> bool:
        """See redis-py's ``CacheInterface.set``."""
        with self.lock:
            if len(self._of_key) > 2 * self._cache.size + _SPARE:  # of replies that the cache has evicted
                self._of_key.clear()
                for key in list(self._cache.collection):
                    self._index(key)
            self._index(entry.cache_key)
            return bool(self._set(entry))

    def _index(self, key: CacheKey) -> None:
        for each in key.redis_keys:
            self._of_key.setdefault(_as_bytes(each), set()).add(key)

    def _delete(self, redis_keys: Sequence[Any]) -> list[bool]:
        """See redis-py's ``CacheInterface.delete_by_redis_keys``: a True for each reply that was deleted."""
        with self.lock:
            keys: set[CacheKey] = set()
            for each in redis_keys:
                keys |= self._of_key.pop(_as_bytes(each), set())
            return [each for each in self._cache.delete_by_cache_keys(list(keys)) if each]

    def emptied_by(self, disconnect: Callable[..., None]) -> Callable[..., None]:
        """Wraps a connection's ``disconnect``."""

        def emptying(connection: Any, *args: Any, **kwargs: Any) -> None:
            self.flush()
            disconnect(connection, *args, **kwargs)

        return emptying

    def reset_in_child(self) -> None:
        """See LockOwner. The invalidations go to the parent, whose connections they are."""
        super().reset_in_child()
        self.flush()


def reply_options_of(pool: Any) -> dict[str, object]:
    """The options on which the replies to the client of a pool depend."""
    given = pool.connection_kwargs
    options: dict[str, object] = {name: given.get(name) or usual for name, usual in _REPLY_OPTIONS.items()}
    return options | {name: getattr(pool, name, None) for name in ("service_name", "is_master")}  # Sentinel's


def _is_plain(value: object) -> bool:
    """True for bytes and ASCII text, which every encoding of a client makes the same bytes."""
    return type(value) is bytes or (type(value) is str and value.isascii())


def _as_bytes(key: object) -> bytes:
    return key if type(key) is bytes else str(key).encode(errors="surrogatepass")
