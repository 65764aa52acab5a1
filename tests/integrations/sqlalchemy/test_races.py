"""Deadlines that race with what they stop: no slot, answer or order goes astray."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest
from sqlalchemy import create_engine, text

from guardrails import CallTimeoutError, protect
from guardrails._dbapi import stopping, watchdog
from guardrails._dbapi.drivers.asyncpg import Asyncpg
from guardrails._runtime.loop_timers import LoopTimers, timers

TRANSACTIONS = int(os.environ.get("GUARDRAILS_TRANSACTIONS", "600"))
"""With each driver; the promise is made for 3000."""

LIMIT = 0.035


@pytest.mark.sampled(1)
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
    lab.until(lambda: lab.server_side("true") <= 6, "the stopped sessions have ended")


def test_many_deadlines_share_one_thread(tmp_path, monkeypatch):
    """Ten thousand statements with a deadline: no thread for each, no entry left, and hardly a wake-up."""
    looks = []
    look = watchdog._Watchdog._look
    monkeypatch.setattr(watchdog._Watchdog, "_look", lambda self, now: looks.append(1) or look(self, now))
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    protect(engine)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        threads, start = threading.active_count(), time.monotonic()
        for _ in range(10_000):
            connection.execute(text("select 1"))
        took = time.monotonic() - start
    assert threading.active_count() <= threads
    assert not watchdog._watchdog.armed
    assert not watchdog._watchdog._cancelled
    assert len(looks) <= 10 + took  # one when the first is due, and one for each that was then the earliest
    engine.dispose()


def test_many_deadlines_share_one_timer(monkeypatch):
    """The same on an event loop, which has one timer planned at most."""
    sweeps = []
    sweep = LoopTimers._sweep
    monkeypatch.setattr(LoopTimers, "_sweep", lambda self: sweeps.append(1) or sweep(self))

    async def main():
        limiter = stopping.TimeLimiter(
            Asyncpg(), lambda connection: connection, is_async=True, slots=lambda: 5
        )
        for number in range(10_000):
            assert limiter.run(int, (number,), None, 5.0) == number
            if number % 100 == 0:
                await asyncio.sleep(0)
        assert not timers().armed
        assert sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled) <= 1
        return len(sweeps)

    assert asyncio.run(main()) <= 10


def test_a_failing_cancel_leaves_other_deadlines_alone():
    """A connection that other code has closed does not prevent the loop's other deadlines."""
    orders = []

    class Broken(Asyncpg):
        interrupts_task = False

        def cancel(self, connection, within):
            orders.append("cancel")
            raise ValueError("no active connection")

        def cancel_again(self, connection, within):
            orders.append("cancel_again")
            raise ValueError("no active connection")

        def kill(self, connection):
            orders.append("kill")
            raise ValueError("no active connection")

    async def main():
        limiter = stopping.TimeLimiter(
            Broken(), lambda connection: connection, is_async=True, slots=lambda: 5
        )
        for _ in range(2):
            limiter.start_limit("a connection", 0.01)
            end = time.monotonic() + 5
            while timers().armed and time.monotonic() < end:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert orders == ["cancel", "cancel_again", "kill"] * 2
