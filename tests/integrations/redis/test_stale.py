"""stale_if_error: the last answer stands in while the server is away, for a while, and nothing else does."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest
import redis

from guardrails import CallTimeoutError, CircuitOpenError, ConfigurationError, guarded
from guardrails.integrations.redis import stale_if_error
from guardrails.testing.clock import FakeClock
from support.redis_lab import QUIET, frozen, nimble


def reader(cache, **options):
    """A remembered function that reads a key through the guarded client, to be called like a plain one."""
    client = cache.client

    def get(key):
        return client.get(key)

    async def get_async(key):
        return await client.get(key)

    read = stale_if_error(**{"max_age": 300} | options)(
        guarded(cache.guard)(get_async if cache.is_async else get)
    )
    return lambda *args: cache.finish(lambda: read(*args))


def test_a_frozen_server_gets_a_stale_answer(cache, valkey):
    """While the server is frozen the last answer serves, by arguments; a new one replaces it afterwards."""
    cache.protect(guard={"timeout": 0.3})
    read = reader(cache)
    cache.do(lambda client: client.mset({"one": "1", "two": "2"}))
    assert (read("one"), read("two"), read("none")) == (b"1", b"2", None)
    with frozen(valkey):
        assert (read("one"), read("two"), read("none")) == (b"1", b"2", None)
        with pytest.raises(CallTimeoutError):
            read("never asked before")
    cache.do(lambda client: client.set("one", "new"))
    assert read("one") == b"new"


def test_an_open_circuit_gets_a_stale_answer(cache):
    """A refusal is answered at once, and sends nothing."""
    guard = cache.protect(guard={"breaker": nimble(wait_duration_in_open_state=60)})
    read = reader(cache)
    cache.do(lambda client: client.set("one", "1"))
    assert read("one") == b"1"
    guard.force_open()
    assert read("one") == b"1"
    assert guard.snapshot().rejected["circuit_open"] == 1
    with pytest.raises(CircuitOpenError):
        read("two")


def test_a_lost_server_gets_a_stale_answer(cache, wire):
    """A refused connection is a failure of the server, although no guard raised anything."""
    cache.protect()
    read = reader(cache)
    cache.do(lambda client: client.set("one", "1"))
    assert read("one") == b"1"
    wire.refuse()
    wire.reset()
    assert read("one") == b"1"
    with pytest.raises(redis.ConnectionError):
        read("two")


def test_a_command_error_is_raised(cache):
    """An answer about the command is the caller's to see, whatever the key held before."""
    cache.protect()
    read = reader(cache)
    cache.do(lambda client: client.set("key", "value"))
    assert read("key") == b"value"
    cache.do(lambda client: client.delete("key"))
    cache.do(lambda client: client.rpush("key", "element"))
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        read("key")
    cache.do(lambda client: client.delete("key"))


class Source:
    """A function that returns until the test makes it fail."""

    def __init__(self):
        self.error = None
        self.asked = 0

    def __call__(self, *args, **kwargs):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return [self.asked]


def test_answer_grows_too_old():
    """An answer serves for max_age and not a moment longer; serving it does not make it younger."""
    clock, source = FakeClock(), Source()
    read = stale_if_error(max_age=10, clock=clock)(source)
    first = read("key")
    source.error = redis.ConnectionError("gone")
    for _ in range(2):
        clock.advance(5)
        assert read("key") is first
    clock.advance(0.001)
    with pytest.raises(redis.ConnectionError) as caught:
        read("key")
    assert caught.value is source.error


def test_few_answers_are_kept():
    """The answer unused for longest is forgotten first; asking for one in an outage is using it."""
    source = Source()
    read = stale_if_error(max_age=10, max_entries=2)(source)
    read("a"), read("b")
    error = source.error = redis.TimeoutError("late")
    read("a")
    source.error = None
    read("c")
    source.error = error
    read("a"), read("c")
    with pytest.raises(redis.TimeoutError):
        read("b")


def test_arguments_by_name_and_by_position_are_distinguished():
    """The key is the arguments as they were passed; the order of names does not matter."""
    source = Source()
    read = stale_if_error(max_age=10)(source)
    named = read(one=1, two=2)
    source.error = redis.ConnectionError("gone")
    assert read(two=2, one=1) is named
    with pytest.raises(redis.ConnectionError):
        read(1, 2)


def test_unhashable_argument_shows_at_once():
    """It is found at the first call and not in the first outage; the function is not called."""
    source = Source()
    with pytest.raises(TypeError, match="unhashable"):
        stale_if_error(max_age=10)(source)(["key"])
    assert source.asked == 0


def test_a_cancellation_gets_no_stale_answer():
    """Who walks away gets no answer."""

    async def main():
        started = asyncio.Event()

        @stale_if_error(max_age=10)
        async def read(wait):
            started.set()
            await wait.wait()
            return 1

        wait = asyncio.Event()
        wait.set()
        assert await read(wait) == 1
        wait.clear()
        started.clear()
        task = asyncio.create_task(read(wait))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_threads_share_the_stale_answers():
    """Many threads note and recall at once; each gets an answer to its own question."""
    outage = threading.Event()
    wrong = []

    @stale_if_error(max_age=60, max_entries=8)
    def read(key):
        if outage.is_set() and key % 2:
            raise redis.ConnectionError("gone")
        return key

    def worker(seed):
        for turn in range(400):
            key = (seed + turn) % 12
            try:
                answer = read(key)
            except redis.ConnectionError:
                continue
            if answer != key:
                wrong.append((key, answer))
            if turn == 200:
                outage.set()

    threads = [threading.Thread(target=worker, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_decorated_function_keeps_its_name_and_signature():
    """Name, signature and kind are those of the function."""

    @stale_if_error(max_age=1)
    async def price(article: str) -> bytes: ...

    assert inspect.iscoroutinefunction(price)
    assert price.__name__ == "price"
    assert list(inspect.signature(price).parameters) == ["article"]


def test_bad_input_is_refused_in_words():
    """One error names all faults; a stream cannot be kept."""
    with pytest.raises(ConfigurationError, match=r"max_age must be.*max_entries must be.*clock must be"):
        stale_if_error(max_age=0, max_entries=0, clock="now")

    def stream():
        yield 1

    with pytest.raises(TypeError, match="generator"):
        stale_if_error(max_age=1)(stream)


def test_stale_answers_need_no_open_circuit(cache, valkey):
    """The memory needs no open circuit: every late call is answered for."""
    guard = cache.protect(guard={"timeout": 0.2, "breaker": QUIET})
    read = reader(cache)
    cache.do(lambda client: client.set("one", "1"))
    assert read("one") == b"1"
    with frozen(valkey):
        assert [read("one") for _ in range(3)] == [b"1"] * 3
    assert guard.state == "closed"
    assert guard.snapshot().failed == 3
