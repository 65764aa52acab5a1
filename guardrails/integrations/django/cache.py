"""Django's cache on Redis, with one pool for each process. Must not import a guard."""

from __future__ import annotations

from typing import Any

try:
    import redis
    from django.core.cache.backends import redis as backend
except ImportError as error:
    raise ImportError("Django or redis is missing: pip install django 'guardrails-db[redis]'") from error

from guardrails._runtime.fork import ForkedLock

__all__ = ["RedisCache"]

_lock = ForkedLock()
_pools: dict[object, dict[int, Any]] = {}
"""The pools by server, by the servers and options of a cache: as many as the settings have caches."""


class _Client(backend.RedisCacheClient):  # type: ignore[misc]  # Django has no types
    def __init__(self, servers: list[str], **options: Any) -> None:
        super().__init__(servers, **options)
        with _lock:
            self._pools = _pools.setdefault((*servers, repr(sorted(options.items()))), {})

    def _get_connection_pool(self, write: bool) -> Any:  # noqa: FBT001 - Django's signature
        return self.pool_of(self._get_connection_pool_index(write))

    def pool_of(self, index: int) -> Any:
        """Returns the pool for one of the servers, by its index in ``LOCATION``."""
        with _lock:
            if index not in self._pools:
                server, options = self._servers[index], self._pool_options
                self._pools[index] = self._pool_class.from_url(server, **options)
            return self._pools[index]


class RedisCache(backend.RedisCache):  # type: ignore[misc]  # Django has no types
    """Django's cache on Redis, whose threads share one pool for each server.

    ::

        CACHES = {"default": {
            "BACKEND": "guardrails.integrations.django.cache.RedisCache",
            "LOCATION": "redis://127.0.0.1:6379",
            "OPTIONS": {"max_connections": 20},
        }}

    Django's own backend makes a pool in each thread, so `guardrails.protect` would cover only one thread.
    Here it covers all: ``protect(caches["default"].clients[0])``.
    """

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._class = _Client

    @property
    def clients(self) -> list[redis.Redis]:
        """The clients, one for each server, in the order of ``LOCATION``. Writes go to the first."""
        cache = self._cache
        return [redis.Redis(connection_pool=cache.pool_of(index)) for index in range(len(self._servers))]
