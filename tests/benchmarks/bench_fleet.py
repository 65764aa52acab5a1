"""What a fleet costs its Redis or Valkey: the time of a renewal, memory, and the load of real connections.

    python tests/benchmarks/bench_fleet.py [--workers N ...] [--calls N] [--json FILE]
                                           [--connections N] [--seconds S]

The script runs with a clock of its own, so that ten thousand workers renew once a second of it, however
long that takes here. ``changing``: the demand is another at each renewal. ``worst``: all workers have fallen
silent, and the sums of two shards are made anew; ``total``: that over all shards is. Of these two it is the
least of some repetitions, as other processes hold them up. With ``--connections``, that many connections of
four processes renew once a second for so many real seconds. Starts its own Valkey.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import pathlib
import random
import statistics
import time

import redis
import redis.asyncio

from guardrails.fleet._records import Request
from guardrails.fleet._redis_store import SCRIPT, _words
from guardrails.fleet._stores import Ask
from guardrails.testing.servers import ValkeyServer

TIMED = SCRIPT.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}")
KEY = "guardrails:{shop}:budget2:db"
WANTS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 20, 30, 40]
PROCESSES, REPETITIONS = 4, 5


def request(number, seq, wants, grant):
    """One renewal of one worker."""
    return Request(
        f"web-{number}:311:9c4e", "0123456789ab", seq, seq == 1, min(grant, wants), max(grant, 1), 1, wants,
        1, 40, 80_000, "web-1.shop",
    )  # fmt: skip


class Fleet:
    """Workers that renew in turn, in virtual time."""

    def __init__(self, client, workers):
        self.client, self.workers, self.now = client, workers, 1_000_000_000.0
        self.draw = random.Random(1)
        self.seqs, self.grants = [0] * workers, [1] * workers
        self.wants = [self.draw.choice(WANTS) for _ in range(workers)]
        self.digest = client.script_load(TIMED)

    def renew(self, numbers):
        pipe = self.client.pipeline(transaction=False)
        for number in numbers:
            self.seqs[number] += 1
            self.now += 1000 / self.workers
            now = int(self.now)
            ask = Ask("db", request(number, self.seqs[number], self.wants[number], self.grants[number]))
            pipe.evalsha(self.digest, 1, KEY, *_words(ask), now // 1000, now % 1000 * 1000)
        for number, (reply,) in zip(numbers, pipe.execute(), strict=True):
            self.grants[number] = reply[1]

    def run(self, calls, *, changing=False):
        """Returns the microseconds of each call, as the server took them."""
        done = []
        at = 0
        while at < calls:
            numbers = [number % self.workers for number in range(at, at + min(100, calls - at))]
            if changing:
                for number in numbers:
                    self.wants[number] = self.draw.choice(WANTS)
            self.client.slowlog_reset()
            self.renew(numbers)
            at += len(numbers)
            done += [
                each["duration"] for each in self.client.slowlog_get(200) if b"EVALSHA" in each["command"]
            ]
        return done

    def worst(self):
        """All workers have just fallen silent; the least time of a call of one that asks then."""
        found = []
        for _ in range(REPETITIONS):
            self.run(self.workers)
            self.now += 2900
            self.run(1)  # somebody asks, so that the store does not learn
            self.now += 200
            found += self.run(1)
        return min(found)

    def total(self):
        """The least time of a call that makes the total anew."""
        found = []
        self.run(2 * self.workers)
        for _ in range(4 * REPETITIONS):
            _, change, made, rest = self.client.hget(KEY, "=").split(b" ", 3)
            self.client.hset(KEY, "=", b" ".join((b"2", change, b"%d" % (int(made) - 2000), rest)))
            found += self.run(1)
        return min(found[::2])


def measure(client, workers, calls):
    """One row: a fleet of that size."""
    client.flushdb()
    fleet = Fleet(client, workers)
    fleet.run(4 * workers)  # it learns, and then divides
    steady, changing = fleet.run(calls), fleet.run(calls, changing=True)
    memory = sum(client.memory_usage(key, samples=0) for key in client.scan_iter("guardrails*"))
    return {
        "workers": workers,
        "steady_us": statistics.median(steady),
        "changing_us": statistics.median(changing),
        "worst_us": fleet.worst(),
        "total_us": fleet.total(),
        "bytes_per_worker": round(memory / workers),
    }


async def _connections(url, first, count, seconds):
    fleet = []
    loop = asyncio.get_running_loop()
    waits, grants, lost = [], {}, 0

    async def work(number):
        nonlocal lost
        draw = random.Random(number)
        client = redis.asyncio.Redis.from_url(url, socket_timeout=5)
        digest = await client.script_load(SCRIPT)
        grants[number] = 1
        await asyncio.sleep(draw.random())
        for seq in range(1, seconds + 1):
            began = loop.time()
            ask = Ask("db", request(number, seq, draw.choice(WANTS), grants[number]))
            try:
                (reply,) = await client.evalsha(digest, 1, KEY, *_words(ask))
                grants[number] = reply[1]
            except redis.RedisError:
                lost += 1
            waits.append(loop.time() - began)
            await asyncio.sleep(max(0.0, 1 - (loop.time() - began)))
        await client.aclose()

    for number in range(first, first + count):
        fleet.append(asyncio.create_task(work(number)))
        if number % 50 == 0:
            await asyncio.sleep(0.05)
    await asyncio.gather(*fleet)
    return waits, sum(grants.values()), lost


def _process(url, first, count, seconds, results):
    results.put(asyncio.run(_connections(url, first, count, seconds)))


def load(server, client, connections, seconds):
    """Real connections, each of which renews once a second; what the server used."""
    client.flushdb()
    client.config_set("slowlog-log-slower-than", 10_000_000)
    context = multiprocessing.get_context("spawn")
    results, each = context.Queue(), connections // PROCESSES
    workers = [
        context.Process(target=_process, args=(server.url(), n * each, each, seconds, results))
        for n in range(PROCESSES)
    ]
    before, began = client.info("cpu"), time.monotonic()
    calls = client.info("stats")["total_commands_processed"]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=seconds * 5 + 60) for _ in workers]
    for worker in workers:
        worker.join(10)
    after, took = client.info("cpu"), time.monotonic() - began
    waits = sorted(wait for waits, _, _ in found for wait in waits)
    used = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return {
        "connections": each * PROCESSES,
        "seconds": round(took, 1),
        "renewals": len(waits),
        "errors": sum(lost for _, _, lost in found),
        "granted": sum(grants for _, grants, _ in found),
        "wait_p50_ms": round(1000 * waits[len(waits) // 2], 2),
        "wait_p99_ms": round(1000 * waits[len(waits) * 99 // 100], 2),
        "server_cpu_seconds": round(used, 2),
        "server_us_per_renewal": round(1e6 * used / len(waits)),
        "commands": client.info("stats")["total_commands_processed"] - calls,
    }


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--connections", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    written = {"fleets": [], "load": None}
    with ValkeyServer.start() as server, redis.Redis(port=server.port) as client:
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", 1000)
        print("workers  steady us  changing us  worst us  total us  bytes a worker")
        for workers in options.workers:
            row = measure(client, workers, options.calls)
            written["fleets"].append(row)
            print(
                f"{row['workers']:7} {row['steady_us']:10.0f} {row['changing_us']:12.0f} {row['worst_us']:9} "
                f"{row['total_us']:9} {row['bytes_per_worker']:15}",
                flush=True,
            )
        if options.connections:
            written["load"] = load(server, client, options.connections, options.seconds)
            for name, value in written["load"].items():
                print(f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(written))


if __name__ == "__main__":
    main()
