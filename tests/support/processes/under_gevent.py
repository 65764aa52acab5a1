"""A guard in a process that gevent has patched: one check for each name, which is given as an argument."""

from __future__ import annotations

import sys

from gevent import monkey

if sys.argv[1:] != ["patched_late"]:
    monkey.patch_all()

import contextlib
import contextvars
import time

import gevent
import sqlalchemy
from redis import Redis

from guardrails import (
    BreakerPolicy,
    CallTimeoutError,
    CircuitOpenError,
    DeadlineSpentError,
    Guard,
    RejectedError,
    deadline,
    protect,
    remaining,
)
from guardrails.testing.servers import PostgresServer, ValkeyServer

LONG = 30


@contextlib.contextmanager
def a_hub_that_goes_on():
    """Fails if the block keeps every other greenlet from running, as one call after the other would."""
    ticks = []

    def tick():
        while True:
            ticks.append(time.monotonic())
            gevent.sleep(0.01)

    ticking = gevent.spawn(tick)
    try:
        yield
    finally:
        ticking.kill()
    assert len(ticks) > 12


def in_the_end(true):
    """Waits for a server that was frozen or busy."""
    with gevent.Timeout(LONG):
        while not true():
            gevent.sleep(0.05)


def narrow(**options):
    """One slot, and a queue in front of it."""
    settings = {"max_wait_duration": LONG, "max_waiting": 10, "timeout": None} | options
    return Guard("db", max_concurrent_calls=1, **settings)


def how_it_ends(fn):
    """The type of what a call raises, or None."""
    try:
        fn()
    except Exception as error:
        return type(error)
    return None


def all_of(greenlets):
    """What each of them returned."""
    assert len(gevent.joinall(greenlets, timeout=LONG)) == len(greenlets)
    return [greenlet.value for greenlet in greenlets]


def waiting():
    """Callers queue in their order, and only they stand still."""
    guard, served = narrow(), []

    def body(number):
        gevent.sleep(0.06)
        served.append(number)

    with a_hub_that_goes_on():
        all_of([gevent.spawn(guard.run, body, number) for number in range(6)])
    assert served == [0, 1, 2, 3, 4, 5]


def deadlines():
    """They bound a wait, are seen by the work, and go along where the context does."""
    guard, hasty = narrow(), narrow(timeout=0.02)
    with a_hub_that_goes_on(), guard.call():

        def wait():
            with deadline(0.3):
                guard.run(int)

        began = time.monotonic()
        assert gevent.spawn(how_it_ends, wait).get(timeout=LONG) is DeadlineSpentError
        assert 0.25 <= time.monotonic() - began < LONG
        assert guard.snapshot().rejected == {"deadline_spent": 1}
    hasty.run(gevent.sleep, 0.1)
    assert hasty.snapshot().failed == 1
    with deadline(LONG):
        assert gevent.spawn(remaining).get() is None
        assert gevent.spawn(contextvars.copy_context().run, remaining).get() > 0
    assert remaining() is None


def endings():
    """A greenlet that is killed or runs into gevent.Timeout, in the queue or inside, keeps nothing."""
    guard = narrow()
    holder = gevent.spawn(guard.run, gevent.sleep, LONG)
    gevent.sleep(0)
    killed = gevent.spawn(guard.run, int)

    def give_up():
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(0.05):
            guard.run(int)
        return guard.snapshot().waiting

    impatient = gevent.spawn(give_up)
    heir = gevent.spawn(guard.run, lambda: "served")
    gevent.sleep(0)
    assert guard.snapshot().waiting == 3
    killed.kill()
    assert impatient.get(timeout=LONG) == 1
    holder.kill()
    assert heir.get(timeout=LONG) == "served"
    with contextlib.suppress(gevent.Timeout), gevent.Timeout(0.05):
        guard.run(gevent.sleep, LONG)
    now = guard.snapshot()
    assert (now.in_use, now.waiting, now.succeeded, now.failed, now.abandoned) == (0, 0, 1, 0, 2)


def opening():
    """Everybody in the queue is sent away at once."""
    guard = narrow(breaker=BreakerPolicy(minimum_number_of_calls=1, consecutive_failures=1))

    def fail():
        gevent.sleep(0.05)
        raise LookupError

    calls = [gevent.spawn(how_it_ends, lambda: guard.run(fail))]
    gevent.sleep(0)
    calls += [gevent.spawn(how_it_ends, lambda: guard.run(int)) for _ in range(5)]
    assert all_of(calls) == [LookupError] + 5 * [CircuitOpenError]


def patched_late():
    """A guard that is older than the patch has locks of threads, and keeps nobody from running."""
    guard = narrow()
    monkey.patch_all(ssl=False)  # gevent itself refuses that one once it is imported
    with a_hub_that_goes_on():
        all_of([gevent.spawn(guard.run, gevent.sleep, 0.06) for _ in range(6)])
    assert guard.snapshot().succeeded == 6


def redis():
    """A frozen server costs each command its deadline, and the process nothing."""
    with ValkeyServer.start() as server, Redis.from_url(server.url()) as client:
        guard = protect(client, timeout=1, max_concurrent_calls=5, max_wait_duration=0.05, breaker=None)
        assert client.get("key") is None
        server.freeze()
        try:
            with a_hub_that_goes_on():
                ends = all_of([gevent.spawn(how_it_ends, lambda: client.get("key")) for _ in range(8)])
        finally:
            server.thaw()
        assert ends.count(CallTimeoutError) == 5
        assert sum(issubclass(end, RejectedError) for end in ends) == 3
        assert guard.snapshot().in_use == 0
        in_the_end(lambda: how_it_ends(lambda: client.get("key")) is None)


def psycopg():
    """psycopg 3 waits with gevent; what runs too long is stopped on the server."""
    with PostgresServer.start() as server:
        engine = sqlalchemy.create_engine(server.url("psycopg"))
        guard = protect(engine, timeout=1, max_concurrent_calls=5, max_wait_duration=0.05, breaker=None)

        def query(text):
            with engine.connect() as connection:
                return connection.scalar(sqlalchemy.text(text))

        query("SELECT 1")
        with a_hub_that_goes_on():
            ends = all_of([gevent.spawn(how_it_ends, lambda: query("SELECT pg_sleep(20)")) for _ in range(8)])
        assert ends.count(CallTimeoutError) == 5
        assert sum(issubclass(end, RejectedError) for end in ends) == 3
        assert guard.snapshot().in_use == 0
        asleep = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND state = 'active'"
        )
        in_the_end(lambda: query(asleep) == 1)  # itself alone
        engine.dispose()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("fine")
