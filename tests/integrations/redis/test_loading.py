"""A server that has started again and still reads its data: LOADING, from Valkey and from Redis."""

from __future__ import annotations

import contextlib
import threading

import pytest
import redis

from guardrails import CallTimeoutError, CircuitOpenError
from guardrails.testing.servers import ValkeyServer
from support.polling import poll
from support.redis_lab import LATE, RedisServer, Stopwatch, nimble

KEYS, EACH, PAUSE = 60, 1_050_000, 50_000
"""Values, the bytes of one, and the microseconds reading it takes: three seconds together. A server that
reads looks at its clients every two megabytes."""

OPEN_WAIT = 1.0
"""Seconds for which the circuit of these tests stays open."""

SHAPES = [
    lambda client: client.get("key"),
    lambda client: client.pipeline(transaction=False).get("key").get("key").execute(),
    lambda client: client.pipeline().get("key").get("key").execute(),
]


@pytest.fixture(scope="module", params=[ValkeyServer, RedisServer], ids=["Valkey", "Redis"])
def server(request):
    """A server with a saved data set that takes it its time to read."""
    with request.param.start("--rdbcompression", "no", "--key-load-delay", str(PAUSE)) as server:
        with redis.Redis(port=server.port, socket_timeout=30) as client:
            for number in range(KEYS):
                client.set(f"key-{number}", b"x" * EACH)
            client.set("key", "value")
            client.save()
        yield server


def says_loading(server):
    """Whether the server is there, and reads."""
    with redis.Redis(port=server.port, retry=None) as client:
        try:
            client.get("key")
        except redis.BusyLoadingError:
            return True
        except redis.ConnectionError:
            return False
    raise AssertionError("it had read everything before anybody could ask")


@contextlib.contextmanager
def restarting(server):
    """Kills the server and starts it again; the block begins when it reads and ends when it has."""
    server.kill()
    reading = threading.Thread(target=server.restart)
    reading.start()
    try:
        poll(lambda: says_loading(server), "the server reads", 20)
        yield
    finally:
        reading.join()


@pytest.mark.sampled(1)
def test_a_server_that_loads_opens_the_circuit_and_it_heals(cache, server):
    """D6: commands, pipelines and transactions are faults; refused calls send nothing; it heals."""
    cache.port = server.port
    breaker = nimble(
        minimum_number_of_calls=len(SHAPES),
        slow_call_duration_threshold=10,  # it is slow, too, and it is not that which we look at
        wait_duration_in_open_state=OPEN_WAIT,
    )
    guard = cache.protect(guard={"timeout": 10, "breaker": breaker})
    with restarting(server):
        for number, work in enumerate(SHAPES, start=1):
            with pytest.raises(redis.BusyLoadingError):
                cache.do(work)
            assert (guard.snapshot().succeeded, guard.snapshot().failed) == (0, number)
            assert cache.out() == 0
        assert guard.state == "open"
        with Stopwatch() as watch, pytest.raises(CircuitOpenError):
            cache.do(SHAPES[0])
        assert watch.seconds < OPEN_WAIT

    def try_again():
        with contextlib.suppress(CircuitOpenError, CallTimeoutError, redis.BusyLoadingError):
            assert cache.do(SHAPES[0]) == b"value"
        return guard.state == "closed"

    poll(try_again, "the circuit has closed by itself", OPEN_WAIT + 1.0 + 4 * LATE)
