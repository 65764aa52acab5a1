"""Coroutines that run in the background of the caller's loop."""

from __future__ import annotations

import asyncio
import gc

from guardrails._dbapi.drivers.background import Background


def test_a_coroutine_is_run_and_its_failure_is_told():
    failures, done = [], []

    async def work():
        done.append(True)
        raise ValueError("the server is gone")

    async def main():
        Background(failures.append).run(work(), 1)
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert done == [True]
    assert [str(error) for error in failures] == ["the server is gone"]


def test_a_coroutine_that_takes_too_long_is_cancelled():
    failures = []

    async def main():
        Background(failures.append).run(asyncio.sleep(60), 0.01)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert [type(error) for error in failures] == [TimeoutError]


def test_a_coroutine_that_is_cancelled_before_its_first_step_is_closed():
    """Python would warn, wherever it is collected, that it was never awaited."""
    failures, begun = [], []

    async def work():
        begun.append(True)

    async def main():
        Background(failures.append).run(work(), 1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # as a loop does that ends
        await asyncio.sleep(0.01)

    asyncio.run(main())
    gc.collect()
    assert begun == failures == []
