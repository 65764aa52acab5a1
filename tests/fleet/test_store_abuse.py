"""A fleet under load while its Valkey is stopped, killed, emptied and filled with hostile values.

The first test takes most of a minute: the store stands still for twenty seconds in it.
"""

from __future__ import annotations

import os
import pickle
import random
import threading
import time

import pytest
import redis

from guardrails import BulkheadFullError, Guard
from guardrails.fleet import Fleet
from guardrails.testing.servers import ValkeyServer
from support.lateness import ROOM
from support.polling import wait_until

BUDGET, WORKERS, GREEDY = 24, 6, 3
CALL = 0.03
"""Seconds that a call takes."""

PERCENTILE = 0.99

SECONDS = float(os.environ.get("GUARDRAILS_FLEET_SECONDS", "8"))
"""Seconds for which calls are timed while a store stands still."""


class Service:
    """Six workers: three with one caller each, three with more callers than the budget has slots.

    Attributes:
        errors: What a caller of the first three, or any caller but for a full queue, has met.
        most: The largest number of calls that ran at one moment in all workers.
    """

    def __init__(self, url):
        self.fleets = [Fleet(url, name="shop", worker_id=f"w{n}") for n in range(WORKERS)]
        self.guards = [
            Guard(
                f"db{n}", max_concurrent_calls=20, max_wait_duration=1.0, max_waiting=50,
                fleet=fleet.budget("db", connections=BUDGET),
            )
            for n, fleet in enumerate(self.fleets)
        ]  # fmt: skip
        self.errors, self.waits, self.served = [], [], 0
        self.running = self.most = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(guard, n < GREEDY), daemon=True)
            for n, guard in enumerate(self.guards)
            for _ in range(14 if n < GREEDY else 1)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self):
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(CALL)
        with self._lock:
            self.running -= 1

    def _call(self, guard, is_greedy):
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                guard.run(self._work)
            except BulkheadFullError as error:
                if not is_greedy:
                    self.errors.append(error)
                time.sleep(CALL / 3)  # one that came back at once would take the interpreter from the others
                continue
            except Exception as error:
                self.errors.append(error)
            self.served += 1
            if not is_greedy:
                self.waits.append(time.monotonic() - began)
            time.sleep(CALL / 3)

    def limits(self):
        return [guard.snapshot().max_concurrent_calls for guard in self.guards]

    def is_whole(self):
        """Whether the budget is given out, and everybody has its floor."""
        limits = self.limits()
        return sum(limits) >= BUDGET - 3 and min(limits) >= 1 and max(limits) > BUDGET // WORKERS

    def slowest(self, seconds):
        """The 99th percentile of a modest caller's time over so many seconds."""
        self.waits = []
        time.sleep(seconds)
        waits = sorted(self.waits)
        assert len(waits) > 20
        return waits[int(len(waits) * PERCENTILE)]

    def end(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        for fleet in self.fleets:
            fleet.close()


def values():
    """A thousand of them."""
    some = [pickle.dumps({"a": 1}), f"2 aa 1 0 0 9 9 9 1 9 20 {10**14} 9 9 h", "9" * 200, b"\xff", ""]
    return [some[n % len(some)] for n in range(1000)]


def spoil_fields(client):
    """Overwrites every field of every key, and adds others."""
    texts = values()
    for key in list(client.scan_iter("guardrails:*")):
        fields = [*client.hkeys(key), *(f"x{n}" for n in range(1000))][:1000]
        client.hset(key, mapping=dict(zip(fields, texts, strict=False)))


def replace_keys(client):
    """Makes every key one of another type, or of 10 MB and more."""
    for n, key in enumerate(list(client.scan_iter("guardrails:*"))):
        client.delete(key)
        if n % 3 == 0:
            client.set(key, b"x" * 1000)
        elif n % 3 == 1:
            client.rpush(key, *range(100))
        else:
            client.hset(key, mapping={"a": b"x" * 6_000_000, "b": b"x" * 6_000_000})


@pytest.mark.slow
@pytest.mark.first
def test_users_meet_no_error_and_the_budget_is_kept_whatever_happens_to_the_store():
    """Each fault alone, under load; the fleet is whole again within five seconds after each."""
    with ValkeyServer.start() as server:
        service = Service(server.url())
        try:
            wait_until(service.is_whole)
            calm = service.slowest(4)
            slowest, seconds = {}, {}

            def meet(name, fault, end=None, lasts=1.0):
                with redis.Redis(port=server.port, socket_timeout=20) as client:
                    fault(client)
                slowest[name] = service.slowest(lasts)
                if end is not None:
                    end()
                began = time.monotonic()
                wait_until(service.is_whole)
                seconds[name] = time.monotonic() - began
                assert not service.errors, name
                assert service.most <= BUDGET, name

            meet("script flush", lambda client: client.script_flush())
            meet("flushall", lambda client: client.flushall())
            meet("hostile fields", spoil_fields)
            meet("keys of other types", replace_keys)
            meet("killed", lambda client: server.kill(), server.restart, lasts=5)
            meet("stopped", lambda client: server.freeze(), server.thaw, lasts=20)
        finally:
            service.end()
    print(f"p99 of a modest caller, in ms: calm {1000 * calm:.1f}")
    for name, fault in slowest.items():
        print(f"  {name}: {1000 * fault:.1f}, whole again after {seconds[name]:.1f} s")
    assert service.most > BUDGET // 2, "the budget was used"
    assert max(slowest.values()) <= calm + 0.005 + ROOM, slowest
    assert max(seconds.values()) <= 5 + ROOM, seconds


class Pairs:
    """Callers that call by turns under a fleet with a healthy store and under one whose store stands still.

    So both have the same load of the machine.

    Attributes:
        times: Seconds that the calls took, for each of the stores.
    """

    def __init__(self, urls):
        self.fleets = [[Fleet(url, name="shop", worker_id=f"w{n}") for n in range(3)] for url in urls]
        self.guards = [
            [
                Guard("db", max_concurrent_calls=20, fleet=fleet.budget("db", connections=BUDGET))
                for fleet in fleets
            ]
            for fleets in self.fleets
        ]
        self.times = [[] for _ in urls]

    def call(self, seconds):
        """Calls for so long; each thread is a worker of both fleets."""
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._call, args=(n, until), daemon=True) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _call(self, number, until):
        draw = random.Random(number)
        while time.monotonic() < until:
            for place in draw.sample(range(len(self.guards)), len(self.guards)):
                began = time.monotonic()
                self.guards[place][number].run(time.sleep, 0.01)
                self.times[place].append(time.monotonic() - began)

    def percentile(self, place):
        times = sorted(self.times[place])
        return times[int(len(times) * PERCENTILE)]

    def end(self):
        for fleets in self.fleets:
            for fleet in fleets:
                fleet.close()


@pytest.mark.slow
def test_calls_take_as_long_while_the_store_stands_still():
    """The fleets lose contact, and keep their safe shares, while the calls are timed."""
    with ValkeyServer.start() as healthy, ValkeyServer.start() as stopped:
        pairs = Pairs([healthy.url(), stopped.url()])
        try:
            pairs.call(3)
            stopped.freeze()
            pairs.times = [[] for _ in pairs.times]
            pairs.call(SECONDS)
        finally:
            stopped.thaw()
            pairs.end()
    usual, found = pairs.percentile(0), pairs.percentile(1)
    print(f"p99 with a healthy store {1000 * usual:.1f} ms, with one that stands still {1000 * found:.1f} ms")
    assert len(pairs.times[0]) > 100
    assert found <= 2 * usual + 0.005
