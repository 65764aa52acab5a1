"""A guard on uvloop's event loop: one check for each name, which is given as an argument."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time

import pytest
import uvloop

from guardrails import BulkheadFullError, CallTimeoutError, DeadlineSpentError, Guard, deadline

LONG = 30


def narrow(**options):
    """One slot, and a queue in front of it."""
    settings = {"max_wait_duration": LONG, "max_waiting": 200, "timeout": None} | options
    return Guard("db", max_concurrent_calls=1, **settings)


def run(main):
    """Runs a coroutine to its end on a loop of uvloop's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def timers():
    """Each of many calls is cancelled at its own deadline, none early, also after the loop was busy."""
    guard = Guard("db", max_concurrent_calls=100, breaker=None)

    async def late(seconds):
        began = time.monotonic()
        try:
            async with guard.call(timeout=seconds):
                await asyncio.sleep(LONG)
        except CallTimeoutError:
            return time.monotonic() - began - seconds
        raise AssertionError

    tasks = [asyncio.create_task(late(0.05 + 0.003 * (number * 37 % 50))) for number in range(50)]
    await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251 - a loop that is busy
    tasks += [asyncio.create_task(late(0.01 * number)) for number in range(1, 10)]
    overdue = await asyncio.gather(*tasks)
    assert min(overdue) > -0.005, "the loop counts in milliseconds"
    assert max(overdue) < 5
    assert (guard.snapshot().failed, guard.snapshot().in_use) == (59, 0)


async def cancellation():
    """In the queue, in the tick of the grant, inside: the slot goes on, the cancellation comes out."""
    guard = narrow(timeout=LONG)
    holder = asyncio.create_task(guard.run_async(asyncio.sleep, LONG))
    await asyncio.sleep(0)
    queued, granted, heir = [asyncio.create_task(guard.run_async(asyncio.sleep, 0.01)) for _ in range(3)]
    await asyncio.sleep(0)
    assert guard.snapshot().waiting == 3
    queued.cancel()
    await asyncio.sleep(0)
    holder.cancel()
    await asyncio.sleep(0)
    granted.cancel()
    ends = await asyncio.gather(holder, queued, granted, heir, return_exceptions=True)
    assert [type(end) for end in ends] == [*[asyncio.CancelledError] * 3, type(None)]
    assert (guard.snapshot().in_use, guard.snapshot().waiting) == (0, 0)


async def deadlines():
    """A wait that ends in time, a smaller deadline around the call, none left."""
    guard = narrow(max_wait_duration=0.05)
    async with guard.call():
        began = time.monotonic()
        with pytest.raises(BulkheadFullError, match="in time"):
            await guard.run_async(asyncio.sleep, 0)
        assert 0.045 <= time.monotonic() - began < 5
    with pytest.raises(CallTimeoutError) as late, deadline(0.05):
        await guard.run_async(asyncio.sleep, LONG)
    assert 0 < late.value.timeout <= 0.05
    with pytest.raises(DeadlineSpentError), deadline(0):
        await guard.run_async(asyncio.sleep, 0)
    assert guard.snapshot().rejected == {"queue_timeout": 1, "deadline_spent": 1}
    assert (guard.snapshot().abandoned, guard.snapshot().in_use) == (1, 0)


def loops_and_threads():
    """Two loops and a few threads in one queue: everybody is served, and woken from wherever."""
    guard, served = narrow(), []

    async def body():
        served.append(asyncio.current_task())

    async def crowd():
        await asyncio.gather(*[guard.run_async(body) for _ in range(50)])

    threads = [threading.Thread(target=run, args=(crowd(),)) for _ in range(2)]
    threads += [threading.Thread(target=guard.run, args=(served.append, None)) for _ in range(10)]
    with guard.call():
        for thread in threads:
            thread.start()
        while guard.snapshot().waiting < 110:
            time.sleep(0.01)
    for thread in threads:
        thread.join(LONG)
    assert len(served) == 110
    assert (guard.snapshot().in_use, guard.snapshot().waiting) == (0, 0)


if __name__ == "__main__":
    check = globals()[sys.argv[1]]
    if inspect.iscoroutinefunction(check):
        run(check())
    else:
        check()
    print("fine")
