"""Pools of Redis clients under a fleet's budget, on a real Valkey that counts their connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest
import redis
import redis.asyncio

from guardrails import BulkheadFullError, ConfigurationError, protect
from guardrails.fleet import Fleet
from support.polling import wait_until

BUDGET = 8
POOLS = {"plain": redis.ConnectionPool, "blocking": redis.BlockingConnectionPool}
ASYNC_POOLS = {
    "plain": redis.asyncio.ConnectionPool,
    "blocking": redis.asyncio.BlockingConnectionPool,
}


class Counter:
    """Counts the connections of both workers on the server, in a thread, every 5 ms."""

    def __init__(self, valkey):
        self.most, self._over = 0, threading.Event()
        self._client = redis.Redis(port=valkey.port)
        self._thread = threading.Thread(target=self._run)

    def now(self):
        return sum(each["name"].startswith("budget-") for each in self._client.client_list())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(30)
        self._client.close()

    def _run(self):
        while not self._over.wait(0.005):
            self.most = max(self.most, self.now())


def settings(valkey, name):
    return {"port": valkey.port, "client_name": f"budget-{name}", "max_connections": BUDGET}


def in_use(guard):
    return guard.snapshot().pool.in_use


@pytest.mark.slow
@pytest.mark.parametrize("kind", POOLS)
def test_two_clients_share_one_budget_of_connections(valkey, tmp_path, kind):
    """First one of them is busy, then the other; the server never has more than the budget."""
    with contextlib.ExitStack() as stack, Counter(valkey) as counter:
        workers = []
        for name in ("a", "b"):
            client = redis.Redis(connection_pool=POOLS[kind](**settings(valkey, name)))
            fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
            guard = protect(client, fleet=fleet.budget("cache", connections=BUDGET), max_wait_duration=0.2)
            stack.callback(client.connection_pool.disconnect)
            stack.callback(guard.detach)
            stack.callback(fleet.close)
            workers.append((client, guard))
        for client, guard in workers:
            stopped = threading.Event()

            def work(client=client, stopped=stopped):
                while not stopped.is_set():
                    try:
                        client.blpop("nothing", timeout=0.05)
                    except BulkheadFullError:
                        time.sleep(0.01)

            callers = [threading.Thread(target=work) for _ in range(BUDGET)]
            for caller in callers:
                caller.start()
            try:
                wait_until(lambda guard=guard: in_use(guard) >= BUDGET - 2)
            finally:
                stopped.set()
                for caller in callers:
                    caller.join(20)
        lease = workers[0][1].snapshot().pool.lease
    assert BUDGET - 2 <= counter.most <= BUDGET
    assert (lease.budget, lease.connections) == ("cache", BUDGET)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ASYNC_POOLS)
def test_two_asyncio_clients_share_one_budget_of_connections(valkey, tmp_path, kind):
    async def main():
        workers = []
        for name in ("a", "b"):
            client = redis.asyncio.Redis(connection_pool=ASYNC_POOLS[kind](**settings(valkey, name)))
            fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
            guard = protect(client, fleet=fleet.budget("cache", connections=BUDGET), max_wait_duration=0.2)
            workers.append((client, guard, fleet))

        async def work(client):
            while True:
                try:
                    await client.blpop("nothing", timeout=0.05)
                except BulkheadFullError:
                    await asyncio.sleep(0.01)

        for client, guard, _ in workers:
            tasks = [asyncio.create_task(work(client)) for _ in range(BUDGET)]
            until_then = time.monotonic() + 20
            while in_use(guard) < BUDGET - 2:
                assert time.monotonic() < until_then, "it does not grow"
                await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        first, second = (guard.snapshot().pool.open for _, guard, _ in workers)
        assert first + second <= BUDGET
        for client, guard, fleet in workers:
            await asyncio.to_thread(fleet.close)
            guard.detach()
            await client.aclose()
            await client.connection_pool.disconnect()

    with Counter(valkey) as counter:
        asyncio.run(asyncio.wait_for(main(), 60))
    assert BUDGET - 2 <= counter.most <= BUDGET


def test_minimum_idle_connections_of_a_client_are_opened_under_the_lease(valkey, tmp_path):
    client = redis.Redis(**settings(valkey, "idle"))
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    guard = protect(client, fleet=fleet.budget("cache", connections=BUDGET, minimum=2), minimum_idle=5)
    assert guard.warm_up() == 2, "the floor, as the store learns at first"
    assert guard.snapshot().pool.lease.in_contact
    guard.detach()
    fleet.close()
    client.close()


def test_a_lock_is_released_although_the_lease_has_no_connection(valkey, tmp_path):
    """Two connections beside the pool are for releases, with a budget, too."""
    client = redis.Redis(**settings(valkey, "lock"))
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    guard = protect(client, fleet=fleet.budget("cache", connections=BUDGET))
    lock = client.lock("fleet-lock", timeout=30)
    assert lock.acquire()
    other = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    guard._attachment.upkeep.lease._apply(0)
    with pytest.raises(BulkheadFullError):
        client.get("x")
    lock.release()
    other.close()
    guard.detach()
    fleet.close()
    client.close()


def test_what_has_no_pool_to_share_is_refused(valkey, tmp_path):
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    single = redis.Redis(port=valkey.port, single_connection_client=True)
    with pytest.raises(ConfigurationError, match="a client with a single connection has no pool"):
        protect(single, fleet=fleet.budget("cache", connections=BUDGET))
    single.close()
    client = redis.Redis(**settings(valkey, "bad"))
    with pytest.raises(ConfigurationError, match="fleet must be a budget or verdict"):
        protect(client, fleet="cache")
    client.close()
    fleet.close()
