"""Deadlines and cancellations that race with what they stop: no slot, answer or order goes astray."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import threading
import time
import types

import anyio
import pytest
from conftest import on_loops, poll
from sqlalchemy import create_engine, text

from guardrails import CallTimeoutError, protect
from guardrails._alarm import Alarms, alarms
from guardrails.integrations.sqlalchemy import _stopping, _watchdog
from guardrails.integrations.sqlalchemy._drivers.asyncpg import Asyncpg

TRANSACTIONS = int(os.environ.get("GUARDRAILS_TRANSACTIONS", "600"))
"""With each driver; the promise is made for 3000."""

LIMIT = 0.035


def test_transactions_as_long_as_their_limit(lab):
    """Each answer is the asker's own, and only who was late is stopped, never who came after."""
    lab.protect(pool_size=4, max_overflow=2, guard={"breaker": None, "max_wait_duration": 30})

    def ask(number):
        if number % 5 == 0:
            return lambda: lab.query(f"select {number}")  # has all the time it wants
        length = LIMIT - 0.015 + number % 7 * 0.005

        def work(session):
            found = session.execute(f"select {number} from pg_sleep({length})", timeout=LIMIT)
            session.commit()
            return found

        return lambda: lab.run(work)

    late = 0
    for start in range(0, TRANSACTIONS, 6):
        answers = lab.all([ask(number) for number in range(start, start + 6)])
        for number, answer in enumerate(answers, start):
            if number % 5 and isinstance(answer, CallTimeoutError):
                late += 1
            else:
                assert answer == number
    print(f"{lab.driver}: {TRANSACTIONS} transactions, {late} of them stopped")
    assert 0 < late < TRANSACTIONS
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.server_side("true") <= 6


class Sweep:
    """Awaits a coroutine and does something at one of its await points."""

    def __init__(self, point, act):
        self.point = point
        self.act = act
        self.points = 0

    @types.coroutine
    def run(self, coroutine):
        """Everything the loop sends in or takes out passes through here."""
        step = lambda: coroutine.send(None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self.points += 1
            if self.points == self.point:
                self.act()
            try:
                sent = yield awaited
                step = lambda sent=sent: coroutine.send(sent)
            except BaseException as thrown:
                step = lambda thrown=thrown: coroutine.throw(thrown)


async def by_cancel(coroutine, point):
    """Cancels the task at an await point; returns how many were reached."""
    sweep = Sweep(point, lambda: asyncio.current_task().cancel())
    task = asyncio.ensure_future(_as_coroutine(sweep.run(coroutine)))
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return sweep.points


async def by_scope(coroutine, point):
    """The same with an anyio scope, which cancels again and again until it is left."""
    with anyio.CancelScope() as scope:
        sweep = Sweep(point, scope.cancel)
        await sweep.run(coroutine)
    return sweep.points


async def by_timeout(coroutine, point):
    """The same with the standard library's timeout."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as limit:
            sweep = Sweep(point, lambda: limit.reschedule(0))
            await sweep.run(coroutine)
    return sweep.points


async def _as_coroutine(awaitable):
    return await awaitable


async def transaction(lab):
    """The shortest there is."""
    async with lab.engine.connect() as connection:
        await connection.execute(text("select 1"))
        await connection.commit()


async def journey(lab):
    """A ping, savepoints, a stream that ends and one that is left, a ROLLBACK."""
    numbers = text(lab.backend.say("select n from generate_series(1, 5) n"))
    async with lab.engine.connect() as connection:
        async with connection.begin_nested():
            await connection.execute(text("select 1"))
        savepoint = await connection.begin_nested()
        await savepoint.rollback()
        streamed = await connection.stream(numbers, execution_options={"yield_per": 2})
        assert [row[0] async for row in streamed] == [1, 2, 3, 4, 5]
        left = await connection.stream(numbers, execution_options={"yield_per": 2})
        assert (await left.fetchone())[0] == 1
        await left.close()
        await connection.rollback()


@on_loops
@pytest.mark.parametrize("how", [by_cancel, by_scope, by_timeout])
@pytest.mark.parametrize(
    ("pool", "work"),
    [("cold", transaction), ("warm", transaction), ("warm", journey)],
    ids=lambda it: getattr(it, "__name__", it),
)
# SQLAlchemy logs, and the drivers warn about, what a cancelled connect leaves to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_cancellation_at_every_await_point(lab, how, pool, work):
    """Wherever a task is cancelled, the slot and the connection are back and the next answer is right."""
    lab.protect(pool_size=1, max_overflow=1, pool_pre_ping=work is journey)

    async def sweep():
        for point in itertools.count(1):
            if pool == "cold":
                await lab.engine.dispose()
            reached = await how(work(lab), point)
            assert asyncio.current_task().cancelling() == 0
            assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0), f"at point {point}"
            async with lab.engine.connect() as connection:
                assert (await connection.execute(text(f"select {point}"))).scalar() == point
            if reached < point:
                return point

    points = lab.runner.run(sweep())
    gc.collect()  # a driver whose connect was cancelled leaves a socket in a cycle
    assert points > 3
    assert lab.guard.snapshot().failed == 0
    poll(lambda: lab.server_side("true") <= 2, "only the pool's connections are left")


def test_many_deadlines_share_one_thread(tmp_path, monkeypatch):
    """Ten thousand statements with a deadline: no thread for each, no entry left, and hardly a wake-up."""
    looks = []
    look = _watchdog._Watchdog._look
    monkeypatch.setattr(_watchdog._Watchdog, "_look", lambda self, now: looks.append(1) or look(self, now))
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    protect(engine)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        threads, start = threading.active_count(), time.monotonic()
        for _ in range(10_000):
            connection.execute(text("select 1"))
        took = time.monotonic() - start
    assert threading.active_count() <= threads
    assert not _watchdog._watchdog.armed
    assert not _watchdog._watchdog._asked
    assert len(looks) <= 10 + took  # one when the first is due, and one for each that was then the earliest
    engine.dispose()


def test_many_deadlines_share_one_timer(monkeypatch):
    """The same on an event loop, which has one timer planned at most."""
    sweeps = []
    sweep = Alarms._sweep
    monkeypatch.setattr(Alarms, "_sweep", lambda self: sweeps.append(1) or sweep(self))

    async def main():
        bounds = _stopping.Bounds(Asyncpg(), lambda connection: connection, is_async=True)
        for number in range(10_000):
            assert bounds.run(int, (number,), None, 5.0) == number
            if number % 100 == 0:
                await asyncio.sleep(0)
        assert not alarms().armed
        assert sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled) <= 1
        return len(sweeps)

    assert asyncio.run(main()) <= 10
