"""A Redis call is back by its deadline whatever the server and the wire do, and its connection is closed."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref

import pytest
import redis
from redis.backoff import ConstantBackoff

from guardrails import CallTimeoutError, CircuitOpenError, DeadlineSpentError, GuardrailsError, deadline
from support.polling import poll
from support.redis_lab import LATE, Stopwatch, frozen, nimble, with_each_parser

SHAPES = {
    "command": lambda client: client.get("key"),
    "pipeline": lambda client: client.pipeline(transaction=False).get("key").get("key").execute(),
    "transaction": lambda client: client.pipeline().get("key").get("key").execute(),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def work(request):
    """A piece of work of each shape."""
    return request.param


def warm(cache):
    """Opens a connection and leaves it in the pool."""
    assert cache.do(lambda client: client.set("key", "value"))


def late_by(cache, work, given=0.3):
    """Runs work that must be stopped at its deadline."""
    with Stopwatch() as watch, pytest.raises(CallTimeoutError) as caught:
        cache.do(work)
    assert given - 0.05 <= watch.seconds < given + LATE
    assert caught.value.guard == "cache"
    assert caught.value.__cause__ is not None
    assert cache.out() == 0
    assert cache.guard.snapshot().in_use == 0


@with_each_parser
def test_frozen_server_does_not_hold_the_caller(cache, valkey, work):
    """With a warm connection a call is back at its deadline, and the next has its own answer."""
    cache.protect(guard={"timeout": 0.3})
    warm(cache)
    with frozen(valkey):
        late_by(cache, work)
    assert cache.do(lambda client: client.get("key")) == b"value"
    assert cache.guard.snapshot().failed == 1


@with_each_parser
def test_connecting_to_a_frozen_server_is_bounded(cache, valkey, work):
    """Opening the connection and the handshake have the same deadline as the command they are for."""
    cache.protect(guard={"timeout": 0.3})
    with frozen(valkey):
        late_by(cache, work)
    snapshot = cache.guard.snapshot()
    assert (snapshot.failed, snapshot.calls) == (1, 1)


@pytest.mark.parametrize("options", [{"protocol": 2}, {"blocking_pool": True, "max_connections": 2}], ids=str)
def test_every_protocol_and_pool_is_bounded(cache, valkey, options):
    """The deadline holds with RESP2 and with a pool that would wait."""
    cache.protect(guard={"timeout": 0.3}, **options)
    warm(cache)
    with frozen(valkey):
        late_by(cache, SHAPES["command"])


def test_single_connection_is_bounded_and_recovers(cache, valkey):
    """A client that keeps one connection is stopped in time and connects again."""
    cache.protect(guard={"timeout": 0.3}, single_connection_client=True)
    warm(cache)
    with frozen(valkey), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        cache.do(SHAPES["command"])
    assert watch.seconds < 0.3 + LATE
    assert cache.do(lambda client: client.get("key")) == b"value"


@with_each_parser
def test_trickling_server_cannot_extend_the_deadline(cache, wire, work):
    """A byte now and then is no progress: the time left is measured again for each read."""
    cache.protect(guard={"timeout": 0.4})
    warm(cache)
    assert cache.do(lambda client: client.set("key", "v" * 100))
    wire.slice(1, every=0.05)
    late_by(cache, work, 0.4)
    wire.heal()
    assert cache.do(lambda client: client.set("key", "value"))


@pytest.mark.sampled
@with_each_parser
@pytest.mark.parametrize("fault", ["hang", "reset", "half_close", "refuse", "truncate"])
def test_broken_wire_ends_in_time(cache, wire, work, fault):
    """Whatever the network does, a call is over by its deadline, and the next one after it is healed."""
    cache.protect(guard={"timeout": 0.4})
    warm(cache)
    if fault == "refuse":
        wire.refuse()
        wire.reset()
    elif fault == "truncate":
        wire.cut_after(3)
    elif fault in {"reset", "half_close"}:
        wire.delay(0.15)
        threading.Timer(0.05, getattr(wire, fault)).start()
    else:
        wire.hang()
    with Stopwatch() as watch, contextlib.suppress(CallTimeoutError, redis.ConnectionError):
        cache.do(work)
    assert watch.seconds < 0.4 + LATE
    wire.heal()
    time.sleep(0.2)  # the delayed fault of a call that was over before it
    with contextlib.suppress(redis.ConnectionError):  # one more connection of the pool may have died with it
        cache.do(lambda client: client.get("key"))
    assert cache.do(lambda client: client.get("key")) == b"value"


def test_ambient_deadline_is_the_callers_not_the_servers(cache, valkey):
    """A caller's smaller deadline stops the call and is no evidence against the server."""
    cache.protect()
    warm(cache)
    with frozen(valkey), Stopwatch() as watch, deadline(0.3), pytest.raises(CallTimeoutError):
        cache.do(SHAPES["command"])
    assert watch.seconds < 0.3 + LATE
    snapshot = cache.guard.snapshot()
    assert (snapshot.failed, snapshot.abandoned) == (0, 1)
    with deadline(0), pytest.raises(DeadlineSpentError):
        cache.do(SHAPES["command"])


def test_call_timeout_of_a_scope_is_the_guards_own(cache, valkey):
    """call(timeout=...) takes no slot, bounds what is inside, and counts against the server."""
    guard = cache.protect()
    warm(cache)
    with frozen(valkey), guard.call(0.3), pytest.raises(CallTimeoutError):
        cache.do(SHAPES["command"])
    assert guard.snapshot().failed == 1


def test_redis_py_does_not_retry(cache, wire, monkeypatch):
    """The ten default retries are off: one error, one connection."""
    cache.protect(guard={"timeout": 5})
    tries, connect = [], cache.pool.connection_class._connect
    monkeypatch.setattr(
        cache.pool.connection_class, "_connect", lambda self: tries.append(self) or connect(self)
    )
    wire.refuse()
    with pytest.raises(redis.ConnectionError):
        cache.do(SHAPES["command"])
    assert len(tries) == 1


def test_users_retries_run_inside_the_deadline(cache, wire):
    """A policy that was handed in is followed for as long as there is time."""
    retry = (redis.asyncio.retry if cache.is_async else redis.retry).Retry(ConstantBackoff(0.1), 100)
    cache.protect(guard={"timeout": 1.0}, retry=retry)
    wire.refuse()
    with Stopwatch() as watch, pytest.raises((redis.ConnectionError, CallTimeoutError)):
        cache.do(SHAPES["command"])
    assert 0.8 < watch.seconds < 1.0 + LATE
    assert cache.guard.snapshot().calls == 1
    threading.Timer(0.15, wire.heal).start()
    assert cache.do(lambda client: client.ping())


def test_watched_transaction_is_given_up_in_time(cache, valkey):
    """A transaction whose server freezes between WATCH and EXEC ends in time, and is not tried again."""
    cache.protect(guard={"timeout": 0.3})
    warm(cache)

    def sync_work(client):
        with client.pipeline() as pipe:
            pipe.watch("key")
            valkey.freeze()
            pipe.multi()
            pipe.set("key", "other")
            return pipe.execute()

    async def async_work(client):
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            valkey.freeze()
            pipe.multi()
            pipe.set("key", "other")
            return await pipe.execute()

    try:
        late_by(cache, async_work if cache.is_async else sync_work)
    finally:
        valkey.thaw()
    # The server may have done it when it went on: the effect of a call that was stopped is unknown.
    assert cache.do(lambda client: client.get("key")) in {b"value", b"other"}


def test_blocking_pop_waits_as_long_as_it_asked(cache):
    """BLPOP bounds itself: neither the guard's timeout nor redis-py's cuts it, and it is not slow."""
    cache.protect(
        guard={"timeout": 0.4, "breaker": nimble(slow_call_duration_threshold=0.5)}, socket_timeout=0.5
    )
    for _ in range(4):
        with Stopwatch() as watch:
            assert cache.do(lambda client: client.blpop("nobody", timeout=0.6)) is None
        assert watch.seconds >= 0.55
    snapshot = cache.guard.snapshot()
    assert (snapshot.state, snapshot.failed, snapshot.slow) == ("closed", 0, 0)


@pytest.mark.slow
def test_blocking_pop_of_seven_seconds_under_a_second(cache):
    """The case of the default client: BLPOP 7 under a timeout of 1, which redis-py alone fails after 5."""
    cache.protect(guard={"timeout": 1.0}, socket_timeout=5)
    with Stopwatch() as watch:
        assert cache.do(lambda client: client.blpop("nobody", timeout=7)) is None
    assert watch.seconds >= 6.9


@pytest.mark.sampled
@pytest.mark.parametrize(
    "wait",
    [
        lambda client: client.xread({"stream": "$"}, block=600),
        lambda client: client.blmove("nobody", "other", timeout=0.6),
        lambda client: client.bzpopmin("nobody", timeout=0.6),
        lambda client: client.wait(3, 600),
        lambda client: client.pipeline(transaction=False).blpop("nobody", 0.3).blpop("nobody", 0.3).execute(),
    ],
    ids=["XREAD", "BLMOVE", "BZPOPMIN", "WAIT", "pipeline"],
)
def test_every_waiting_command_is_known(cache, wait):
    """Each command that waits on purpose is given its own time on top."""
    cache.protect(guard={"timeout": 0.3})
    with Stopwatch() as watch:
        cache.do(wait)
    assert watch.seconds >= 0.55


def test_frozen_server_ends_a_blocking_pop(cache, valkey):
    """A blocking command ends at its own timeout plus the guard's when the server is gone."""
    cache.protect(guard={"timeout": 0.3})
    warm(cache)
    with frozen(valkey):
        late_by(cache, lambda client: client.blpop("nobody", timeout=0.4), 0.7)


def test_no_element_is_lost_to_a_deadline(cache, valkey):
    """150 pushes, 150 pops, with deadlines that run out around the pops: every element arrives once."""
    cache.protect(guard={"timeout": 2.0})
    cache.do(lambda client: client.delete("queue"))
    other = redis.Redis(port=valkey.port)

    def push():
        for number in range(150):
            other.rpush("queue", number)
            time.sleep(0.003)

    pusher = threading.Thread(target=push)
    pusher.start()
    got = []
    end = time.monotonic() + 20
    while len(got) < 150 and time.monotonic() < end:
        # Stopped or refused before the server was asked, as on a machine that stalls, is no loss.
        with contextlib.suppress(CallTimeoutError, DeadlineSpentError), deadline(0.02):
            element = cache.do(lambda client: client.blpop("queue", timeout=0.05))
            if element is not None:
                got.append(int(element[1]))
    pusher.join()
    other.close()
    assert got == list(range(150))


def test_frozen_server_opens_the_circuit_and_heals(cache, valkey):
    """The circuit opens by the slow threshold, refuses at once, and closes by itself after the fault."""
    cache.protect(guard={"timeout": 2.0, "max_concurrent_calls": 4, "breaker": nimble()})
    warm(cache)
    with frozen(valkey):
        with Stopwatch() as watch:
            results = cache.all([SHAPES["command"]] * 4)
        assert watch.seconds < 2.0 + LATE
        assert all(isinstance(error, CallTimeoutError) for error in results)
        assert cache.guard.state != "closed"
        assert cache.guard.snapshot().slow >= 3  # by the threshold, long before their deadlines

    def try_again():
        with contextlib.suppress(CircuitOpenError, CallTimeoutError):
            cache.do(SHAPES["command"])
        return cache.guard.state == "closed"

    poll(try_again, "the circuit has closed by itself", 0.3 + 1.0 + 2.0)


def test_restarted_server_is_found_again(cache, valkey):
    """kill -9 and a restart cost errors while the server is away, and nothing after."""
    cache.protect(guard={"timeout": 0.5})
    warm(cache)
    valkey.kill()
    with pytest.raises((redis.ConnectionError, CallTimeoutError)):
        cache.do(SHAPES["command"])
    valkey.restart()
    assert cache.do(lambda client: client.set("key", "value"))


def test_refused_connections_open_the_circuit_and_it_heals(cache, wire):
    """No server listens: the circuit opens, refused calls send nothing, and it closes by itself."""
    guard = cache.protect(guard={"timeout": 1.0, "breaker": nimble(minimum_number_of_calls=4)})
    wire.refuse()
    for _ in range(4):
        with pytest.raises(redis.ConnectionError):
            cache.do(SHAPES["command"])
    assert guard.state == "open"
    with Stopwatch() as watch, pytest.raises(CircuitOpenError):
        cache.do(SHAPES["command"])
    assert watch.seconds < 1.0
    wire.heal()

    def closed():
        with contextlib.suppress(CircuitOpenError):
            cache.do(SHAPES["command"])
        return guard.state == "closed"

    poll(closed, "the circuit has closed by itself", 0.3 + 1.0 + 2.0)


def test_full_memory_is_the_servers_fault(cache, valkey):
    """A real OOM: writes fail and count, reads go on."""
    guard = cache.protect()
    with redis.Redis(port=valkey.port) as other:
        other.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.OutOfMemoryError):
                cache.do(lambda client: client.set("key", "value"))
            cache.do(SHAPES["command"])
        finally:
            other.config_set("maxmemory", 0)
    assert (guard.snapshot().failed, guard.snapshot().succeeded) == (1, 1)


def test_write_to_a_replica_is_the_servers_fault(cache, valkey):
    """A real READONLY: the master has become a replica."""
    guard = cache.protect()
    with redis.Redis(port=valkey.port) as other:
        other.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(redis.ReadOnlyError):
                cache.do(lambda client: client.set("key", "value"))
        finally:
            other.replicaof("NO", "ONE")
    assert guard.snapshot().failed == 1


# --- what an error leaves behind ---------------------------------------------------------------


def is_gone(cache, work):
    """Whether the guard's error is, as soon as it has been handled, without the collector's help."""
    seen = []

    def sync_work(client):
        try:
            work(client)
        except GuardrailsError as error:
            seen.append(weakref.ref(error))

    async def async_work(client):
        try:
            await work(client)
        except GuardrailsError as error:
            seen.append(weakref.ref(error))

    gc.collect()
    gc.disable()
    try:
        cache.do(async_work if cache.is_async else sync_work)
        return seen[0]() is None
    finally:
        gc.enable()


@pytest.mark.sampled
@pytest.mark.parametrize("when", ["cold", "warm"])
def test_a_timeout_is_gone_when_it_has_been_handled(cache, valkey, work, when):
    """No frame that its traceback keeps may keep the error in turn, with the client's buffers and all."""
    cache.protect(guard={"timeout": 0.2})
    if when == "warm":
        warm(cache)
    with frozen(valkey):
        assert is_gone(cache, work)


def test_a_handled_refusal_is_removed_from_the_request(cache, work):
    """Of these there are more."""
    cache.protect().force_open()
    assert is_gone(cache, work)
