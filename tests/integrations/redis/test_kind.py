"""A guarded client shows, and its parts are, what redis-py made."""

from __future__ import annotations

import fakeredis
import pytest
import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff, NoBackoff

from guardrails import CallTimeoutError, protect
from support.redis_lab import LATE, QUIET, Stopwatch, frozen


def connection_of(cache):
    """An open connection of the pool, which is given back."""
    connection = cache.finish(cache.pool.get_connection)
    cache.finish(lambda: cache.pool.release(connection))
    return connection


@pytest.mark.parametrize("blocking_pool", [False, True], ids=["pool", "blocking pool"])
def test_names_and_representations_stay(cache, blocking_pool):
    """No class of ours is in what redis-py shows and logs."""
    cache.make(max_connections=3, blocking_pool=blocking_pool)
    shown = repr(cache.client), repr(cache.pool), repr(connection_of(cache))
    kinds = type(cache.pool), type(connection_of(cache))
    cache.guard = protect(cache.client, name="cache", breaker=QUIET)
    assert (repr(cache.client), repr(cache.pool), repr(connection_of(cache))) == shown
    cache.finish(cache.pool.disconnect)
    for thing, kind in zip((cache.pool, connection_of(cache)), kinds, strict=True):
        assert isinstance(thing, kind)
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(type(thing), name) == getattr(kind, name)


def test_connection_class_stays(cache):
    """It compares, and is replaced, as it was; new connections are guarded all the same."""
    guard = cache.protect(max_connections=3)
    assert cache.pool.connection_class is cache.module.Connection
    assert guard.snapshot().succeeded == 0
    cache.do(lambda client: client.ping())
    assert guard.snapshot().succeeded == 1

    class Other(cache.module.Connection):
        pass

    cache.finish(cache.pool.disconnect)
    cache.pool.reset()
    cache.pool.connection_class = Other
    cache.do(lambda client: client.ping())
    assert guard.snapshot().succeeded == 2
    assert isinstance(connection_of(cache), Other)


def test_retry_policy_makes_the_round_trip(cache):
    """``set_retry`` reaches connections made before and later, and what redis-py reads of it is there."""
    policy = redis.asyncio.retry.Retry if cache.is_async else redis.retry.Retry
    cache.protect(retry=policy(NoBackoff(), 2), max_connections=3)
    before = connection_of(cache)
    assert before.retry._retries == cache.client.get_retry()._retries == 2
    assert isinstance(before.retry._backoff, NoBackoff)
    cache.client.set_retry(policy(ExponentialBackoff(), 3, supported_errors=(redis.BusyLoadingError,)))
    cache.finish(cache.pool.disconnect)
    held = cache.finish(cache.pool.get_connection)
    other = cache.finish(cache.pool.get_connection)
    assert before in {held, other}
    for connection in (held, other):
        assert connection.retry._retries == connection.retry.get_retries() == 3
        assert isinstance(connection.retry._backoff, ExponentialBackoff)
        assert connection.retry._supported_errors == (redis.BusyLoadingError,)
        cache.finish(lambda connection=connection: cache.pool.release(connection))
    held.retry.update_retries(5)
    assert held.retry._retries == held.retry.get_retries() == 5


def test_a_pool_that_makes_its_connections_otherwise_is_guarded(cache):
    """A user's pool may override ``make_connection``."""
    made = []

    class Pool(cache.module.ConnectionPool):
        def make_connection(self):
            made.append(super().make_connection())
            return made[-1]

    cache.make(connection_pool=Pool(port=cache.port, max_connections=2))
    cache.guard = protect(cache.client, name="cache")
    cache.do(lambda client: client.ping())
    assert len(made) == 1
    assert cache.guard.snapshot().succeeded == 1


def test_fake_connections_keep_their_kind():
    """Those of fakeredis, too."""
    client = fakeredis.FakeRedis()
    kind = client.connection_pool.connection_class
    protect(client)
    client.ping()
    assert client.connection_pool.connection_class is kind
    assert {type(each).__name__ for each in client.connection_pool._available_connections} == {kind.__name__}


def test_a_second_guard_bounds_the_connections_of_the_first(cache, valkey):
    """After ``detach`` and ``protect`` a connection that stayed open has the new guard's deadlines."""
    cache.protect(max_connections=1)
    number = cache.do(lambda client: client.client_id())
    cache.guard.detach()
    cache.guard = protect(cache.client, name="cache", timeout=0.3, breaker=QUIET)
    assert cache.do(lambda client: client.client_id()) == number
    with frozen(valkey), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        cache.do(lambda client: client.get("key"))
    assert watch.seconds < 0.3 + LATE
