"""Sentinel clients: finding the server is part of the deadline, and one frozen sentinel is not the end."""

from __future__ import annotations

import asyncio
import inspect

import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel

from guardrails import CallTimeoutError, protect
from guardrails.testing.servers import ValkeyServer
from support.redis_lab import LATE, QUIET, Stopwatch, frozen


@pytest.fixture(scope="module")
def sentinels(valkey, tmp_path_factory):
    """Two sentinels that watch the server of the run."""
    with ValkeyServer.start() as first, ValkeyServer.start() as second:
        for server in (first, second):
            impersonate(server, valkey.port)
        yield first, second


def impersonate(server, master_port):
    """Makes a plain Valkey answer as a sentinel would: the client's reply is scripted, the wire is real."""
    with redis.Redis(port=server.port) as client:
        client.set("master_port", master_port)


@pytest.fixture
def answering(monkeypatch):
    """A sentinel's answer about its masters, read over its real connection."""

    def sync_masters(self, *_, **__):
        return masters(self.get("master_port"))

    async def async_masters(self, *_, **__):
        return masters(await self.get("master_port"))

    monkeypatch.setattr(redis.Redis, "sentinel_masters", sync_masters)
    monkeypatch.setattr(redis.asyncio.Redis, "sentinel_masters", async_masters)


def masters(port):
    return {
        "shop": {
            "ip": "127.0.0.1",
            "port": int(port),
            "is_master": True,
            "is_sdown": False,
            "is_odown": False,
            "num-other-sentinels": 1,
        }
    }


@pytest.fixture(params=[redis.sentinel.Sentinel, redis.asyncio.sentinel.Sentinel], ids=["sync", "async"])
def shop(request, sentinels, answering):
    """A function that asks the guarded client of a sentinel for something, and its guard."""
    manager = request.param([("127.0.0.1", server.port) for server in sentinels], socket_timeout=20)
    client = manager.master_for("shop", socket_timeout=20)
    plain = [type(client), *(sentinel.connection_pool.connection_class for sentinel in manager.sentinels)]
    guard = protect(client, name="shop", timeout=1.0, breaker=QUIET)
    with asyncio.Runner() as runner:

        def ask(work):
            async def main():
                made = work(client)
                return await made if inspect.isawaitable(made) else made

            return runner.run(main())

        yield ask, guard
        for one in (client, *manager.sentinels):
            ask(lambda _, one=one: one.aclose() if hasattr(one, "aclose") else one.close())
    guard.detach()
    assert plain == [
        type(client),
        *(sentinel.connection_pool.connection_class for sentinel in manager.sentinels),
    ]


def test_a_guarded_sentinel_client_finds_the_server(shop):
    """A guarded Sentinel client works as before."""
    ask, guard = shop
    assert ask(lambda client: client.echo("mine")) == b"mine"
    assert guard.snapshot().succeeded == 1


def test_one_frozen_sentinel_is_not_the_end(shop, sentinels):
    """The first sentinel gets a share of the time; the second answers within the rest."""
    ask, _ = shop
    with frozen(sentinels[0]), Stopwatch() as watch:
        assert ask(lambda client: client.echo("mine")) == b"mine"
    assert watch.seconds < 1.0 + LATE


def test_frozen_sentinels_do_not_hold_the_caller(shop, sentinels):
    """With all of them frozen a call is back by its deadline, and finds the server again afterwards."""
    ask, guard = shop
    with (
        frozen(sentinels[0]),
        frozen(sentinels[1]),
        Stopwatch() as watch,
        pytest.raises((CallTimeoutError, redis.ConnectionError)),
    ):
        ask(lambda client: client.echo("mine"))
    assert watch.seconds < 1.0 + LATE
    assert guard.snapshot().failed == 1
    assert ask(lambda client: client.echo("mine")) == b"mine"


@pytest.mark.usefixtures("patient_releases")
def test_a_lock_is_released_while_the_circuit_is_open(shop):
    """The reserve finds the server as the pool does."""
    ask, guard = shop

    def acquire(client):
        lock = client.lock("given by a sentinel", timeout=60)
        locks.append(lock)
        return lock.acquire()

    locks = []
    assert ask(acquire)
    guard.force_open()
    ask(lambda _: locks[0].release())
    guard.reset()
    assert ask(lambda client: client.get("given by a sentinel")) is None


@pytest.mark.parametrize("first", ["the sentinels", "the client"])
@pytest.mark.parametrize("kind", [redis.sentinel.Sentinel, redis.asyncio.sentinel.Sentinel])
def test_sentinels_may_be_guarded_themselves(sentinels, answering, kind, first):
    """In either order; each guard sees what is its own."""
    manager = kind([("127.0.0.1", server.port) for server in sentinels], socket_timeout=20)
    client = manager.master_for("shop", socket_timeout=20)
    targets = [*manager.sentinels, client]
    for number, target in enumerate(targets if first == "the sentinels" else reversed(targets)):
        protect(target, name=f"guard {number}", timeout=1.0, breaker=QUIET)

    async def main():
        for one in (client, *manager.sentinels):
            made = one.echo("mine")
            assert (await made if inspect.isawaitable(made) else made) == b"mine"
        for one in (client, *manager.sentinels):
            made = one.aclose() if hasattr(one, "aclose") else one.close()
            assert (await made if inspect.isawaitable(made) else made) is None

    asyncio.run(main())


def test_a_sentinel_of_the_users_own_making_is_left_alone(valkey, answering):
    """What answers for a sentinel in a test need be no Redis client."""

    class Fake:
        def sentinel_masters(self):
            return masters(valkey.port)

    manager = redis.sentinel.Sentinel([])
    manager.sentinels = [Fake()]
    client = manager.master_for("shop", socket_timeout=20)
    guard = protect(client, name="shop")
    assert client.echo("mine") == b"mine"
    guard.detach()
    client.close()
