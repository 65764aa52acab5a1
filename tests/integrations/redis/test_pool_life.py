"""The life of a Redis client's idle connections, and a primary that has become a replica."""

from __future__ import annotations

import contextlib
import logging
import time

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

from guardrails import BreakerPolicy, CallTimeoutError, ConfigurationError, WarmUpError, protect
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import ValkeyServer
from support.redis_lab import LATE, QUIET, frozen, nimble

pools = pytest.mark.parametrize("blocking", [False, True], ids=["pool", "blocking_pool"])
READ_ONLY = "the server is read-only"


@pytest.fixture
def clients(valkey):
    """Counts the connections of the lab's client on the server."""
    with redis.Redis(port=valkey.port) as aside:
        yield lambda: sum(each["name"] == "lab" for each in aside.client_list())


@pytest.fixture
def start(cache, valkey):
    """Builds the client and its guard; the guard is detached before the loop of the client is closed."""

    def build(*, blocking=False, size=4, port=None, **guard):
        make = cache.module.BlockingConnectionPool if blocking else cache.module.ConnectionPool
        cache.client = cache.module.Redis(
            connection_pool=make(port=port or valkey.port, max_connections=size, client_name="lab")
        )
        cache.guard = protect(cache.client, **({"name": "cache", "breaker": QUIET} | guard))
        return cache.guard

    yield build
    if cache.guard is not None and cache.guard._attachment is not None:
        cache.guard.detach()


def warm_up(cache, timeout=30.0):
    guard = cache.guard
    return cache.finish(lambda: guard.warm_up_async(timeout) if cache.is_async else guard.warm_up(timeout))


def occupy(cache, count):
    """Has so many connections out at once, and back."""
    if cache.is_async:

        async def main():
            pool = cache.pool
            connections = [await pool.get_connection() for _ in range(count)]
            for connection in connections:
                await pool.release(connection)

        cache.finish(main)
        return
    connections = [cache.pool.get_connection() for _ in range(count)]
    for connection in connections:
        cache.pool.release(connection)


@pools
def test_warm_up_opens_minimum_idle_connections(cache, start, clients, blocking):
    start(blocking=blocking, minimum_idle=2)
    assert clients() == 0
    assert warm_up(cache) == 2
    assert (clients(), cache.out(), cache.guard.snapshot().in_use) == (2, 0, 0)
    assert warm_up(cache) == 0
    assert cache.guard.snapshot().calls == 0, "an opening is neutral"
    cache.do(lambda client: client.ping())
    assert clients() == 2


@pools
def test_warm_up_of_a_frozen_server_ends_at_its_timeout(cache, start, valkey, blocking):
    start(blocking=blocking, minimum_idle=2, timeout=20)
    with frozen(valkey):
        began = time.monotonic()
        with pytest.raises(WarmUpError, match="'cache' has 0 of 2 idle connections"):
            warm_up(cache, 0.3)
        assert time.monotonic() - began < 0.3 + LATE
    assert (cache.out(), cache.guard.snapshot().in_use) == (0, 0)


@pools
def test_idle_connections_are_closed_and_the_minimum_is_kept(cache, start, clients, blocking):
    start(blocking=blocking, minimum_idle=1, idle_timeout=0.2)
    occupy(cache, 4)
    cache.until(lambda: clients() == 1, "three of four are closed")
    assert cache.out() == 0
    occupy(cache, 4)
    assert clients() == 4, "the pool has room for as many as before"


@pools
def test_old_connections_are_closed_idle_or_on_their_return(cache, start, clients, blocking):
    start(blocking=blocking, max_lifetime=0.2)
    occupy(cache, 2)
    cache.until(lambda: clients() == 0, "idle ones are closed")
    pool = cache.pool
    connection = cache.finish(pool.get_connection)
    cache.pause(0.3)
    assert clients() == 1, "it is not touched while it is out"
    cache.finish(lambda: pool.release(connection))
    cache.until(lambda: clients() == 0, "it is closed on its return")


@pools
def test_keepalive_is_neutral_and_replaces_dead_connections(cache, start, clients, valkey, blocking):
    guard = start(blocking=blocking, keepalive=0.1, minimum_idle=1)
    warm_up(cache)
    before = guard.snapshot()
    cache.until(lambda: guard.snapshot().succeeded >= before.succeeded + 3, "three pings")
    assert (guard.snapshot().calls, guard.snapshot().failed) == (0, 0)
    with redis.Redis(port=valkey.port) as aside:
        for each in aside.client_list():
            if each["name"] == "lab":
                aside.client_kill_filter(_id=each["id"])
    cache.until(lambda: guard.snapshot().failed >= 1, "the ping fails")
    cache.until(lambda: clients() == 1, "another one is opened")
    assert cache.do(lambda client: client.ping())


def test_keepalive_on_a_frozen_server_is_bounded(cache, start, valkey):
    guard = start(keepalive=0.1, timeout=0.3)
    occupy(cache, 1)
    with frozen(valkey):
        cache.until(lambda: guard.snapshot().failed >= 1, "the ping is stopped")
        cache.until(lambda: guard.snapshot().in_use == 0 == cache.out(), "its slot is free")

    def answered():
        with contextlib.suppress(CallTimeoutError):  # a busy machine may take longer to connect
            return cache.do(lambda client: client.ping())

    cache.until(answered, "a connection is open")


@pools
def test_resize_closes_idle_connections_and_those_that_return(cache, start, clients, blocking):
    guard = start(blocking=blocking)
    occupy(cache, 4)
    guard.resize(2)
    cache.until(lambda: clients() == 2, "two of four are closed")
    guard.resize(4)
    pool = cache.pool

    async def take():
        return [await pool.get_connection() for _ in range(4)]

    async def give(connections):
        for connection in connections:
            await pool.release(connection)

    connections = cache.finish(take if cache.is_async else lambda: [pool.get_connection() for _ in range(4)])
    guard.resize(1)
    cache.pause(0.1)
    assert clients() == 4, "they are not touched while they are out"
    cache.finish(
        lambda: give(connections) if cache.is_async else [pool.release(each) for each in connections]
    )
    cache.until(lambda: clients() == 1, "three were closed on their return")
    assert cache.do(lambda client: client.ping())
    assert clients() == 1, "the open one is used"


def test_single_connection_client_is_refused(cache, valkey):
    client = cache.module.Redis(port=valkey.port, single_connection_client=True)
    cache.client = client
    if cache.is_async:
        cache.finish(client.initialize)
    with pytest.raises(ConfigurationError, match="a client with a single connection keeps no idle"):
        protect(client, max_lifetime=3)


def test_detach_ends_the_upkeep(cache, start, clients):
    guard = start(keepalive=0.05, max_lifetime=0.3, minimum_idle=1)
    warm_up(cache)
    guard.detach()
    cache.pause(0.1)
    before = guard.snapshot().succeeded
    cache.pause(0.5)
    assert (clients(), guard.snapshot().succeeded) == (1, before)


# --- a primary that has become a replica ---------------------------------------------------------


@pytest.fixture
def replica(valkey):
    """The server is a replica for a while."""
    with redis.Redis(port=valkey.port) as aside:
        aside.replicaof("127.0.0.1", 1)
        yield
        aside.replicaof("NO", "ONE")


WRITES = {
    "command": lambda client: client.set("moved", 1),
    "pipeline": lambda client: client.pipeline(transaction=False).set("moved", 1).execute(),
    "tolerant pipeline": lambda client: (
        client.pipeline(transaction=False).set("moved", 1).get("moved").execute(raise_on_error=False)
    ),
    "transaction": lambda client: client.pipeline().set("moved", 1).execute(),
    "script": lambda client: client.eval("return redis.call('set', 'moved', 1)", 0),
}


@pytest.mark.parametrize("write", WRITES)
def test_connection_to_a_replica_is_closed_and_the_pool_renewed(
    cache, start, clients, replica, write, caplog
):
    guard = start()
    occupy(cache, 4)
    assert clients() == 4
    with contextlib.suppress(redis.RedisError):  # the tolerant pipeline returns it
        cache.do(WRITES[write])
    assert guard.snapshot().failed == 1
    assert guard.snapshot().failure_cause == READ_ONLY
    assert clients() <= 3, "at once the connection that saw it"
    seen = set()

    def all_gone():
        seen.add(clients())
        return clients() == 0

    cache.until(all_gone, "the others follow")
    assert len(seen) >= 2, "one after the other"
    assert cache.do(lambda client: client.get("moved")) in {None, b"1"}


def test_reads_of_a_replica_go_on(cache, start, replica):
    guard = start()
    for _ in range(20):
        cache.do(lambda client: client.get("nothing"))
    assert (guard.snapshot().failed, guard.state) == (0, "closed")


def test_client_of_a_sentinels_replicas_takes_a_refused_write_as_an_answer(cache, valkey, replica):
    """``slave_for`` asked for a replica: a write to it is the caller's mistake."""
    module = redis.asyncio.sentinel if cache.is_async else redis.sentinel
    sentinel = module.Sentinel([])
    pool = module.SentinelConnectionPool("shop", sentinel, is_master=False, max_connections=2)

    def addresses(*_):
        yield ("127.0.0.1", valkey.port)

    async def addresses_async(*_):
        yield ("127.0.0.1", valkey.port)

    pool.rotate_slaves = addresses_async if cache.is_async else addresses
    for holder in (pool, getattr(pool, "proxy", pool)):
        holder.rotate_slaves = pool.rotate_slaves
    cache.client = cache.module.Redis(connection_pool=pool)
    guard = cache.guard = protect(cache.client, name="cache", breaker=QUIET)
    with pytest.raises(redis.ReadOnlyError):
        cache.do(lambda client: client.set("key", 1))
    assert (guard.snapshot().failed, guard.snapshot().failure_cause) == (0, None)


@pools
def test_writes_work_again_within_five_seconds_of_the_move(cache, start, blocking, caplog):
    """The primary becomes a replica, later the name leads to the next one; nothing is restarted."""
    with ValkeyServer.start() as first, ValkeyServer.start() as second, FaultProxy(first.port) as proxy:
        guard = start(blocking=blocking, port=proxy.port, breaker=nimble(wait_duration_in_open_state=1.0))
        occupy(cache, 4)

        def write():
            try:
                return cache.do(lambda client: client.set("key", 1))
            except Exception:
                return False

        assert write()
        with redis.Redis(port=first.port) as aside:
            aside.replicaof("127.0.0.1", 1)
        with caplog.at_level(logging.WARNING, "guardrails"):
            while guard.state == "closed":
                assert not write() or guard.state == "closed"
        assert READ_ONLY in caplog.text
        proxy._relay._upstream = ("127.0.0.1", second.port)
        cache.until(write, "a write to the next primary")
        cache.until(lambda: write() and guard.state == "closed", "the circuit closes")
        assert guard.snapshot().failure_cause is None
        assert all(write() for _ in range(20)), "no connection to the old primary is left"
        guard.detach()
        cache.finish(cache.pool.disconnect)


def test_rotated_password_is_named_and_the_next_one_works(cache, start):
    """Open connections stay, new ones fail, the circuit says why; the credential provider has the new one."""
    with ValkeyServer.start("--requirepass", "old") as server:
        known = {"password": "old"}

        class Credentials(redis.CredentialProvider):
            def get_credentials(self):
                return ("default", known["password"])

        pool = cache.module.ConnectionPool(
            port=server.port, max_connections=3, credential_provider=Credentials()
        )
        cache.client = cache.module.Redis(connection_pool=pool)
        policy = BreakerPolicy(minimum_number_of_calls=3, wait_duration_in_open_state=0.2)
        guard = cache.guard = protect(cache.client, name="cache", breaker=policy)
        assert cache.do(lambda client: client.ping())
        with redis.Redis(port=server.port, password="old") as aside:
            aside.config_set("requirepass", "new")
            assert cache.do(lambda client: client.ping()), "the open connection stays"
            for each in aside.client_list():
                if each["id"] != str(aside.client_id()):
                    aside.client_kill_filter(_id=each["id"])

        def ping():
            try:
                return cache.do(lambda client: client.ping())
            except Exception:
                return False

        end = time.monotonic() + 5
        while guard.state == "closed" and time.monotonic() < end:
            ping()
        assert guard.snapshot().failure_cause == "the server refuses the login"
        known["password"] = "new"
        cache.until(lambda: ping() and guard.state == "closed", "the new password works")
        guard.detach()
        cache.finish(cache.pool.disconnect)
