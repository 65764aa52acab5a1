"""A guard's clock that stands still while the event loop does."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import BreakerPolicy, BulkheadFullError, CircuitOpenError, protect
from guardrails.integrations import loop_clock
from guardrails.integrations.loop_clock import LoopClock

BLOCK = 0.8
HARDLY = 0.25
"""Seconds that pass at the beginning of a block, 0.1 and what a busy machine adds to them."""


def block():
    """What a coroutine should not do."""
    time.sleep(BLOCK)


async def turns(seconds=0.15):
    """Lets the loop run for a while."""
    await asyncio.sleep(seconds)


def test_a_block_takes_hardly_any_time():
    """As soon as the block is over, and when the loop has run again; other time passes as it does."""

    async def main():
        clock = LoopClock()
        began, really = clock(), time.monotonic()
        block()
        at_once = clock() - began
        await turns()
        afterwards = clock() - began
        await turns(0.5)
        return at_once, afterwards, clock() - began, time.monotonic() - really

    at_once, afterwards, later, really = asyncio.run(main())
    assert at_once <= HARDLY
    assert afterwards <= really - BLOCK + HARDLY
    # A machine that is busy with others halts the loop too: what passes may be less, and never more.
    assert afterwards < later <= really - BLOCK + HARDLY


def test_other_threads_see_it_stand():
    """While the loop is blocked, not only when it has come back."""
    seen = []

    async def main():
        clock = LoopClock()
        began = clock()

        def look():
            time.sleep(BLOCK / 2)
            seen.append(clock() - began)
            time.sleep(BLOCK / 4)
            seen.append(clock() - began)

        looking = threading.Thread(target=look)
        looking.start()
        block()
        looking.join()

    asyncio.run(main())
    assert seen[0] == seen[1] <= HARDLY


def test_it_never_goes_back():
    """The readings only grow, in any thread and state of the loop."""

    async def main():
        clock, readings, over = LoopClock(), [], threading.Event()
        clock()

        def read():
            while not over.is_set():
                readings.append(clock())

        reading = threading.Thread(target=read)
        reading.start()
        for _ in range(4):
            time.sleep(0.2)  # noqa: ASYNC251 - on purpose
            await turns(0.06)
        over.set()
        reading.join()
        return readings

    readings = asyncio.run(main())
    assert len(readings) > 100
    assert readings == sorted(readings)
    assert readings[-1] > readings[0]


def test_a_loop_that_never_comes_back_does_not_stop_time(monkeypatch):
    """It stands still for so long and no longer."""
    monkeypatch.setattr(loop_clock, "LONGEST", 0.2)
    clock = LoopClock()

    async def ask():
        return clock()

    began, really = asyncio.run(ask()), time.monotonic()
    time.sleep(BLOCK)
    assert clock() - began >= BLOCK - 0.2
    assert clock() - began <= time.monotonic() - really + 0.1


def test_the_next_loop_takes_over():
    """As in a test suite, where each test has its own; and no closed loop is kept."""
    clock, loops = LoopClock(), []

    async def main():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await turns()  # by then the last turn of the loop before is too long ago
        began = clock()
        block()
        return clock() - began

    for _ in range(3):
        assert asyncio.run(main()) <= HARDLY
    gc.collect()
    assert [loop() for loop in loops] == [None, None, None]


def test_it_sleeps_when_nobody_asks(monkeypatch):
    """An idle service is not woken for ever; the next question starts it again."""
    monkeypatch.setattr(loop_clock, "IDLE_BEATS", 2)

    async def main():
        clock, loop = LoopClock(), asyncio.get_running_loop()
        clock()
        assert loop._scheduled
        while loop._scheduled:
            await asyncio.sleep(0)
        began = clock()
        block()
        return clock() - began

    assert asyncio.run(main()) <= HARDLY


def test_without_a_loop_it_is_the_time():
    """A synchronous engine's guard may have it as well."""
    clock = LoopClock()
    began = clock()
    time.sleep(0.2)
    assert clock() - began >= 0.2
    assert clock() <= time.monotonic()


# --- in front of a database ----------------------------------------------------------------------------


SLOW = 1.0
"""Seconds from which on a statement is slow."""


class Shop:
    """Tasks that ask for 10 ms each, again and again, two more of them than there are slots."""

    SLOTS = 5

    def __init__(self, url, clock):
        self.engine = create_async_engine(url, pool_size=self.SLOTS, max_overflow=0)
        policy = BreakerPolicy(
            slow_call_duration_threshold=SLOW,
            slow_call_rate_threshold=0.05,
            sliding_window_size=1,
            minimum_number_of_calls=self.SLOTS,
            wait_duration_in_open_state=30.0,
        )
        self.db = protect(self.engine, name="db", breaker=policy, clock=clock, timeout=20.0)
        self.refused = asyncio.Event()
        self._tasks = []

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._ask_on()) for _ in range(self.SLOTS + 2)]
        await asyncio.sleep(1.0)  # connections are open
        assert self.db.state == "closed"
        return self

    async def __aexit__(self, *exc):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.dispose()

    async def _ask_on(self):
        while True:
            try:
                async with self.engine.connect() as connection:
                    await connection.execute(text("select pg_sleep(0.01)"))
            except BulkheadFullError:
                await asyncio.sleep(0.02)
            except CircuitOpenError:
                self.refused.set()
                await asyncio.sleep(0.02)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("clock", "state"), [(LoopClock(), "closed"), (time.monotonic, "open")], ids=["loop clock", "plain clock"]
)
def test_a_blocked_loop_is_not_the_database_s_fault(postgres, clock, state):
    """Statements of 10 ms whose tasks could not resume for 1.5 s; another clock would count them as slow."""

    async def main():
        async with Shop(postgres.url("asyncpg"), clock) as shop:
            for _ in range(4):
                time.sleep(1.5 * SLOW)  # noqa: ASYNC251 - on purpose
                await asyncio.sleep(0.2)
            return shop.db.state

    assert asyncio.run(main()) == state


def test_a_database_that_hangs_is_found_out_as_ever(postgres):
    """In about one threshold, long before the timeout."""

    async def main():
        async with Shop(postgres.url("asyncpg"), LoopClock()) as shop:
            postgres.freeze()
            began = time.monotonic()
            try:
                await asyncio.wait_for(shop.refused.wait(), 15)
                return time.monotonic() - began
            finally:
                postgres.thaw()

    assert 0.5 * SLOW < asyncio.run(main()) < 5 * SLOW


def test_a_database_that_hangs_is_found_out_on_a_busy_loop_too(postgres):
    """The loop is there a third of the time, and so is the clock: later, but found out."""

    async def main():
        async with Shop(postgres.url("asyncpg"), LoopClock()) as shop:
            postgres.freeze()
            began = time.monotonic()
            try:
                while not shop.refused.is_set() and time.monotonic() - began < 15:
                    time.sleep(0.3)  # noqa: ASYNC251 - on purpose
                    await asyncio.sleep(0.01)
                return time.monotonic() - began
            finally:
                postgres.thaw()

    assert asyncio.run(main()) < 15
