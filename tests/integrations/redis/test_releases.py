"""A lock that was taken is released, whatever the guard refuses otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from functools import partial

import pytest
import redis
import redis.asyncio

from guardrails import BulkheadFullError, CallTimeoutError, CircuitOpenError, DeadlineSpentError, deadline
from guardrails.integrations.redis import _releases, giving_back
from guardrails.integrations.redis._releases import GRACE
from guardrails.integrations.redis._reserve import RESERVE
from support.redis_lab import LATE, QUIET, Stopwatch, frozen

REFUSALS = ["open circuit", "full pool", "spent deadline", "all three"]

UNLOCK = 'if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) else return 0 end'

UNLOCK_AND_WAKE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 1 end
redis.call('del', KEYS[2]) redis.call('lpush', KEYS[2], 1) redis.call('pexpire', KEYS[2], ARGV[2])
redis.call('del', KEYS[1]) return 0
"""


@pytest.fixture
def bare(valkey):
    """A client without a guard."""
    with redis.Redis(port=valkey.port) as client:
        client.flushdb()
        yield client
        client.flushdb()


@contextlib.contextmanager
def refusing(cache, refusal):
    """What the guard refuses every other call for, inside this block."""
    with contextlib.ExitStack() as stack:
        if refusal in {"full pool", "all three"}:
            held = [cache.finish(cache.pool.get_connection) for _ in range(cache.pool.max_connections)]
            for each in held:
                stack.callback(cache.finish, partial(cache.pool.release, each))
        if refusal in {"open circuit", "all three"}:
            cache.guard.force_open()
            stack.callback(cache.guard.reset)
        if refusal in {"spent deadline", "all three"}:
            stack.enter_context(deadline(0.001))
            time.sleep(0.01)
        yield


def refused(cache):
    """Whether the guard refuses an ordinary call."""
    with pytest.raises((CircuitOpenError, BulkheadFullError, DeadlineSpentError)):
        cache.do(lambda client: client.get("key"))
    return True


def lock_and_release(cache, bare):
    lock = cache.client.lock("given", timeout=60)
    assert cache.finish(lock.acquire)
    return lock.release, lambda: not bare.exists("given")


def lock_and_release_without_its_script(cache, bare):
    """The server has forgotten the script: NOSCRIPT, SCRIPT LOAD, EVALSHA."""
    release, is_given_back = lock_and_release(cache, bare)
    bare.script_flush()
    return release, is_given_back


def token(bare):
    bare.set("given", "token", px=60_000)
    return lambda: not bare.exists("given")


def script_by_text(cache, bare):
    return lambda: cache.client.eval(UNLOCK, 1, "given", "token"), token(bare)


def script_registered(cache, bare):
    release = cache.client.register_script(UNLOCK + " -- registered")
    return lambda: release(keys=["given"], args=["token"]), token(bare)


def script_loaded_by_hand(cache, bare):
    sha = cache.do(lambda client: client.script_load(UNLOCK + " -- loaded"))
    return lambda: cache.client.evalsha(sha, 1, "given", "token"), token(bare)


def script_in_a_pipeline(cache, bare):
    release = cache.client.register_script(UNLOCK + " -- piped")
    pipe = cache.client.pipeline()
    made = release(keys=["given"], args=["token"], client=pipe)
    if inspect.isawaitable(made):
        cache.finish(lambda: made)
    return pipe.execute, token(bare)


def read_message(bare):
    bare.xadd("stream", {"job": "1"}, id="1-1")
    bare.xgroup_create("stream", "workers", id="0")
    bare.xreadgroup("workers", "me", {"stream": ">"})
    return lambda: bare.xpending("stream", "workers")["pending"] == 0


def message_acknowledged(cache, bare):
    is_given_back = read_message(bare)
    return lambda: cache.client.xack("stream", "workers", "1-1"), is_given_back


def message_acknowledged_in_a_pipeline(cache, bare):
    is_given_back = read_message(bare)
    return cache.client.pipeline().xack("stream", "workers", "1-1").execute, is_given_back


def permit_marked(cache, bare):
    bare.zadd("permits", {"mine": 1})

    def give_back():
        with giving_back():
            return cache.client.zrem("permits", "mine")

    async def give_back_on_loop():
        with giving_back():
            return await cache.client.zrem("permits", "mine")

    return (give_back_on_loop if cache.is_async else give_back), lambda: not bare.exists("permits")


WAYS = [
    lock_and_release,
    lock_and_release_without_its_script,
    script_by_text,
    script_registered,
    script_loaded_by_hand,
    script_in_a_pipeline,
    message_acknowledged,
    message_acknowledged_in_a_pipeline,
    permit_marked,
]


@pytest.mark.sampled
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_releases_pass_a_guard_that_refuses(cache, bare, refusal, way):
    """It passes what refuses every other call, and costs no slot."""
    cache.protect(max_connections=2)
    give_back, is_given_back = way(cache, bare)
    assert not is_given_back()
    with refusing(cache, refusal):
        assert refused(cache)
        with Stopwatch() as watch:
            cache.finish(give_back)
    assert is_given_back()
    assert watch.seconds < GRACE + LATE
    assert cache.guard.snapshot().in_use == 0


@pytest.mark.parametrize("refusal", ["open circuit", "spent deadline"])
def test_releases_of_a_single_connection_pass(cache, bare, refusal):
    """A client that keeps one connection has it already."""
    cache.protect(single_connection_client=True)
    cache.do(lambda client: client.ping())
    give_back, is_given_back = lock_and_release(cache, bare)
    with refusing(cache, refusal):
        assert refused(cache)
        cache.finish(give_back)
    assert is_given_back()
    assert cache.do(lambda client: client.ping())
    assert cache.guard.snapshot().in_use == 1


def test_watched_keys_are_released(cache, bare):
    """``pipe.unwatch()`` and the end of the block send UNWATCH while the circuit is open."""
    cache.protect()

    def sync_work(client):
        with client.pipeline() as pipe:
            pipe.watch("key")
            cache.guard.force_open()
            with pytest.raises(CircuitOpenError):
                pipe.get("key")
            assert pipe.unwatch()
            cache.guard.reset()
            pipe.watch("key")
            cache.guard.force_open()

    async def async_work(client):
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            cache.guard.force_open()
            with pytest.raises(CircuitOpenError):
                await pipe.get("key")
            assert await pipe.unwatch()
            cache.guard.reset()
            await pipe.watch("key")
            cache.guard.force_open()

    before = bare.info("commandstats").get("cmdstat_unwatch", {"calls": 0})["calls"]
    cache.do(async_work if cache.is_async else sync_work)
    assert bare.info("commandstats")["cmdstat_unwatch"]["calls"] == before + 2
    assert cache.guard.snapshot().in_use == 0


@pytest.mark.parametrize(
    "work",
    [
        lambda client: client.set("key", 1),
        lambda client: client.delete("key"),
        lambda client: client.eval("return redis.call('SET', KEYS[1], 1)", 1, "key"),
        lambda client: client.eval("return redis.call('DEL', KEYS[1])", 1, "key"),
        lambda client: client.eval("return redis.call(ARGV[1], KEYS[1])", 1, "key", "DEL"),
        lambda client: client.evalsha("0" * 40, 0),
        lambda client: client.pipeline().xack("stream", "workers", "1-1").get("key").execute(),
        lambda client: client.pipeline().execute_command("GET", "key").execute(),
    ],
)
def test_nothing_else_passes(cache, work):
    """What takes something, or takes and gives, is refused."""
    cache.protect()
    cache.guard.force_open()
    with pytest.raises(CircuitOpenError):
        cache.do(work)


def test_a_lock_is_not_extended(cache, bare):
    """``extend`` and ``reacquire`` take the lock for longer: they are refused like any call."""
    cache.protect()
    lock = cache.client.lock("given", timeout=60)
    cache.finish(lock.acquire)
    cache.guard.force_open()
    for work in (lambda: lock.extend(10), lock.reacquire):
        with pytest.raises(CircuitOpenError):
            cache.finish(work)
    cache.finish(lock.release)


@pytest.mark.usefixtures("patient_releases")
def test_many_locks_are_released_over_a_few_connections(cache, bare):
    """While the pool is full they take turns on the reserve, whose connections are closed afterwards."""
    cache.protect(max_connections=20, guard={"max_wait_duration": 0})
    locks = [cache.client.lock(f"lock:{number}", timeout=60, thread_local=False) for number in range(20)]
    cache.all([lambda _, lock=lock: lock.acquire() for lock in locks])
    before = bare.info("clients")["connected_clients"]
    opened = bare.info("stats")["total_connections_received"]
    with refusing(cache, "full pool"):
        results = cache.all([lambda _, lock=lock: lock.release() for lock in locks])
        assert bare.info("clients")["connected_clients"] <= max(before, 21) + RESERVE
    assert results == [None] * 20
    assert not bare.keys("lock:*")
    assert bare.info("stats")["total_connections_received"] - opened <= 20 + 20
    assert cache.guard.snapshot().in_use == 0


def test_frozen_server_ends_a_release_in_a_quarter_of_a_second(cache, valkey, bare):
    """Its own time is little, and more callers than the reserve has connections wait no longer for one."""
    cache.protect(max_connections=4)
    locks = [cache.client.lock(f"lock:{number}", timeout=60, thread_local=False) for number in range(6)]
    for lock in locks:
        cache.finish(lock.acquire)
    cache.guard.force_open()
    with frozen(valkey), Stopwatch() as watch:
        results = cache.all([lambda _, lock=lock: lock.release() for lock in locks])
    assert watch.seconds < GRACE + LATE
    kinds = {type(result) for result in results}
    assert CallTimeoutError in kinds
    assert kinds <= {CallTimeoutError, CircuitOpenError}
    cache.guard.reset()


def test_a_release_gets_its_time_even_if_a_little_is_left(cache, wire, bare):
    """With a hundredth of a second left it has a quarter of one."""
    cache.protect()
    lock = cache.client.lock("given", timeout=60)
    cache.finish(lock.acquire)
    wire.delay(0.05)
    with deadline(0.03):
        cache.finish(lock.release)
    assert not bare.exists("given")


# --- the body's own error ----------------------------------------------------------------------


def leave_with_an_error(cache, spoil):
    """``with lock:`` whose body raises a KeyError after something was done to the guard or the server."""

    def sync_work(client):
        with client.lock("given", timeout=60):
            spoil()
            raise KeyError("the body's")

    async def async_work(client):
        async with client.lock("given", timeout=60):
            spoil()
            raise KeyError("the body's")

    cache.do(async_work if cache.is_async else sync_work)


def test_the_error_of_the_body_is_seen_and_the_lock_released(cache, bare):
    """An open circuit changes neither."""
    cache.protect()
    with pytest.raises(KeyError, match="the body's") as caught:
        leave_with_an_error(cache, cache.guard.force_open)
    assert not hasattr(caught.value, "__notes__")
    assert not bare.exists("given")


@pytest.mark.parametrize("circuit", ["closed", "open"])
def test_the_error_of_the_body_is_seen_although_the_lock_stays(cache, valkey, bare, circuit):
    """A frozen server keeps the lock; the body's error is raised, with a note about it."""
    cache.protect(guard={"timeout": 0.3, "breaker": QUIET})
    with contextlib.ExitStack() as stack:

        def spoil():
            stack.enter_context(frozen(valkey))
            if circuit == "open":
                cache.guard.force_open()

        with Stopwatch() as watch, pytest.raises(KeyError, match="the body's") as caught:
            leave_with_an_error(cache, spoil)
    assert watch.seconds < 0.3 + LATE
    assert "its lock was not released: 'cache' stopped the call" in caught.value.__notes__[0]


def test_an_error_that_was_handled_is_not_raised_again(cache, valkey, bare):
    """If the lock is released by hand in an ``except`` block, its own error is raised."""
    cache.protect(guard={"timeout": 0.3, "breaker": QUIET})
    lock = cache.client.lock("given", timeout=60)
    cache.finish(lock.acquire)
    with frozen(valkey), pytest.raises(CallTimeoutError):
        try:
            raise KeyError("handled")
        except KeyError:
            cache.finish(lock.release)


# --- how it is known ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "releases"),
    [
        (redis.lock.Lock.LUA_RELEASE_SCRIPT, True),
        (redis.asyncio.lock.Lock.LUA_RELEASE_SCRIPT, True),
        (redis.lock.Lock.LUA_EXTEND_SCRIPT, False),
        (redis.lock.Lock.LUA_REACQUIRE_SCRIPT, False),
        (UNLOCK, True),
        (UNLOCK.encode(), True),
        ("if redis.pcall ( 'hget', KEYS[1], 'o') == ARGV[1] then redis.pcall('unlink', KEYS[1]) end", True),
        (UNLOCK_AND_WAKE, True),
        ("redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, 1) redis.call('ZADD', KEYS[1], 1, 'a')", False),
        ("redis.call('GET', 'a') redis.call('DEL', 'a') redis.call(ARGV[1], 'a')", False),
        ("return redis.call('GET', KEYS[1])", False),
        ("return 1", False),
        (7, False),
    ],
)
def test_a_script_releases_if_it_compares_and_removes_and_takes_nothing(script, releases):
    """So the locks of other libraries are known, too."""
    assert _releases.is_release([("EVAL", script, 0)]) is releases


def test_redis_py_has_the_functions_and_names_that_are_looked_for():
    """A release of redis-py that renames them must be looked at."""
    for code in _releases._SENDS_ONE.values():
        assert "args" in code.co_varnames + code.co_cellvars
    for code in _releases._SENDS_MANY.values():
        assert "stack" in code.co_varnames + code.co_cellvars
    for code in _releases._ENDS_BLOCK.values():
        assert "exc_value" in code.co_varnames
    assert len(_releases._SENDS_ONE) == 6


def test_the_mark_ends_with_its_block():
    """And nests, and is a task's own."""
    with giving_back():
        with giving_back():
            pass
        assert _releases.in_giving_back()
    assert not _releases.in_giving_back()

    async def main():
        with giving_back():
            other = asyncio.create_task(asyncio.sleep(0))
            await other
        return _releases.in_giving_back()

    assert asyncio.run(main()) is False


# --- UNWATCH, which redis-py sends by itself ---------------------------------------------------


def watch_and_leave(cache, then=lambda: None):
    def sync_work(client):
        with client.pipeline() as pipe:
            pipe.watch("key")
            then()

    async def async_work(client):
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            then()

    cache.do(async_work if cache.is_async else sync_work)


def test_a_transaction_that_is_given_up_keeps_its_connection(cache, bare):
    """UNWATCH is sent; the next command does not pay for a new connection, and nothing is watched."""
    cache.protect(max_connections=1)
    before = cache.do(lambda client: client.client_id())
    for _ in range(3):
        watch_and_leave(cache)
        assert cache.do(lambda client: client.client_id()) == before
    bare.set("key", "changed")
    assert cache.do(lambda client: client.pipeline().set("key", "mine").execute()) == [True]


def test_the_error_of_a_transactions_body_is_seen(cache, bare):
    """And its connection is kept."""
    cache.protect(max_connections=1)
    before = cache.do(lambda client: client.client_id())

    def fail():
        raise KeyError("the body's")

    with pytest.raises(KeyError, match="the body's"):
        watch_and_leave(cache, fail)
    assert cache.do(lambda client: client.client_id()) == before


@pytest.mark.parametrize("parts", ["the guard", "redis-py"])
def test_a_frozen_server_is_unwatched_for_a_quarter_of_a_second(cache, valkey, parts):
    """Then the connection is closed, which has the same effect; no error comes of it."""
    timeouts = {"socket_timeout": 0.1} if parts == "redis-py" else {}
    cache.protect(max_connections=1, **timeouts)
    before = cache.do(lambda client: client.client_id())
    with contextlib.ExitStack() as stack, Stopwatch() as watch:
        watch_and_leave(cache, lambda: stack.enter_context(frozen(valkey)))
    assert watch.seconds < GRACE + LATE
    assert cache.do(lambda client: client.client_id()) != before
    assert cache.guard.snapshot().in_use == 0


def test_a_health_check_that_is_due_does_not_hold_up_unwatch(cache, bare):
    """It would be a piece of work of its own, which an open circuit refuses."""
    cache.protect(max_connections=1, health_check_interval=1)
    before = cache.do(lambda client: client.client_id())

    def due():
        (connection,) = cache.pool._in_use_connections
        connection.next_health_check = 0
        cache.guard.force_open()

    watch_and_leave(cache, due)
    cache.guard.reset()
    assert cache.do(lambda client: client.client_id()) == before


def test_an_interrupt_between_unwatch_and_its_answer_spoils_no_later_command(cache, bare):
    """The connection is closed at its next checkout, and no old moment bounds what is read then."""
    cache.protect(max_connections=1)
    cache.do(lambda client: client.set("key", "value"))
    connection = cache.finish(cache.pool.get_connection)
    cache.finish(lambda: connection.send_command("UNWATCH"))
    cache.finish(lambda: cache.pool.release(connection))
    time.sleep(GRACE + 0.05)
    for _ in range(2):
        assert cache.do(lambda client: client.get("key")) == b"value"


def test_what_replaces_the_reading_of_one_connection_is_called(cache, bare):
    """As redis-py's own tests do it."""
    cache.protect(max_connections=1)
    called = []

    def watch(connection):
        plain = connection.read_response

        def read_response(*args, **kwargs):
            called.append(True)
            return plain(*args, **kwargs)

        connection.read_response = read_response

    watch_and_leave(cache, lambda: watch(next(iter(cache.pool._in_use_connections))))
    assert called == [True]
    assert cache.do(lambda client: client.ping())
    assert called == [True, True]


def test_a_cancelled_task_leaves_no_unread_answer(cache, wire):
    """A task that is cancelled while UNWATCH is under way closes the connection."""
    if not cache.is_async:
        pytest.skip("tasks are of event loops")
    cache.protect(max_connections=1)
    cache.do(lambda client: client.set("key", "value"))

    async def work(client):
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            wire.delay(0.1)

    async def main(client):
        task = asyncio.create_task(work(client))
        while not task.done():
            await asyncio.sleep(0.05)
            task.cancel()
            break
        with contextlib.suppress(asyncio.CancelledError):
            await task
        wire.heal()
        return await client.get("key")

    assert cache.do(main) == b"value"
