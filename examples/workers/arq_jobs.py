"""arq: a refused job is deferred by the error's ``retry_after``.

arq arq_jobs.WorkerSettings

arq wants redis-py below 6, and the adapter for Redis of guardrails wants 8 or later: in one environment
with arq the database can be guarded, a Redis client cannot.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any, ClassVar

from arq import Retry
from arq.connections import RedisSettings
from summaries import summarize

from guardrails import DeadlineSpentError, RejectedError, deadline

LIMIT = 2.0


async def monthly_summary(_context: dict[str, Any], month: int) -> int:
    """Runs in a thread, which has the deadline of the task that waits for it."""
    with deadline(LIMIT):
        try:
            return await asyncio.to_thread(summarize, month)
        except DeadlineSpentError:  # the job used up its own time, and would do so again
            raise
        except RejectedError as refused:
            raise Retry(defer=(refused.retry_after or 1.0) * random.uniform(1, 2)) from refused


class WorkerSettings:
    """What ``arq`` reads. Its own limit comes after the deadline."""

    functions: ClassVar[list[Any]] = [monthly_summary]
    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
    job_timeout = LIMIT + 1
    max_tries = 10
