"""Who may use a Redis client's pool, what the server's answers say about it, and how a guard comes off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import time

import fakeredis
import pytest
import redis
import redis.asyncio

from guardrails import (
    BreakerPolicy,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    Guard,
    pool_status,
    protect,
)
from guardrails.events import LeakFound
from support.polling import poll
from support.redis_lab import QUIET, Stopwatch, frozen, nimble

# --- slots -------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking_pool", [False, True], ids=["pool", "blocking pool"])
def test_capacity_is_the_pools_and_a_full_one_refuses_soon(cache, blocking_pool):
    """With every connection out a call waits 50 ms and is refused; that is no evidence."""
    guard = cache.protect(blocking_pool=blocking_pool, max_connections=2)
    assert guard.snapshot().max_concurrent_calls == 2
    started = time.monotonic()
    results = cache.all(
        [lambda client: client.blpop("nobody", timeout=0.5)] * 2
        + [lambda client: timed_get(client, cache.is_async)]
    )
    assert time.monotonic() - started < 3
    assert results[:2] == [None, None]
    assert isinstance(results[2], BulkheadFullError)
    snapshot = guard.snapshot()
    assert (snapshot.failed, snapshot.in_use) == (0, 0)
    assert cache.do(lambda client: client.ping())


def timed_get(client, is_async):
    """Asks for a key once the pops have begun."""

    async def later():
        await asyncio.sleep(0.2)
        return await client.get("key")

    if is_async:
        return later()
    time.sleep(0.2)
    return client.get("key")


def test_compartment_takes_slots_in_both(cache):
    """What runs inside a compartment's call belongs to it, and to the whole."""
    guard = cache.protect(max_connections=4)
    part = guard.compartment("reports", max_concurrent_calls=1)
    with part.call():
        cache.do(lambda client: client.set("key", "value"))
    assert (part.snapshot().admitted, guard.snapshot().admitted) == (1, 1)
    assert (part.snapshot().succeeded, guard.snapshot().succeeded) == (1, 1)
    assert part.snapshot().in_use == guard.snapshot().in_use == 0


def test_open_circuit_refuses_without_a_connection(cache):
    """Nothing is sent, and nothing leaves the pool, while the circuit is open."""
    guard = cache.protect()
    guard.force_open()
    for work in (lambda client: client.get("key"), lambda client: client.pipeline().get("key").execute()):
        with pytest.raises(CircuitOpenError):
            cache.do(work)
    assert guard.snapshot().succeeded == 0


def assert_held_on_purpose(guard, client):
    """One slot is taken, by a holder that waits; it is no old call, for which there is an alert."""
    snapshot = guard.snapshot()
    assert (snapshot.in_use, snapshot.oldest_in_flight) == (1, None)
    assert [holder.doing for holder in pool_status(client).holders] == ["waiting"]


def test_subscriber_holds_a_slot_and_is_never_slow(cache):
    """A subscriber may be silent past every threshold; its messages arrive, and its slot comes back."""
    guard = cache.protect(guard={"timeout": 1.0, "breaker": nimble(slow_call_duration_threshold=0.9)})

    def sync_work(client):
        with client.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe("news")
            assert listener.get_message(timeout=1.5) is None
            assert_held_on_purpose(guard, client)
            client.publish("news", "hello")
            return listener.get_message(timeout=5)

    async def async_work(client):
        async with client.pubsub(ignore_subscribe_messages=True) as listener:
            await listener.subscribe("news")
            assert await listener.get_message(timeout=1.5) is None
            assert_held_on_purpose(guard, client)
            await client.publish("news", "hello")
            return await listener.get_message(timeout=5)

    message = cache.do(async_work if cache.is_async else sync_work)
    assert message is not None
    assert message["data"] == b"hello"
    snapshot = guard.snapshot()
    assert (snapshot.in_use, snapshot.failed, snapshot.slow) == (0, 0, 0)


def test_forgotten_connection_gives_its_slot_back():
    """A connection that is dropped without release loses no slot; its leak says how long it was out."""
    leaks = []

    def listen(event):
        leaks.append(event)

    listen.events = (LeakFound,)
    client = fakeredis.FakeRedis(max_connections=3)
    guard = protect(client, listeners=[listen])
    connection = client.connection_pool.get_connection()
    taken = time.monotonic()
    client.connection_pool._in_use_connections.clear()
    assert guard.snapshot().in_use == 1
    poll(lambda: time.monotonic() - taken > 0.05, "the connection was out for a while")
    del connection
    gc.collect()
    assert guard.snapshot().in_use == 0
    poll(lambda: leaks, "the leak is reported")
    assert leaks[0].cause == "dropped"
    assert 0.05 <= leaks[0].seconds < 5


def test_the_holder_of_a_subscription_waits():
    """It holds its connection on purpose, so the log names no command that asks a database about it."""
    client = fakeredis.FakeRedis(max_connections=3)
    guard = protect(client)
    with client.pubsub() as listener:
        listener.subscribe("news")
        assert [holder.doing for holder in pool_status(client).holders] == ["waiting"]
        assert guard.snapshot().oldest_in_flight is None
    assert guard.snapshot().in_use == 0
    assert guard._gate.report.hint == ""


def test_a_connection_that_its_client_keeps_is_no_leak_and_no_old_call(cache):
    """A client with a single connection holds it for its life, on purpose."""
    leaks = []

    def listen(event):
        leaks.append(event)

    listen.events = (LeakFound,)
    settings = {"leak_after": 0.1, "listeners": [listen]}
    guard = cache.protect(guard=settings, single_connection_client=True)
    cache.do(lambda client: client.set("key", "value"))
    ended = time.monotonic() + 0.6
    while time.monotonic() < ended:
        assert cache.do(lambda client: client.get("key")) == b"value"
        time.sleep(0.2)
    snapshot = guard.snapshot()
    assert (snapshot.in_use, snapshot.oldest_in_flight) == (1, None)
    assert {holder.doing for holder in pool_status(cache.client).holders} <= {"waiting"}
    assert not leaks


def test_locks_scripts_and_scans_pass(cache):
    """Everything built on commands works as it does on a plain client."""
    guard = cache.protect()

    def sync_work(client):
        client.mset({f"item:{number}": number for number in range(30)})
        with client.lock("lock", timeout=5):
            assert client.get("lock")
        double = client.register_script("return ARGV[1] * 2")
        return double(args=[21]), len(list(client.scan_iter("item:*", count=5)))

    async def async_work(client):
        await client.mset({f"item:{number}": number for number in range(30)})
        async with client.lock("lock", timeout=5):
            assert await client.get("lock")
        double = client.register_script("return ARGV[1] * 2")
        return await double(args=[21]), len([key async for key in client.scan_iter("item:*", count=5)])

    assert cache.do(async_work if cache.is_async else sync_work) == (42, 30)
    assert guard.snapshot().failed == 0


def test_transaction_sees_a_changed_key(cache):
    """WATCH, MULTI and EXEC keep their meaning: a changed key is a WatchError, and no failure."""
    guard = cache.protect()

    def sync_work(client):
        with client.pipeline() as pipe:
            pipe.watch("key")
            client.set("key", "changed")
            pipe.multi()
            pipe.set("key", "mine")
            pipe.execute()

    async def async_work(client):
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            await client.set("key", "changed")
            pipe.multi()
            pipe.set("key", "mine")
            await pipe.execute()

    with pytest.raises(redis.WatchError):
        cache.do(async_work if cache.is_async else sync_work)
    assert guard.snapshot().failed == 0
    assert cache.do(lambda client: client.get("key")) == b"changed"


def test_blocking_commands_of_a_single_connection_leave_its_successes(cache):
    """A worker that waits for a job, and does it, gives the circuit its good calls, too."""
    policy = BreakerPolicy(slow_call_duration_threshold=0.2, minimum_number_of_calls=1000)
    guard = cache.protect(guard={"breaker": policy}, single_connection_client=True)
    ended = time.monotonic() + 1
    while time.monotonic() < ended and not guard.snapshot().calls:
        cache.do(lambda client: client.set("key", "value"))
        cache.do(lambda client: client.blpop("nobody", timeout=0.05))
    assert guard.snapshot().calls >= 1
    assert guard.snapshot().failures == 0


def test_single_connection_heals_through_probes(cache, valkey):
    """The commands of a client with one connection for good are refused, and later are the probes."""
    cache.protect(guard={"timeout": 0.2, "breaker": nimble()}, single_connection_client=True)
    assert cache.do(lambda client: client.ping())
    with frozen(valkey):
        for _ in range(6):
            with contextlib.suppress(CallTimeoutError, CircuitOpenError):
                cache.do(lambda client: client.ping())
        with pytest.raises((CircuitOpenError, CallTimeoutError)):
            cache.do(lambda client: client.ping())
        assert cache.guard.snapshot().rejected["circuit_open"]
    end = time.monotonic() + 5
    while cache.guard.state != "closed":
        assert time.monotonic() < end, "not healed"
        with contextlib.suppress(CircuitOpenError, CallTimeoutError):
            cache.do(lambda client: client.ping())


# --- evidence ----------------------------------------------------------------------------------

FAULTS = ["LOADING", "OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "MISCONF", "NOREPLICAS"]
ANSWERS = ["WRONGTYPE", "NOSCRIPT", "NOPERM", "NOAUTH", "TRYAGAIN", "EXECABORT", "MOVED", "ASK", "ERR"]


@pytest.mark.parametrize("code", FAULTS)
def test_reply_of_a_server_that_cannot_serve(cache, code):
    """These error replies mean that the server serves no caller now."""
    assert evidence_of(cache, code) == (0, 1)


@pytest.mark.parametrize("code", ANSWERS)
def test_reply_that_proves_the_server_alive(cache, code):
    """Every other error is about the command."""
    assert evidence_of(cache, code) == (1, 0)


def evidence_of(cache, code):
    """Makes the server answer with an error; returns how often it was taken for success and failure."""
    guard = cache.protect()
    cache.do(lambda client: client.ping())
    with pytest.raises(redis.RedisError):
        cache.do(lambda client: client.execute_command("DEBUG", "ERROR", f"{code} 1 127.0.0.1:6379"))
    assert cache.do(lambda client: client.echo("mine")) == b"mine"
    snapshot = guard.snapshot()
    return snapshot.succeeded - 2, snapshot.failed


def test_users_rule_decides(cache):
    """is_failure has the last word."""
    rule = BreakerPolicy(is_failure=lambda error: "custom" in str(error))
    guard = cache.protect(guard={"breaker": rule})
    with pytest.raises(redis.ResponseError):
        cache.do(lambda client: client.execute_command("DEBUG", "ERROR", "ERR custom trouble"))
    assert guard.snapshot().failed == 1


def test_slow_server_opens_the_circuit(cache):
    """DEBUG SLEEP stalls the whole server: the calls behind it become slow while they wait."""
    guard = cache.protect(
        guard={"timeout": 3, "breaker": nimble(minimum_number_of_calls=3)}, max_connections=5
    )
    with Stopwatch() as watch:
        cache.all(
            [lambda client: client.execute_command("DEBUG", "SLEEP", "1.0")]
            + [lambda client: timed_get(client, cache.is_async)] * 3
        )
    assert watch.seconds < 3
    assert guard.state == "open"
    assert guard.snapshot().slow >= 3


def test_bad_arguments_cost_no_connection(cache):
    """A value that cannot be sent is the caller's fault, and the connection stays."""
    guard = cache.protect(max_connections=1)
    before = cache.do(lambda client: client.client_id())
    with pytest.raises(redis.DataError):
        cache.do(lambda client: client.set("key", object()))
    assert cache.do(lambda client: client.client_id()) == before
    assert guard.snapshot().failed == 0


# --- attaching ---------------------------------------------------------------------------------


def test_client_keeps_its_type_and_detach_undoes_it(cache):
    """The client is what it was, before, while and after; what was open stays open."""
    client = cache.make(max_connections=2)
    plain = type(client), type(cache.pool), cache.pool.connection_class
    number = cache.do(lambda client: client.client_id())
    guard = protect(client)
    assert type(client) is plain[0]
    assert cache.do(lambda client: client.client_id()) == number
    guard.detach()
    assert (type(client), type(cache.pool), cache.pool.connection_class) == plain
    assert cache.do(lambda client: client.client_id()) == number
    assert guard.snapshot().succeeded == 1
    protect(client).detach()


def test_connection_that_was_out_before_is_adopted(cache):
    """A connection checked out before the guard came takes up a slot and gives it back once."""
    cache.make(max_connections=2)

    async def async_work(client):
        connection = await client.connection_pool.get_connection()
        guard = protect(client)
        assert guard.snapshot().in_use == 1
        await client.connection_pool.release(connection)
        await client.ping()
        return guard

    def sync_work(client):
        connection = client.connection_pool.get_connection()
        guard = protect(client)
        assert guard.snapshot().in_use == 1
        client.connection_pool.release(connection)
        client.ping()
        return guard

    guard = cache.do(async_work if cache.is_async else sync_work)
    assert guard.snapshot().in_use == 0


def test_fakes_are_guarded():
    """A fakeredis client is accepted, in both flavours."""
    client = fakeredis.FakeRedis()
    guard = protect(client, name="cache")
    client.set("key", 1)
    assert client.pipeline().incr("key").execute() == [2]
    assert guard.snapshot().succeeded == 2

    async def main():
        client = fakeredis.FakeAsyncRedis()
        guard = protect(client, name="cache")
        await client.set("key", 1)
        assert await client.pipeline().incr("key").execute() == [2]
        await client.aclose()
        return guard.snapshot()

    assert asyncio.run(main()).succeeded == 2


def closed():
    """A client that gave its only connection back for good."""
    client = fakeredis.FakeRedis(single_connection_client=True)
    client.close()
    return client


def guarded():
    """A client that is guarded already."""
    client = fakeredis.FakeRedis()
    protect(client, name="first")
    return client


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (closed, {}, "has been closed"),
        (guarded, {}, "guarded already, by <Guard 'first'"),
        (lambda: redis.Redis(max_connections=2**31), {}, "max_concurrent_calls"),
        (lambda: redis.Redis(max_connections=5), {"max_concurrent_calls": 6}, "from 1 to 5"),
        (lambda: redis.Redis().pipeline(), {}, "protect that client"),
        (redis.Redis, {"timeout": "soon"}, "timeout must be"),
    ],
)
def test_bad_input_is_refused_in_words(make, options, words):
    """Each mistake raises an error with advice, and changes nothing."""
    with pytest.raises(ConfigurationError, match=words):
        protect(make(), **options)


def test_secrets_stay_secret(valkey):
    """A password in the URL is in no error, name, snapshot or representation of ours."""
    client = redis.Redis.from_url(f"redis://user:hunter2@127.0.0.1:{valkey.port}/0")
    guard = protect(client, timeout=1)
    with pytest.raises(redis.RedisError) as caught:
        client.get("key")
    shown = [
        repr(guard),
        str(guard.snapshot()),
        str(caught.value),
        repr(client.connection_pool.connection_class),
    ]
    with pytest.raises(ConfigurationError) as twice:
        protect(client)
    assert "hunter2" not in " ".join([*shown, str(twice.value)])
    assert guard.snapshot().failed == 1
    client.close()


def test_signatures_of_the_hooks_match_redis_py():
    """The hooks stand where redis-py calls them: a release that moves them must be looked at."""
    for pool in (redis.ConnectionPool, redis.BlockingConnectionPool, redis.asyncio.ConnectionPool):
        assert "get_connection" in vars(pool)
        assert list(inspect.signature(pool.release).parameters) == ["self", "connection"]
    assert isinstance(protect(fakeredis.FakeRedis(), breaker=QUIET), Guard)
