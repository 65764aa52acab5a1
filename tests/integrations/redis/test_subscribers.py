"""A subscriber's connection is one of the guard's, at its first use and each time it is opened again."""

from __future__ import annotations

import contextlib
from asyncio.selector_events import _SelectorSocketTransport

import pytest
import redis

from guardrails import CallTimeoutError, CircuitOpenError
from support.polling import poll
from support.redis_lab import LATE, QUIET, Stopwatch, frozen, nimble

MOST = 2

_written = vars(_SelectorSocketTransport).get("writelines")
ASYNCIO_IS_BLIND = _written is not None and "_conn_lost" not in _written.__code__.co_names
"""From 3.12 to early 3.13, asyncio raises AttributeError where it writes to a connection that is lost."""

OUTAGE = [redis.ConnectionError, CallTimeoutError, CircuitOpenError] + [AttributeError] * ASYNCIO_IS_BLIND


def subscribe(cache):
    """A subscriber with a health check that is due at once, and one message read."""
    listener = cache.client.pubsub(ignore_subscribe_messages=True)
    cache.finish(lambda: listener.subscribe("news"))
    cache.finish(lambda: listener.get_message(timeout=0.1))
    return listener


def close(cache, listener):
    cache.finish(listener.aclose if cache.is_async else listener.close)


def lose(listener, cache):
    """The subscriber's connection is gone, and its health check is due."""
    connection = listener.connection
    cache.finish(connection.disconnect)
    connection.next_health_check = 0
    return connection


def listen(cache, listener):
    return cache.finish(lambda: listener.get_message(timeout=0.1))


def test_health_check_opens_the_connection_through_the_guard(cache):
    """While the circuit is open the PING of a health check does not connect either."""
    guard = cache.protect(max_connections=MOST, health_check_interval=1)
    listener = subscribe(cache)
    connection = lose(listener, cache)
    guard.force_open()
    with pytest.raises(CircuitOpenError):
        listen(cache, listener)
    assert not connection.is_connected
    guard.reset()
    assert listen(cache, listener) is None
    assert connection.is_connected
    assert guard.snapshot().in_use == 1
    close(cache, listener)
    assert guard.snapshot().in_use == 0


def test_health_check_opens_the_connection_within_the_guards_time(cache, valkey):
    """A frozen server does not hold the subscriber for redis-py's eleven tries."""
    cache.protect(max_connections=MOST, health_check_interval=1, guard={"timeout": 0.4, "breaker": QUIET})
    listener = subscribe(cache)
    lose(listener, cache)
    with frozen(valkey), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        listen(cache, listener)
    assert watch.seconds < 0.4 + LATE
    assert listen(cache, listener) is None
    close(cache, listener)


@pytest.mark.parametrize("interval", [0, 1])
def test_subscriber_that_was_refused_keeps_its_slot(cache, interval):
    """Its connection stays out of the pool; so does its slot, and the others are never one too many."""
    guard = cache.protect(max_connections=MOST, health_check_interval=interval)
    listener = subscribe(cache)
    for _ in range(3):
        lose(listener, cache)
        guard.force_open()
        with contextlib.suppress(CircuitOpenError, redis.ConnectionError):
            cache.finish(lambda: listener.subscribe("more"))
        guard.reset()
        assert guard.snapshot().in_use == 1
    results = cache.all([lambda client: client.blpop("nobody", timeout=0.3)] * MOST)
    assert redis.exceptions.MaxConnectionsError not in map(type, results)
    assert results.count(None) == MOST - 1
    assert listen(cache, listener) is None
    close(cache, listener)
    assert guard.snapshot().in_use == 0


@pytest.mark.sampled(1)
def test_subscriber_heals_after_an_outage_and_others_have_their_connections(cache, wire):
    """The outage of a server: the circuit opens, closes by itself, and the subscriber gets its messages."""
    breaker = nimble(minimum_number_of_calls=2, slow_call_duration_threshold=30)
    guard = cache.protect(
        max_connections=MOST, health_check_interval=1, guard={"timeout": 0.5, "breaker": breaker}
    )
    listener = subscribe(cache)
    wire.refuse()
    wire.reset()
    while guard.state == "closed":
        with contextlib.suppress(*OUTAGE):
            cache.do(lambda client: client.ping())
    for _ in range(3):
        listener.connection.next_health_check = 0
        with contextlib.suppress(*OUTAGE):
            listen(cache, listener)
    wire.heal()
    received = []

    def healed():
        with contextlib.suppress(*OUTAGE):
            received.append(listen(cache, listener))
            cache.do(lambda client: client.publish("news", "hello"))
            received.append(listen(cache, listener))
        return guard.state == "closed" and any(each and each["data"] == b"hello" for each in received)

    poll(healed, "the subscriber hears again")
    assert guard.snapshot().in_use == 1
    results = cache.all([lambda client: client.blpop("nobody", timeout=0.3)] * MOST)
    assert redis.exceptions.MaxConnectionsError not in map(type, results)
    close(cache, listener)


def test_single_connection_that_is_refused_keeps_its_slot(cache):
    """Likewise: a connection that is kept is out of the pool, whether its work is admitted or not."""
    guard = cache.protect(max_connections=MOST, single_connection_client=True)
    cache.do(lambda client: client.ping())
    for _ in range(3):
        guard.force_open()
        with pytest.raises(CircuitOpenError):
            cache.do(lambda client: client.ping())
        guard.reset()
        assert guard.snapshot().in_use == 1


def test_command_by_hand_opens_its_connection_within_the_guards_time(cache, valkey):
    """One that is sent past redis-py's clients, on a connection that was closed."""
    guard = cache.protect(max_connections=MOST, guard={"timeout": 0.4, "breaker": QUIET})
    connection = cache.finish(cache.pool.get_connection)
    cache.finish(connection.disconnect)
    with frozen(valkey), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        cache.finish(lambda: connection.send_command("PING"))
    assert watch.seconds < 0.4 + LATE
    cache.finish(lambda: cache.pool.release(connection))
    assert guard.snapshot().in_use == 0


def test_monitor_holds_a_slot(cache):
    """And gives it back at the end of its block."""
    guard = cache.protect(max_connections=MOST)

    async def on_loop(client):
        async with client.monitor() as monitor:
            await client.set("key", 1)
            assert guard.snapshot().in_use == 1
            return await monitor.next_command()

    def in_thread(client):
        with client.monitor() as monitor:
            client.set("key", 1)
            assert guard.snapshot().in_use == 1
            return monitor.next_command()

    assert cache.do(on_loop if cache.is_async else in_thread)["command"] in {"HELLO 3", "SET key 1"}
    assert guard.snapshot().in_use == 0
