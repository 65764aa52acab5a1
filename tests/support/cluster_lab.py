"""Load on a cluster client, synchronous or not, whose values name their keys."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import redis.asyncio.cluster
import redis.cluster
from redis.crc import key_slot

from guardrails import protect

KEYS = [f"key:{number}" for number in range(60)]

WORKERS = 6


def value_of(key):
    return f"value of {key}".encode()


def keys_of(node):
    """The keys whose slots a node has now."""
    mine = next(line for line in node.ask("CLUSTER", "NODES").splitlines() if "myself" in line).split()[8:]
    spans = [tuple(map(int, (span.partition("-")[0], span.rpartition("-")[2]))) for span in mine]
    return [key for key in KEYS if any(first <= key_slot(key.encode()) <= last for first, last in spans)]


@dataclass
class Load:
    """What the calls of a load came to.

    Attributes:
        calls: Start, seconds, key and outcome of each: "ok", "foreign" or the name of the error's class.
        guard: The guard of the client.
        client: The client.
        ready: Set once the load runs.
    """

    calls: list = field(default_factory=list)
    guard: object = None
    client: object = None
    ready: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def note(self, start, key, outcome):
        self.calls.append((start, time.monotonic() - start, key, outcome))

    def between(self, begin, end, keys=None):
        """The calls that began in a span of time."""
        return [
            call for call in list(self.calls) if begin <= call[0] < end and (keys is None or call[2] in keys)
        ]

    def outcomes(self, begin=0.0, end=1e18, keys=None):
        return Counter(call[3] for call in self.between(begin, end, keys))


def percentile(calls, share):
    seconds = sorted(call[1] for call in calls)
    return seconds[min(len(seconds) - 1, int(len(seconds) * share))]


def _outcome(key, value):
    return "ok" if value == value_of(key) else "foreign"


class SyncCluster:
    """Threads."""

    is_async = False

    def __init__(self, cluster, **options):
        self.cluster = cluster
        self.options = {"host": "127.0.0.1", "port": cluster.nodes[0].port, "socket_timeout": 20} | options

    def make(self):
        return redis.cluster.RedisCluster(**self.options)

    def finish(self, made):
        return made

    @contextlib.contextmanager
    def client(self, **guard):
        """A client with a guard, which is closed at the end."""
        client = self.make()
        protect(client, **guard)
        try:
            yield client
        finally:
            client.close()

    def do(self, work, *, opened=True, **guard):
        """Runs ``work(client, guard)`` to its end on a new client; if ``opened``, it knows the topology."""
        client = self.make()
        try:
            return work(client, protect(client, **guard))
        finally:
            client.close()

    @contextlib.contextmanager
    def load(self, read=None, *, guarded=True, **guard):
        """Reads all keys again and again, in the background; also with a client that has no guard."""
        guard = guard if guarded else None
        load = Load()
        thread = threading.Thread(target=self._run, args=(load, read or (lambda c, k: c.get(k)), guard))
        thread.start()
        try:
            assert load.ready.wait(30), load.failure
            if load.failure:
                raise load.failure
            yield load
        finally:
            load.over.set()
            thread.join(60)
        if load.failure:
            raise load.failure

    def _run(self, load, read, guard):
        try:
            load.client = self.make()
            for key in KEYS:  # opens connections, so before a timeout of tenths of a second holds
                load.client.set(key, value_of(key))
            load.guard = None if guard is None else protect(load.client, **guard)
            workers = [
                threading.Thread(target=self._work, args=(load, read, number)) for number in range(WORKERS)
            ]
            for worker in workers:
                worker.start()
            load.ready.set()
            for worker in workers:
                worker.join()
            if load.guard is not None:
                load.guard.detach()
            load.client.close()
        except BaseException as error:
            load.failure = error
            load.ready.set()

    def _work(self, load, read, number):
        keys = KEYS[number:] + KEYS[:number]
        while not load.over.is_set():
            for key in keys:
                start = time.monotonic()
                try:
                    outcome = _outcome(key, read(load.client, key))
                except Exception as error:
                    outcome = type(error).__name__
                load.note(start, key, outcome)
                time.sleep(0.004)


class AsyncCluster(SyncCluster):
    """Tasks of one loop."""

    is_async = True

    def make(self):
        return redis.asyncio.cluster.RedisCluster(**self.options)

    def do(self, work, *, opened=True, **guard):
        async def main():
            client = self.make()
            try:
                if opened:  # before a timeout of tenths of a second holds
                    await client.initialize()
                return await work(client, protect(client, **guard))
            finally:
                await client.aclose()

        return asyncio.run(main())

    def _run(self, load, read, guard):
        async def main():
            load.client = self.make()
            for key in KEYS:
                await load.client.set(key, value_of(key))
            load.guard = None if guard is None else protect(load.client, **guard)
            load.ready.set()
            await asyncio.gather(*(self._work_in_task(load, read, number) for number in range(WORKERS)))
            if load.guard is not None:
                load.guard.detach()
            await load.client.aclose()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.sleep(0)
            assert not {task for task in left if not task.done()}, left

        try:
            asyncio.run(main())
        except BaseException as error:
            load.failure = error
            load.ready.set()

    async def _work_in_task(self, load, read, number):
        keys = KEYS[number:] + KEYS[:number]
        while not load.over.is_set():
            for key in keys:
                start = time.monotonic()
                try:
                    outcome = _outcome(key, await read(load.client, key))
                except Exception as error:
                    outcome = type(error).__name__
                load.note(start, key, outcome)
                await asyncio.sleep(0.004)


FLAVOURS = [SyncCluster, AsyncCluster]
