"""A Redis client whose guard is in shadow: every command runs as without a guard, and the guard counts."""

from __future__ import annotations

import contextlib
import threading

import pytest
import redis

from guardrails import BreakerPolicy, CallTimeoutError, guarded
from support.polling import poll
from support.redis_lab import frozen

SLOW = "DEBUG", "SLEEP", "0.3"


def sleep(client):
    return client.execute_command(*SLOW)


def test_a_command_past_its_limit_runs_to_its_end_and_is_counted_at_its_limit(cache):
    guard = cache.protect(guard={"timeout": 0.05, "mode": "shadow"}, max_connections=3)
    assert cache.do(sleep)
    poll(lambda: guard.snapshot().would_stop == 1, "it is counted")
    assert guard.snapshot().failed == 1
    assert cache.do(lambda client: client.set("key", "value"))
    poll(lambda: guard.snapshot().in_use == 0, "the slots are back")
    guard.set_mode("enforce")
    with pytest.raises(CallTimeoutError):
        cache.do(sleep)


def test_a_client_s_own_timeout_still_holds(cache, valkey):
    guard = cache.protect(
        guard={"timeout": 0.05, "mode": "shadow"}, max_connections=3, socket_timeout=1, retry=None
    )

    def answered():
        with contextlib.suppress(redis.TimeoutError):  # a busy machine may take longer to connect
            return cache.do(lambda client: client.ping())

    poll(answered, "a connection is open")
    before = guard.snapshot().would_stop
    with frozen(valkey), pytest.raises(redis.TimeoutError) as raised:
        cache.do(lambda client: client.get("key"))
    assert not isinstance(raised.value, CallTimeoutError)
    poll(lambda: guard.snapshot().would_stop > before, "it is counted")


def test_more_callers_than_slots_are_let_in(cache):
    guard = cache.protect(
        guard={"max_concurrent_calls": 2, "max_wait_duration": 0, "mode": "shadow"}, max_connections=20
    )
    answers = cache.all([lambda client: client.blpop("nothing", 0.2)] * 6)
    assert not [each for each in answers if isinstance(each, BaseException)]
    seen = guard.snapshot()
    assert (seen.rejected, seen.in_use) == ({}, 0)
    assert seen.would_reject["bulkhead_full"] >= 3


def test_an_open_circuit_lets_commands_through(cache):
    policy = BreakerPolicy(consecutive_failures=2, wait_duration_in_open_state=30)
    guard = cache.protect(guard={"timeout": 0.05, "mode": "shadow", "breaker": policy}, max_connections=3)
    for _ in range(2):
        cache.do(sleep)
    poll(lambda: guard.state == "open", "it opens")
    assert cache.do(lambda client: client.set("key", "value"))
    assert guard.snapshot().would_reject == {"circuit_open": 1}
    assert threading.active_count() < 50


def test_redis_py_s_own_retries_count_as_without_a_guard(cache, wire):
    guard = cache.protect(guard={"mode": "shadow"}, max_connections=3)
    assert cache.do(lambda client: client.set("key", "value"))
    wire.reset()
    assert cache.do(lambda client: client.get("key")) in {"value", b"value"}
    assert guard.snapshot().rejected == {}


def test_a_guarded_function_s_timeout_stops_nothing(cache):
    guard = cache.protect(guard={"mode": "shadow"}, max_connections=3)
    if cache.is_async:

        @guarded(guard, timeout=0.05)
        async def slow(client):
            return await sleep(client)
    else:

        @guarded(guard, timeout=0.05)
        def slow(client):
            return sleep(client)

    assert cache.do(slow)
    poll(lambda: guard.snapshot().would_stop >= 1, "it is counted")
