"""A request whose client has left: which timers fire, and what may start."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool

from guardrails import CallAbandonedError, ClientGoneError, Guard, protect, remaining
from guardrails._dbapi import watchdog
from guardrails._pool.checkout import Checkout
from guardrails._runtime.loop_timers import Timer, timers
from guardrails._runtime.scope import Client, RequestScope, close, current, enter, waiting_client
from guardrails._runtime.task_timeout import cancel_at


@pytest.fixture
def request_scope():
    """A request with a client that is there."""
    request = enter(RequestScope(None, time.monotonic, None))
    request.client = Client()
    request.client.gone = False
    yield request
    close(request)


def test_a_timer_is_for_no_client_unless_it_says_so():
    class Other(Timer):
        __slots__ = ("due",)

    assert Other().is_for({Client()}) is False


@pytest.mark.parametrize(
    ("with_client", "in_request", "ends"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_only_a_task_that_ends_with_the_client_is_cancelled(request_scope, with_client, in_request, ends):
    async def main():
        if not in_request:
            close(request_scope)
        timer = cancel_at(time.monotonic() + 20, with_client=with_client)
        other = cancel_at(time.monotonic() + 30)
        timers().end_work_of(request_scope.client or Client())
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError as error:
            return timer.disarm(error), other.disarm(None)
        return timer.disarm(None), other.disarm(None)

    assert asyncio.run(main()) == (ends, False)


def test_the_timers_of_other_clients_keep_their_time(request_scope):
    async def main():
        first = cancel_at(time.monotonic() + 20, with_client=True)
        timers().end_work_of(Client())
        await asyncio.sleep(0.02)
        return first.disarm(None), first.due > asyncio.get_running_loop().time()

    assert asyncio.run(main()) == (False, True)


def test_the_timers_are_looked_through_once_for_clients_that_leave_together():
    """A proxy that drops its connections must not hold the loop up for the square of their number."""
    looks = []

    class Work(Timer):
        __slots__ = ("client", "due")

        def is_for(self, clients):
            looks.append(len(clients))
            return self.client in clients

        def fire(self):
            ended.append(self.client)

    async def main():
        clients = [Client() for _ in range(20)]
        for client in clients:
            work = Work()
            work.client = client
            timers().arm(work, 20.0)
        for client in clients[:19]:
            timers().end_work_of(client)
        await asyncio.sleep(0.05)
        assert ended == clients[:19]
        assert [work.client for work in timers().armed] == clients[19:]
        timers().armed.clear()

    ended = []
    asyncio.run(main())
    assert looks == [19] * 20


def test_work_without_a_limit_plans_no_timer():
    """Its time is infinite: it only waits for its client."""

    class Endless(Timer):
        __slots__ = ("due",)

        def fire(self):
            return None

    async def main():
        endless, soon = Endless(), Endless()
        timers().arm(endless, float("inf"))
        timers().arm(soon, 0.0)
        await asyncio.sleep(0.02)
        left = list(timers().armed)
        timers().disarm(endless)
        return left == [endless], timers().planned

    assert asyncio.run(main()) == (True, float("inf"))


def test_nothing_starts_any_more_in_a_request_without_its_client(request_scope):
    assert waiting_client(current(), "db") is request_scope.client
    assert remaining() is None
    request_scope.client.gone = True
    assert remaining() == 0.0
    with pytest.raises(ClientGoneError, match="'db' refused the call: the client of the request is gone"):
        waiting_client(current(), "db")
    assert request_scope.request_errors.failing == {("db", None)}


def test_a_scope_that_has_ended_is_part_of_no_request(request_scope):
    ended = current()
    close(request_scope)
    assert waiting_client(ended, "db") is None
    assert waiting_client(None, "db") is None


def test_no_caller_without_a_client_takes_a_connection(request_scope):
    """Its statement would not be sent."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=2, max_overflow=0)
    db = protect(engine, name="db")
    with engine.connect() as connection:
        request_scope.client.gone = True
        with pytest.raises(ClientGoneError):
            connection.execute(text("select 1"))
        with pytest.raises(ClientGoneError):
            Checkout(db).take_slots()
        db.set_mode("shadow")
        connection.execute(text("select 1"))
        waits = Checkout(db)
        waits.take_slots()
        waits.release_slots()
    assert dict(db.snapshot().rejected) == {}
    engine.dispose()


def test_a_call_in_a_thread_is_refused(request_scope):
    db = Guard("db", max_concurrent_calls=1, timeout=20)
    assert db.run(len, "x") == 1
    request_scope.client.gone = True
    with pytest.raises(ClientGoneError):
        db.run(len, "x")
    assert (db.snapshot().in_use, dict(db.snapshot().rejected)) == (0, {})


class Stopped:
    """A driver that takes notes."""

    def __init__(self):
        self.asked = []

    def cancel_target(self, connection):
        return connection

    def cancel(self, target, within):
        self.asked.append((target, within))

    cancel_again = cancel

    def kill(self, connection):
        self.asked.append(connection)

    def retire(self, connection):
        pass


@pytest.mark.parametrize("leaves", ["before", "meanwhile"])
def test_a_call_of_a_thread_is_stopped_when_its_client_leaves(leaves):
    """Also if it leaves between the start of the call and the moment at which the call is known."""
    client, driver = Client(), Stopped()
    client.gone = leaves == "before"
    call = watchdog.watch(driver, "connection", float("inf"))
    call.end_with(client)
    if leaves == "meanwhile":
        client.gone = True
        watchdog.end_work_of(client)
    end = time.monotonic() + 10
    while not driver.asked and time.monotonic() < end:
        time.sleep(0.005)
    assert driver.asked[0] == ("connection", watchdog.GRACE)
    assert call.late
    assert call.end()


def test_a_client_without_calls_is_not_kept():
    """Nothing would take it out of the list."""
    client = Client()
    watchdog.end_work_of(client)
    assert client not in watchdog._watchdog._left


def test_a_call_of_a_task_is_stopped_when_its_client_leaves(request_scope):
    """It is no failure, and its slot is back."""
    guard = Guard("db", max_concurrent_calls=3, timeout=30)

    def leave():
        request_scope.client.gone = True
        timers().end_work_of(request_scope.client)

    async def main():
        asyncio.get_running_loop().call_later(0.01, leave)
        await guard.run_async(asyncio.sleep, 30)

    with pytest.raises(CallAbandonedError):
        asyncio.run(main())
    seen = guard.snapshot()
    assert (seen.in_use, seen.failed, seen.abandoned) == (0, 0, 1)


def test_a_call_has_no_time_left_without_its_client(request_scope):
    with Guard("db", max_concurrent_calls=3, timeout=30).call() as call:
        assert call.remaining() > 0
        request_scope.client.gone = True
        assert call.remaining() == 0.0
