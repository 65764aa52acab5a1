"""Transactions cancelled at any moment: no slot, no connection and no answer goes astray.

The test that decides which SQLAlchemy is the oldest that will do: older ones lose a slot for good when an
anyio scope cancels again while a connection is being put back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random

import anyio
import pytest
from sqlalchemy import text

from guardrails import BulkheadFullError
from support.polling import poll
from support.sql_lab import drivers, lab_with

TRANSACTIONS = 120


lab = lab_with(drivers(is_async=True))


async def by_task(work, moment):
    """Cancels once."""
    task = asyncio.create_task(work)
    await asyncio.sleep(moment)
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def by_scope(work, moment):
    """Cancels again and again until the work has ended."""
    with anyio.move_on_after(moment):
        return await work


async def by_timeout(work, moment):
    """Cancels once, and takes the cancellation back."""
    try:
        async with asyncio.timeout(moment):
            return await work
    except TimeoutError:
        return None


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("cancelled", [by_task, by_scope, by_timeout])
def test_cancelled_transactions_leave_nothing_behind(lab, cancelled):
    """Each answer is the asker's own; in the end every slot and every connection is free."""
    dice = random.Random(5)
    lab.protect(
        pool_size=3, max_overflow=1, guard={"breaker": None, "max_wait_duration": 5, "max_waiting": 20}
    )

    async def transaction(number):
        # SQLAlchemy goes on putting a connection back while its cancelled task is already gone,
        # so there may be no slot for a moment.
        with contextlib.suppress(BulkheadFullError):
            async with lab.engine.connect() as connection:
                for sql in (f"select {number}", f"select {number} from pg_sleep(0.002)"):
                    answer = (await connection.execute(text(lab.backend.say(sql)))).scalar()
                    assert answer == number
                await connection.commit()
        return number

    async def worker(numbers):
        answers = []
        for number in numbers:
            result = await cancelled(transaction(number), dice.uniform(0, 0.02))
            answers.append(number if result is None or isinstance(result, asyncio.CancelledError) else result)
            assert asyncio.current_task().cancelling() == 0
        return answers == list(numbers)

    async def main():
        return await asyncio.gather(*(worker(range(first, TRANSACTIONS, 6)) for first in range(6)))

    assert lab.runner.run(main()) == [True] * 6
    # A cancel request may still be on its way.
    poll(lambda: lab.pause(0.01) or lab.running() == 0, "no statement runs on", 3.0)
    poll(lambda: lab.pause(0.01) or lab.pool.checkedout() == 0, "every connection is back", 3.0)
    assert lab.guard.snapshot().in_use == 0
    assert lab.all([lambda: lab.query("select 1 from pg_sleep(0.05)")] * 6) == [1] * 6
    lab.runner.run(lab.engine.dispose())
    lab.pause(0.1)
    gc.collect()  # psycopg leaves a connection that was cancelled while it opened to the collector
