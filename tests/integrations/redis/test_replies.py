"""No caller gets the reply of another, however calls end: 10,000 unique values through a slow wire."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time

import pytest
import redis
import redis.asyncio
from redis.connection import Connection

from guardrails import CallTimeoutError, RejectedError, deadline, protect
from guardrails.testing.proxy import FaultProxy
from support.redis_lab import QUIET, with_each_parser

pytestmark = [pytest.mark.usefixtures("parser"), with_each_parser]

CALLS = int(os.environ.get("GUARDRAILS_REDIS_CALLS", "1200"))
"""Per flavour; a release runs 10,000."""

in_every_size = pytest.mark.parametrize("calls", [240, pytest.param(CALLS, marks=pytest.mark.slow)])

ENDS = (RejectedError, CallTimeoutError, redis.ConnectionError, redis.WatchError, asyncio.CancelledError)


def patience(dice):
    """Seconds: too few for some calls, and plenty for one in four on any machine."""
    return dice.uniform(0.002, 0.08) if dice.random() < 0.75 else 30


def sync_work(client, shape, value):
    """Asks for a unique value in one of three shapes and returns all replies to it."""
    if shape == 0:
        return [client.echo(value)]
    pipe = client.pipeline(transaction=shape == 2)
    return pipe.echo(value).echo(value).execute()


async def async_work(client, shape, value):
    """See ``sync_work``."""
    if shape == 0:
        return [await client.echo(value)]
    pipe = client.pipeline(transaction=shape == 2)
    return await pipe.echo(value).echo(value).execute()


@in_every_size
def test_threads_get_their_own_replies(valkey, calls):
    """Commands, pipelines and transactions with random deadlines, in threads."""
    with FaultProxy(valkey.port) as proxy:
        proxy.delay(0.002)
        client = redis.Redis(port=proxy.port, max_connections=8)
        guard = protect(client, name="cache", breaker=QUIET, max_wait_duration=1)
        foreign, stopped = [], []

        def worker(seed):
            dice = random.Random(seed)
            for number in range(calls // 6):
                value = f"{seed}-{number}".encode()
                try:
                    with deadline(patience(dice)):
                        replies = sync_work(client, dice.randrange(3), value)
                except ENDS:
                    stopped.append(value)
                else:
                    if set(replies) != {value}:
                        foreign.append((value, replies))

        threads = [threading.Thread(target=worker, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not foreign
        assert 0 < len(stopped) < calls
        whole_again(client, guard)
        client.close()


@in_every_size
def test_tasks_get_their_own_replies(valkey, calls):
    """The same in tasks that are cancelled, or stopped at their deadline, at random."""

    async def main(port):
        client = redis.asyncio.Redis(port=port, max_connections=8)
        guard = protect(client, name="cache", breaker=QUIET, max_wait_duration=1)
        foreign, stopped = [], []

        async def ask(dice, value):
            with deadline(patience(dice)):
                return await async_work(client, dice.randrange(3), value)

        async def worker(seed):
            dice = random.Random(seed)
            for number in range(calls // 6):
                value = f"{seed}-{number}".encode()
                task = asyncio.create_task(ask(dice, value))
                if dice.random() < 0.4:
                    asyncio.get_running_loop().call_later(dice.uniform(0, 0.02), task.cancel)
                try:
                    replies = await task
                except ENDS:
                    stopped.append(value)
                else:
                    if set(replies) != {value}:
                        foreign.append((value, replies))

        await asyncio.gather(*map(worker, range(6)))
        assert not foreign
        assert 0 < len(stopped) < calls
        assert guard.snapshot().in_use == 0
        assert not client.connection_pool._in_use_connections
        values = [f"last-{number}".encode() for number in range(8)]
        assert await asyncio.gather(*map(client.echo, values)) == values
        await client.aclose()

    with FaultProxy(valkey.port) as proxy:
        proxy.delay(0.002)
        asyncio.run(main(proxy.port))


def whole_again(client, guard):
    """The pool lends out all it has, at once, and each connection answers what it is asked."""
    assert guard.snapshot().in_use == 0
    pool = client.connection_pool
    assert not pool._in_use_connections
    connections = [pool.get_connection() for _ in range(pool.max_connections)]
    for number, connection in enumerate(connections):
        connection.send_command("ECHO", f"last-{number}")
    assert [connection.read_response() for connection in connections] == [
        f"last-{number}".encode() for number in range(pool.max_connections)
    ]
    for connection in connections:
        pool.release(connection)


def test_signal_in_the_middle_of_a_read(valkey):
    """A KeyboardInterrupt between question and answer closes the connection."""

    def interrupt(*_):
        raise KeyboardInterrupt

    client = redis.Redis(port=valkey.port, max_connections=1)
    guard = protect(client, name="cache", breaker=QUIET)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            client.blpop("nobody", timeout=5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert client.echo("mine") == b"mine"
    assert guard.snapshot().in_use == 0
    client.close()


def leave_reply_unread(client):
    """Uses a connection by hand and gives it back too soon."""
    connection = client.connection_pool.get_connection()
    connection.send_command("ECHO", "STALE")
    client.connection_pool.release(connection)
    time.sleep(0.1)  # now the reply is there


def test_an_unread_reply_reaches_no_caller(valkey):
    """The hole in redis-py, and that it is closed: a reply left on a connection never reaches a caller."""
    plain = redis.Redis(port=valkey.port, max_connections=1)
    leave_reply_unread(plain)
    assert plain.echo("mine") == b"STALE", (
        "redis-py has closed the hole itself: say so in docs/guides/redis.md"
    )
    plain.close()
    client = redis.Redis(port=valkey.port, max_connections=1)
    protect(client, name="cache")
    leave_reply_unread(client)
    assert client.echo("mine") == b"mine"
    client.close()


def test_a_reply_that_arrives_in_the_pool_reaches_no_caller(valkey):
    """The second net: what an idle connection has to read when it is handed out closes it."""
    client = redis.Redis(port=valkey.port, max_connections=1)
    protect(client, name="cache")
    assert client.echo("first") == b"first"
    (connection,) = client.connection_pool._available_connections
    Connection.send_packed_command(connection, connection.pack_command("ECHO", "STALE"))
    time.sleep(0.1)
    assert client.echo("mine") == b"mine"
    client.close()


def test_error_in_the_middle_of_a_pipeline_closes_the_connection(valkey):
    """A reply's conversion that fails leaves the rest of the pipeline unread: that connection is closed."""
    client = redis.Redis(port=valkey.port, max_connections=1)
    protect(client, name="cache")

    def burst(reply, **_):
        raise ValueError("cannot be converted")

    client.set_response_callback("ECHO", burst)
    with pytest.raises(ValueError, match="converted"):
        client.pipeline(transaction=False).echo("a").get("b").get("c").execute()
    del client.response_callbacks["ECHO"]
    assert client.echo("mine") == b"mine"
    client.close()
