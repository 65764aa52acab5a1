"""Django's cache on Redis: one pool for all threads of the process, so that one guard covers them."""

from __future__ import annotations

import threading

import pytest
from django.core.cache import CacheHandler

from guardrails import BulkheadFullError, protect
from support import django_lab  # noqa: F401 - configures Django

OURS = "guardrails.integrations.django.cache.RedisCache"
BARE = "django.core.cache.backends.redis.RedisCache"


def handler(valkey, backend, options=None, servers=1):
    """Django's caches, with one on the server."""
    location = [f"redis://127.0.0.1:{valkey.port}/{number}" for number in range(servers)]
    entry = {"BACKEND": backend, "LOCATION": location, "OPTIONS": options or {}}
    return CacheHandler({"default": entry})


def pool_in_a_thread(caches):
    """The pool that another thread's cache writes to."""
    found = []
    thread = threading.Thread(
        target=lambda: found.append(caches["default"]._cache._get_connection_pool(True))
    )
    thread.start()
    thread.join()
    return found[0]


def test_djangos_own_backend_has_a_pool_in_each_thread(valkey):
    """Which is why there is another one here."""
    caches = handler(valkey, BARE)
    assert pool_in_a_thread(caches) is not pool_in_a_thread(caches)


def test_all_threads_share_a_pool(valkey):
    """And entries with other options have another one."""
    caches = handler(valkey, OURS, {"max_connections": 3})
    here = caches["default"].clients[0].connection_pool
    assert pool_in_a_thread(caches) is pool_in_a_thread(caches) is here
    assert pool_in_a_thread(handler(valkey, OURS, {"max_connections": 4})) is not here
    here.disconnect()


def test_a_guard_covers_every_thread(valkey):
    """A slot that one thread has is missing for the others."""
    caches = handler(valkey, OURS, {"max_connections": 1})
    caches["default"].set("key", {"a": 1})
    guard = protect(caches["default"].clients[0], name="cache", max_wait_duration=0)
    held = caches["default"].clients[0].connection_pool.get_connection()
    errors = []

    def ask():
        try:
            caches["default"].get("key")
        except BulkheadFullError as error:
            errors.append(error.guard)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert errors == ["cache"]
    caches["default"].clients[0].connection_pool.release(held)
    assert caches["default"].get("key") == {"a": 1}
    assert guard.snapshot().in_use == 0
    guard.detach()
    caches["default"].clients[0].connection_pool.disconnect()


@pytest.mark.parametrize("servers", [1, 3])
def test_there_is_a_client_for_each_server(valkey, servers):
    """The first is the one that is written to."""
    caches = handler(valkey, OURS, servers=servers)
    clients = caches["default"].clients
    assert len({id(client.connection_pool) for client in clients}) == servers
    caches["default"].set("key", 1)
    assert clients[0].delete(caches["default"].make_key("key")) == 1
    for client in clients:
        client.connection_pool.disconnect()
