"""Dramatiq: a refused message is delivered again after the error's ``retry_after``.

dramatiq dramatiq_actors --processes 1 --threads 4
"""

from __future__ import annotations

import os
import random

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from summaries import summarize

from guardrails import DeadlineSpentError, RejectedError, deadline

dramatiq.set_broker(RedisBroker(url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")))  # type: ignore[no-untyped-call]

LIMIT = 2.0


# Dramatiq's own limit raises an exception in the thread once its Python code runs again, but not while it
# waits for a server. So the deadline comes first, and stops the statement.
@dramatiq.actor(time_limit=1000 * LIMIT + 1000, max_retries=10, throws=(TimeoutError,))
def monthly_summary(month: int) -> None:
    """A `CallTimeoutError` is a TimeoutError, and so is never tried again: its effect is unknown."""
    with deadline(LIMIT):
        try:
            summarize(month)
        except DeadlineSpentError:  # the job used up its own time, and would do so again
            raise
        except RejectedError as refused:
            seconds = (refused.retry_after or 1.0) * random.uniform(1, 2)
            raise dramatiq.errors.Retry(str(refused), delay=int(1000 * seconds)) from refused
