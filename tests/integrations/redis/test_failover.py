"""A real fail-over: Valkey's own sentinel, a killed master, and guarded clients that find the new one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import time

import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel

from guardrails import CallTimeoutError, CircuitOpenError, protect
from guardrails.testing.servers import ValkeyServer
from support.polling import poll
from support.redis_lab import frozen, nimble
from support.sentinel import SentinelServer

GIVEN, LATE = 1.5, 3.0
"""Seconds for a call, and by which it may be late on a busy machine; unguarded it would wait for 20."""

AWAY = (CallTimeoutError, CircuitOpenError, redis.ConnectionError, redis.ReadOnlyError, redis.TimeoutError)
"""What a caller may see between the death of one master and the promotion of the next."""


@pytest.fixture
def house():
    """A master with a replica, and two sentinels: a frozen server that is listed as one, and a real one."""
    prompt = ("--repl-diskless-sync-delay", "0")
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(ValkeyServer.start(*prompt))
        stack.enter_context(ValkeyServer.start("--replicaof", f"127.0.0.1 {master.port}", *prompt))
        mute = stack.enter_context(ValkeyServer.start())
        sentinel = stack.enter_context(
            SentinelServer.start(
                f"sentinel monitor shop 127.0.0.1 {master.port} 1",
                "sentinel down-after-milliseconds shop 1000",
                "sentinel failover-timeout shop 5000",
            )
        )
        with redis.Redis(port=sentinel.port) as asking:

            def is_watched():
                replicas = asking.sentinel_slaves("shop")
                return (
                    replicas
                    and replicas[0]["master-link-status"] == "ok"
                    and not replicas[0]["is_disconnected"]
                )

            poll(is_watched, "the sentinel knows the replica", 40)
        stack.enter_context(frozen(mute))  # each look for the master begins with one that says nothing
        yield master, [mute, sentinel]


@pytest.fixture(params=[redis.sentinel.Sentinel, redis.asyncio.sentinel.Sentinel], ids=["sync", "async"])
def shop(request, house):
    """Asks the guarded client of the sentinels for something; each call must be over by its deadline."""
    _, sentinels = house
    manager = request.param([("127.0.0.1", server.port) for server in sentinels], socket_timeout=20)
    client = manager.master_for("shop", socket_timeout=20)
    guard = protect(client, name="shop", timeout=GIVEN, breaker=nimble())
    with asyncio.Runner() as runner:

        def run(work):
            async def main():
                made = work(client)
                return await made if inspect.isawaitable(made) else made

            return runner.run(main(), context=contextvars.copy_context())

        def ask(work):
            started = time.monotonic()
            try:
                return run(work)
            finally:
                assert time.monotonic() - started < GIVEN + LATE

        yield ask, guard
        for one in (client, *manager.sentinels):
            run(lambda _, one=one: one.aclose() if hasattr(one, "aclose") else one.close())


def is_served(ask, value):
    """Whether a write goes through now."""
    with contextlib.suppress(*AWAY):
        return ask(lambda client: client.set("key", value))


@pytest.mark.sampled(1)
def test_killed_master_is_replaced(shop, house):
    """kill -9: calls end in time throughout, and go to the new master as soon as there is one."""
    ask, guard = shop
    master, (_, sentinel) = house
    poll(lambda: is_served(ask, "before"), "the first master serves", 20)
    assert ask(lambda client: client.wait(1, 4000)) == 1  # a command may wait longer than its deadline
    master.kill()
    poll(lambda: is_served(ask, "after"), "the new master serves", 60)
    with redis.Redis(port=sentinel.port) as asking:
        assert asking.sentinel_get_master_addr_by_name("shop")[1] != master.port
    assert ask(lambda client: client.get("key")) == b"after"

    def is_closed():
        with contextlib.suppress(*AWAY):
            ask(lambda client: client.get("key"))
        return guard.state == "closed"

    poll(is_closed, "the circuit has closed by itself", 20)
    assert guard.snapshot().failed >= 1
    assert guard.snapshot().in_use == 0


@pytest.mark.sampled(1)
def test_all_sentinels_frozen(shop, house):
    """With the master dead and no sentinel to ask, callers are still sent back in time, and later refused."""
    ask, guard = shop
    master, (_, sentinel) = house
    poll(lambda: is_served(ask, "before"), "the first master serves", 20)
    with frozen(sentinel):
        master.kill()
        end = time.monotonic() + 30
        while guard.state != "open":
            assert time.monotonic() < end, "the circuit has not opened"
            with pytest.raises(AWAY):
                ask(lambda client: client.get("key"))
    assert guard.snapshot().in_use == 0
